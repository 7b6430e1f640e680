"""What probes add to a denoising run: time, and peak memory.

    python benchmarks/probe_overhead.py

ReceivedAttention, SinkMask and KeyNorm on all layers, heads and steps, against the same run without probes, on random
weights at S = 512, d_model = 512, 8 layers, 8 heads, 64 steps. Time: medians of interleaved runs in this process.
Memory: peak resident size of two fresh processes. Targets: at most 1.3 x the time, less than 200 MB more.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch
from memory import peak_megabytes
from transformers import LlamaConfig, LlamaForCausalLM

import sinklens as sl
from sinklens.loading import SpecialIds

S, D_MODEL, LAYERS, HEADS, STEPS, REPEATS = 512, 512, 8, 8, 64, 2


def model() -> sl.HookedDLM:
    """Random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=D_MODEL, intermediate_size=4 * D_MODEL, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=S, tie_word_embeddings=False,
    )  # fmt: skip
    return sl.HookedDLM.from_transformers(LlamaForCausalLM(config).eval(), None, "LLaDA", ids=SpecialIds(999, 0, 1, 0))


def run(dlm: sl.HookedDLM, *, probed: bool) -> float:
    """Seconds of one run."""
    probes = [sl.probes.ReceivedAttention(), sl.probes.SinkMask(), sl.probes.KeyNorm()] if probed else []
    prompt = torch.randint(2, 900, (S - STEPS,), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    sl.denoise(dlm, prompt, sl.Plan(new_tokens=STEPS), probes=probes, progress=False)
    return time.perf_counter() - started


def peak(which: str) -> float:
    """Peak resident megabytes of a process that does one run."""
    done = subprocess.run([sys.executable, __file__, which], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1:
        run(model(), probed=sys.argv[1] == "probed")
        print(peak_megabytes())
        return
    memory = {which: peak(which) for which in ("plain", "probed")}
    dlm = model()
    times: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(REPEATS + 1):
        for probed in (False, True):
            seconds = run(dlm, probed=probed)
            if repeat:
                times[probed].append(seconds)
    plain, probed = (statistics.median(times[which]) for which in (False, True))
    print(f"S {S}, d_model {D_MODEL}, {LAYERS} layers, {HEADS} heads, {STEPS} steps, {torch.get_num_threads()} threads")
    print(f"plain {plain:.2f} s, probed {probed:.2f} s: {probed / plain:.2f} x (target 1.3)")
    print(f"peak memory: +{memory['probed'] - memory['plain']:.0f} MB (target 200)")


if __name__ == "__main__":
    main()
