"""What received attention costs by each path: blocks, whole patterns, and the ways one would do it without sinklens.

    python benchmarks/attention_paths.py [--sizes 256 512 1024 2048 4096] [--d-model 256 768] [--dtype bfloat16]
    python benchmarks/attention_paths.py --8b      the shape of LLaDA-8B, on a GPU

One forward of a bidirectional Llama with random weights (6 layers, heads of 64), batch 1:

plain            fused attention (sdpa), nobody hooks anything
blocks           the probe ReceivedAttention, blocks of queries
pattern          the same, whole patterns
masked           the edit MaskSinks(PreviousStep(top_k=5))
masked now       the edit MaskSinks(SameStep(top_k=5)): by this very forward's attention
hook             a column sum in an ordinary pattern hook on the HookedDLM
TransformerLens  the same hook on TransformerLens's stock Llama bridge, which is causal whatever the config says;
                 it computes and masks the scores of all pairs, so what it costs can still be compared
transformers     eager attention with output_attentions=True, and the column sums: the patterns of all layers at once

Time: medians of interleaved repeats after a warm-up at a quarter of S, as ratios to the same forward without hooks;
"runs" says how many repeats, fewer where they are slow. Memory: peak beyond that of the plain forward; on a CPU the
resident size, each in a fresh process, on a GPU what torch allocates. A cell is "-" where the patterns would take half
of the free memory. Targets at S = 1024, d_model 768: blocks at most 1.15 x, masked 1.20 x; at S = 4096 blocks
less than 64 MB more.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from functools import partial
from typing import Any

import common
import torch
from common import Job
from transformer_lens.model_bridge.sources import build_bridge_from_module

import sinklens as sl
from sinklens.models.direction import set_direction

WAYS = ("plain", "blocks", "pattern", "masked", "masked now", "hook", "TransformerLens", "transformers")
LLADA_8B = {"d_model": 4096, "layers": 32, "heads": 32, "inner": 12288, "vocabulary": 126464, "dtype": torch.bfloat16}


def ways(dlm: sl.HookedDLM, tokens: torch.Tensor, names: Iterable[str]) -> dict[str, Job]:
    """One forward by each way."""
    made: dict[str, Job] = {
        "plain": lambda: dlm(tokens),
        "blocks": partial(common.received, dlm, tokens, "blocks"),
        "pattern": partial(common.received, dlm, tokens, "pattern"),
    }
    for name in names:
        match name:
            case "masked":
                made[name] = masking(dlm, tokens, sl.PreviousStep(top_k=5))
            case "masked now":
                made[name] = masking(dlm, tokens, sl.SameStep(top_k=5))
            case "hook":
                made[name] = hooked(dlm, dlm, tokens)
            case "TransformerLens":
                stock = without_bridge(dlm)
                set_direction(stock, causal=True)
                bridge = build_bridge_from_module(stock, "LlamaForCausalLM", hf_config=stock.config)
                made[name] = hooked(dlm, bridge, tokens)
            case "transformers":
                made[name] = outputs(without_bridge(dlm), tokens)
    return {name: made[name] for name in names}


def without_bridge(dlm: sl.HookedDLM) -> Any:
    """The transformers model over the same weights."""
    shared = {id(tensor): tensor for tensor in (*dlm.original_model.parameters(), *dlm.original_model.buffers())}
    return copy.deepcopy(dlm.original_model, shared)


def masking(dlm: sl.HookedDLM, tokens: torch.Tensor, selector: sl.interventions.Selector) -> Job:
    """An edited forward, as one step after another of a run sees it; the first one is over."""
    edit, steps = sl.MaskSinks(selector), itertools.count()
    memory = edit.memory()
    on = torch.ones_like(tokens, dtype=torch.bool)

    def step() -> None:
        dlm.attention = "auto"
        canvas = sl.Canvas(tokens, on, ~on, on, next(steps), (0,) * len(tokens))
        with dlm.hooks(fwd_hooks=edit.at_step(dlm, canvas, memory)):
            dlm(tokens)

    step()
    return step


def hooked(dlm: sl.HookedDLM, bridge: Any, tokens: torch.Tensor) -> Job:
    """Column sums by an ordinary hook on a bridge."""
    found: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, *, hook: Any) -> None:
        found[hook.name] = tensor.sum(-2)

    hooks = [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in range(dlm.n_layers)]

    def forward() -> None:
        dlm.attention = "auto"
        bridge.run_with_hooks(tokens, fwd_hooks=hooks)

    return forward


def outputs(model: Any, tokens: torch.Tensor) -> Job:
    """Column sums of what transformers returns."""
    model.set_attn_implementation("eager")

    def forward() -> list[torch.Tensor]:
        return [pattern.sum(-2) for pattern in model(tokens, output_attentions=True, use_cache=False).attentions]

    return forward


def one_way(way: str, shape: dict[str, Any]) -> Job:
    """For a fresh process."""
    return ways(common.random_dlm(**shape), common.random_tokens(1, shape["size"]), [way])[way]


def fits(way: str, shape: dict[str, Any]) -> bool:
    """Whether the patterns that a way holds at once take less than half of the free memory."""
    # One layer's scores, masked scores and float32 weights; transformers keeps the other layers' besides.
    held = {"plain": 0, "blocks": 0, "masked": 0, "transformers": 3 + shape["layers"]}.get(way, 4)
    heads = shape.get("heads") or shape["d_model"] // 64
    return held * heads * shape["size"] ** 2 * 4 / 2**20 < common.free_megabytes(shape["device"]) / 2


def measure(shape: dict[str, Any], *, time: bool, memory: bool, seconds: float) -> list[str]:
    """A row of the table: S, runs, ms of the plain forward, and a cell for each other way."""
    device = shape["device"]
    names = [way for way in WAYS if fits(way, shape)]
    dlm, tokens = common.random_dlm(**shape), common.random_tokens(1, shape["size"], device)
    todo = ways(dlm, tokens, names)
    took, rounds = {}, 0
    if time:
        warm = ways(dlm, tokens[:, : shape["size"] // 4], names)
        took, rounds = common.medians(todo, seconds, warm=warm, device=device)
    peaks = common.peaks(todo, one_way, shape, device=device) if memory else {}
    cells = {
        way: ([f"{took[way] / took['plain']:.2f}"] if took else [])
        + ([f"({max(peaks[way] - peaks['plain'], 0):.0f})"] if peaks else [])
        for way in todo
    }
    first = [str(shape["size"]), str(rounds), f"{1000 * took['plain']:.0f}" if took else "-"]
    return first + [" ".join(cells.get(way, ["-"])) for way in WAYS[1:]]


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    options = common.parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=None, help="default 256 512 1024 2048 4096")
    options.add_argument("--d-model", type=int, nargs="+", default=[256, 768])
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    options.add_argument("--device", default=None, help="default cpu, with --8b cuda")
    options.add_argument("--seconds", type=float, default=25.0, help="for the repeats at one size; at least 2 are made")
    options.add_argument("--8b", dest="large", action="store_true", help="LLaDA-8B's shape in bfloat16, S = 1024")
    only = options.add_mutually_exclusive_group()
    only.add_argument("--memory-only", action="store_true")
    only.add_argument("--time-only", action="store_true")
    asked = options.parse_args()
    device = asked.device or ("cuda" if asked.large else "cpu")
    print(common.header(device))
    shapes = [{"d_model": d, "layers": asked.layers, "dtype": getattr(torch, asked.dtype)} for d in asked.d_model]
    for shape in [LLADA_8B] if asked.large else shapes:
        kind = str(shape["dtype"]).removeprefix("torch.")
        print(f"\nd_model {shape['d_model']}, {shape['layers']} layers, {kind}, batch 1: x plain (MB more)\n")
        common.heading("S", "runs", "plain, ms", *WAYS[1:])
        for size in asked.sizes or ([1024] if asked.large else [256, 512, 1024, 2048, 4096]):
            todo = {**shape, "size": size, "device": device}
            common.row(*measure(todo, time=not asked.memory_only, memory=not asked.time_only, seconds=asked.seconds))


if __name__ == "__main__":
    main()
