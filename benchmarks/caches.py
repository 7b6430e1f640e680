"""What a cache is worth: a baseline against transformers' generate, and block decoding against recomputation.

    python benchmarks/caches.py [--models random smollm2-135m]

256 new tokens, greedy, one prompt of 32:

generate      transformers' own, with its cache
cached        sl.denoise, which keeps one, too
received      with the probe ReceivedAttention(queries="last") in all layers and heads at every step
recomputed    sl.denoise(Plan(cache=False)): every step computes every position

And 8 blocks of 32 behind prompts of 32 and 128, one token per step, of a block model with random weights: cached and
recomputed, both with ReceivedAttention(queries="block"). It is checked that all give the same tokens, and both the same
received attention.
Time: medians of interleaved runs after a short warm-up. Targets: received at most 1.3 x generate; cached block decoding
at least 3 x faster than recomputation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import common
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import sinklens as sl
from sinklens.models.special_ids import SpecialIds
from sinklens.probes import ReceivedAttention

NEW, PROMPT, BLOCK = 256, 32, 32


def random_model(family: str) -> sl.HookedDLM:
    """A Llama of 8 layers and 512 dimensions with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    mask = None if family == "Llama" else common.MASK
    return sl.HookedDLM.from_transformers(stock, None, family, ids=SpecialIds(mask, 0, 1, 0), check=False)


def generated(dlm: sl.HookedDLM, prompt: torch.Tensor) -> torch.Tensor:
    """By transformers, with its cache."""
    model: Any = dlm.original_model
    with torch.no_grad():
        return model.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)


def denoised(dlm: sl.HookedDLM, prompt: torch.Tensor, probes: list[Any], **plan: Any) -> sl.Run:
    """By sinklens."""
    asked = sl.Plan(new_tokens=NEW, suppress_eos="logits", **plan)
    return sl.denoise(dlm, prompt, asked, probes=probes, progress=False)


def main() -> None:
    """Time all, and print ratios."""
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["random"], help="random, or an autoregressive model's name")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the repeats of one comparison")
    arguments = parser.parse_args()
    print(common.header())
    for name in arguments.models:
        dlm = random_model("Llama") if name == "random" else sl.HookedDLM.from_pretrained(name, dtype=torch.float32)
        prompt = common.random_tokens(1, PROMPT)
        jobs = {
            "generate": partial(generated, dlm, prompt),
            "cached": partial(denoised, dlm, prompt, []),
            "received": partial(denoised, dlm, prompt, [ReceivedAttention(queries="last")]),
            "recomputed": partial(denoised, dlm, prompt, [], cache=False),
        }
        made = {job: run() for job, run in jobs.items()}
        tokens = {job: each if job == "generate" else each.tokens for job, each in made.items()}
        same = {job: bool(torch.equal(each, tokens["cached"])) for job, each in tokens.items()}
        times = common.medians(jobs, arguments.seconds)[0]
        print(f"\n{name}, {NEW} tokens behind {PROMPT}; the same tokens: {same}")
        for job, seconds in times.items():
            print(f"  {job:11} {seconds:7.2f} s  {seconds / times['generate']:5.2f} x generate")
    dlm, probes = random_model("Stable-DiffCoder"), [ReceivedAttention(queries="block")]
    for size in (PROMPT, 4 * PROMPT):
        prompt = common.random_tokens(1, size)
        jobs = {
            cache: partial(denoised, dlm, prompt, probes, block_length=BLOCK, cache=cache == "cached")
            for cache in ("cached", "recomputed")
        }
        runs = {name: run() for name, run in jobs.items()}
        times = common.medians(jobs, arguments.seconds)[0]
        received = [run.record["received"] for run in runs.values()]
        print(f"\n{NEW // BLOCK} blocks of {BLOCK} behind {size}, received attention in both")
        print(f"  the same tokens: {torch.equal(*(run.tokens for run in runs.values()))}")
        print(f"  largest difference of received attention: {float(abs(received[0] - received[1]).max()):.1e}")
        for name, seconds in times.items():
            print(f"  {name:11} {seconds:7.2f} s  {times['recomputed'] / seconds:5.2f} x faster than recomputed")


if __name__ == "__main__":
    main()
