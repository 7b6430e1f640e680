"""Which rows an edit changed: those of which a hook gave back something else than it was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.hooks.by_query import ByQuery, Hook, HookFunction, block_of
from sinklens.hooks.canvas import Canvas
from sinklens.hooks.memory import Memory
from sinklens.hooks.seen import sight_of

SCORES, PATTERN, RECEIVED = "hook_attn_scores", "hook_pattern", "attn.hook_received"
ALONE = (  # points of a layer from which on no position sees another in it
    *(f"attn.{SCORES}", f"attn.{PATTERN}", "attn.o.hook_in", "attn.o.hook_out", "attn.hook_out", "hook_attn_out"),
    *("mlp.hook_in", "mlp.hook_out", "hook_mlp_out", "hook_out"),
)
ROUNDING = 4  # of a sum, in units of the last place


def noting(hooks: Sequence[Hook], model: Any, canvas: Canvas, memory: Memory) -> list[Hook]:
    """The hooks of an edit, which also note in its memory the rows that they change. Once it is noted nobody looks."""

    def wrap(name: str, inner: HookFunction) -> HookFunction:
        def hook_function(tensor: Tensor, *, hook: Any) -> Tensor | None:
            version = _version(tensor)
            edited = inner(tensor, hook=hook)
            if _version(tensor) != version:  # in place: what was there is gone
                memory.touch(canvas.rows)
            elif edited is not None and edited is not tensor and memory.untouched(canvas.rows):
                memory.touch(canvas.rows & _changed(name, tensor, edited, model, canvas, memory, hook))
            return edited

        return hook_function

    def noted(name: str, function: HookFunction) -> HookFunction:
        return function.around(partial(wrap, name)) if isinstance(function, ByQuery) else wrap(name, function)

    return [(name, noted(name, function)) for name, function in hooks]


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; torch does not count it in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _changed(
    name: str, before: Tensor, after: Tensor, model: Any, canvas: Canvas, memory: Memory, hook: Any
) -> Bool[Tensor, " batch"]:
    """Rows of which a real position got something else; of scores, those whose weights are others."""
    if RECEIVED in name:  # shown only
        return torch.zeros_like(canvas.rows)
    if before.dtype == torch.bool:  # which keys are visible
        differs = before != after
    elif name.endswith((SCORES, PATTERN)):
        differs = _reweighed(before, after) if name.endswith(SCORES) else (before != after).any(-1)
        real, block = sight_of(model, hook, before, canvas).real, block_of(hook, before)
        differs = differs & real[:, None, block].to(differs.device)
        counting = _counting(name, model, canvas, memory)
        if real.shape[-1] == counting.shape[-1]:
            differs = differs & counting[:, None, block].to(differs.device)
    else:
        differs = (before != after).flatten(2).any(-1)
        if differs.shape == canvas.valid.shape:
            differs = differs & _counting(name, model, canvas, memory).to(differs.device)
    return differs.flatten(1).any(-1).to(canvas.rows.device)


def _counting(name: str, model: Any, canvas: Canvas, memory: Memory) -> Bool[Tensor, "batch pos"]:
    """Positions, or queries, at which a change of a hook point can reach what is decided: real ones.

    From the scores of the last layer on nothing is passed on between positions: there only those whose logits decide
    count, which are the masked ones of the block (of a shifted model, those before them; where a sampler decides
    committed ones again, all of the response), or in a baseline that writes each row's last.
    """
    layer, _, point = name.removeprefix("blocks.").partition(".")
    if layer != str(int(model.cfg.n_layers) - 1) or point not in ALONE or not hasattr(model, "family"):
        return canvas.valid
    if model.is_causal:  # without steps every position is asked at once
        return canvas.valid if memory.steps is None else canvas.positions("last")
    decided = canvas.positions("response" if memory.again else "masked")
    if canvas.block is not None:
        decided = decided & canvas.block
    if model.family.shift:
        return canvas.valid & torch.cat([decided[:, 1:], torch.zeros_like(decided[:, :1])], 1)
    return decided


def _reweighed(before: Tensor, after: Tensor) -> Bool[Tensor, "batch head query"]:
    """Queries to which other scores give other weights.

    Not those of which only keys without any weight changed, and not those of which every key got the same amount.
    """
    least = math.log(torch.finfo(before.dtype).tiny)
    weighed = [scores >= scores.amax(-1, keepdim=True) + least for scores in (before, after)]
    counts = weighed[0] | weighed[1]
    moved = counts & (before != after)
    differs = moved.any(-1)
    alike = differs & (moved == counts).all(-1)
    if not bool(alike.any()):
        return differs
    by = after - before
    spread = by.masked_fill(~counts, -math.inf).amax(-1) - by.masked_fill(~counts, math.inf).amin(-1)
    size = torch.maximum(before.abs(), after.abs()).masked_fill(~counts, 0.0).amax(-1)
    return differs & ~(alike & (spread <= ROUNDING * torch.finfo(before.dtype).eps * size))
