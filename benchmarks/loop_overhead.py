"""What the loop costs without probes, against the same loop over the plain transformers model.

    python benchmarks/loop_overhead.py

Both run in this process, interleaved, on random weights at S = 256, d_model = 256, 8 layers; the ratio of the
medians is printed. Target: at most 1.15. A probed run is shown beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinklens as sl
from sinklens.loading import SpecialIds, plain_twin, set_direction

S, D_MODEL, LAYERS, STEPS, PROMPT, REPEATS = 256, 256, 8, 16, 224, 7
MASK = 999


def plain_loop(model: LlamaForCausalLM, prompt: torch.Tensor) -> torch.Tensor:
    """LLaDA's greedy low-confidence loop over the model as transformers gives it."""
    tokens = torch.cat([prompt, torch.full((1, S - PROMPT), MASK)], 1)
    per_step = (S - PROMPT) // STEPS
    with torch.no_grad():
        for _ in range(STEPS):
            logits = model(tokens, use_cache=False).logits
            logits[..., MASK] = -torch.inf
            confidence, choice = logits.softmax(-1).max(-1)
            confidence = confidence.masked_fill(tokens != MASK, -torch.inf)
            index = confidence.topk(per_step).indices
            tokens = tokens.scatter(1, index, choice.gather(1, index))
    return tokens


def median_seconds(*jobs: Callable[[], object]) -> list[float]:
    """Median time of each job; the jobs take turns, after one round of warm-up."""
    times: list[list[float]] = [[] for _ in jobs]
    for repeat in range(REPEATS + 1):
        for index, job in enumerate(jobs):
            started = time.perf_counter()
            job()
            if repeat:
                times[index].append(time.perf_counter() - started)
    return [statistics.median(each) for each in times]


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=D_MODEL, intermediate_size=4 * D_MODEL, num_hidden_layers=LAYERS,
        num_attention_heads=8, max_position_embeddings=S, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    set_direction(model, causal=False)
    plain = plain_twin(model)
    dlm = sl.HookedDLM.from_transformers(model, None, "LLaDA", ids=SpecialIds(MASK, None, 0, 0))
    prompt = torch.randint(1, MASK, (1, PROMPT))
    plan = sl.Plan(new_tokens=S - PROMPT, steps=STEPS, block_length=S - PROMPT)
    same = plain_loop(plain, prompt)[0].tolist() == sl.denoise(dlm, prompt[0], plan, progress=False).tokens[0].tolist()
    base, ours, probed = median_seconds(
        lambda: plain_loop(plain, prompt),
        lambda: sl.denoise(dlm, prompt[0], plan, progress=False),
        lambda: sl.denoise(dlm, prompt[0], plan, probes=[sl.probes.ReceivedAttention()], progress=False),
    )
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, S={S}, d={D_MODEL}, {LAYERS} layers, {STEPS} steps")
    print(f"same tokens: {same}")
    print(f"plain transformers loop  {base:.3f} s  1.00")
    print(f"sinklens, no probes      {ours:.3f} s  {ours / base:.2f}  (target 1.15)")
    print(f"sinklens, received       {probed:.3f} s  {probed / base:.2f}")


if __name__ == "__main__":
    main()
