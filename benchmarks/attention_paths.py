"""What received attention costs by each path: streaming, whole patterns, and the ways one would do it without sinklens.

    python benchmarks/attention_paths.py [--sizes 256 512 1024 2048] [--d-model 768]

One forward of a bidirectional Llama with random weights (6 layers, heads of 64), batch 1. "streaming" and "pattern" are
the probe ReceivedAttention by either path, "masked" the edit MaskSinks(PreviousStep(top_k=5)), "hook" a column sum in
an ordinary pattern hook, "transformers" eager attention with output_attentions=True. Time: medians of interleaved
repeats after a warm-up, as ratios to the same forward without hooks. Memory: peak resident size beyond that of the
plain forward, each in a fresh process. Prints a table in Markdown; docs/performance.md has one, with its machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import transformer_lens
import transformers
from memory import peak_megabytes
from transformers import LlamaConfig, LlamaForCausalLM

import sinklens as sl
from sinklens.loading import SpecialIds

LAYERS, REPEATS = 6, 4
WAYS = ("plain", "streaming", "masked", "pattern", "hook", "transformers")


def model(size: int, d_model: int) -> sl.HookedDLM:
    """Random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=d_model, intermediate_size=4 * d_model, num_hidden_layers=LAYERS,
        num_attention_heads=d_model // 64, max_position_embeddings=size, tie_word_embeddings=False,
    )  # fmt: skip
    stock = LlamaForCausalLM(config).eval()
    return sl.HookedDLM.from_transformers(stock, None, "LLaDA", ids=SpecialIds(999, 0, 1, 0), check=False)


def jobs(dlm: sl.HookedDLM, size: int) -> dict[str, Callable[[], object]]:
    """One forward by each way."""
    tokens = torch.randint(2, 900, (1, size), generator=torch.Generator().manual_seed(0))
    cut = sl.MaskSinks(sl.PreviousStep(top_k=5))
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(LAYERS)]
    found: dict[str, torch.Tensor] = {}

    def probed(path: str) -> None:
        dlm.attention = path
        probe = sl.probes.ReceivedAttention()
        with dlm.hooks(fwd_hooks=probe.fwd_hooks(dlm)):
            dlm(tokens)
        probe.values()

    def masked() -> None:
        dlm.attention = "auto"
        on = torch.ones(1, size, dtype=torch.bool)
        for step in (0, 1) if not cut.detector._seen else (1,):
            cut.detector._seen = {layer: (0, *seen[1:]) for layer, seen in cut.detector._seen.items()}
            canvas = sl.Canvas(tokens, on, ~on, on, step, (0,))
            with dlm.hooks(fwd_hooks=cut.fwd_hooks(dlm, canvas)):
                dlm(tokens)

    def keep(tensor: torch.Tensor, *, hook: transformer_lens.hook_points.HookPoint) -> None:
        found[str(hook.name)] = tensor.sum(-2)

    def outputs() -> None:
        reference = dlm.reference
        if reference is None:
            raise RuntimeError("no unhooked model")
        reference.set_attn_implementation("eager")
        weights = reference(tokens, output_attentions=True, use_cache=False).attentions
        found.update({str(layer): pattern.sum(-2) for layer, pattern in enumerate(weights)})
        reference.set_attn_implementation("sdpa")

    return {
        "plain": lambda: dlm(tokens),
        "streaming": partial(probed, "streaming"),
        "masked": masked,
        "pattern": partial(probed, "pattern"),
        "hook": lambda: dlm.bridge.run_with_hooks(tokens, fwd_hooks=[(name, keep) for name in names]),
        "transformers": outputs,
    }


def peak(way: str, size: int, d_model: int) -> float:
    """Peak resident megabytes of a process that runs one way twice."""
    command = [sys.executable, __file__, "--one", way, "--sizes", str(size), "--d-model", str(d_model)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        job = jobs(model(asked.sizes[0], asked.d_model), asked.sizes[0])[asked.one]
        job()
        job()
        print(peak_megabytes())
        return
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__},"
    )
    print(f"transformers {transformers.__version__}; d_model {asked.d_model}, {LAYERS} layers, float32, batch 1\n")
    print("| S | plain, ms | " + " | ".join(f"{way}, x plain (MB more)" for way in WAYS[1:]) + " |")
    print("|" + "---|" * (len(WAYS) + 1))
    for size in asked.sizes:
        todo = jobs(model(size, asked.d_model), size)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for repeat in range(REPEATS + 1):
            for way in WAYS:
                started = time.perf_counter()
                todo[way]()
                if repeat:
                    times[way].append(time.perf_counter() - started)
        median = {way: statistics.median(times[way]) for way in WAYS}
        memory = {way: peak(way, size, asked.d_model) for way in WAYS}
        cells = [
            f"{median[way] / median['plain']:.2f} ({max(memory[way] - memory['plain'], 0):.0f})" for way in WAYS[1:]
        ]
        print(f"| {size} | {1000 * median['plain']:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
