"""Attention with scores and weights in the open: whole, or in blocks of queries that hooks get one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sinklens.errors import ScopeError
from sinklens.hooks.by_query import ByQuery
from sinklens.interrupts import surely
from sinklens.sinks import Received, Sight

# How many numbers the scores of a block may hold: few enough for a processor's cache, enough to keep a GPU busy.
CPU_BLOCK, GPU_BLOCK, LEAST_ROWS = 2**20, 2**26, 16


def through(point: HookPoint, tensor: Tensor) -> Tensor:
    """The tensor as the hooks of a point leave it; a point without hooks costs nothing."""
    return point(tensor) if point._forward_hooks or point._backward_hooks else tensor


def rows_at_once(batch: int, heads: int, keys: int, device: torch.device) -> int:
    """How many queries make a block."""
    return max(LEAST_ROWS, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // (batch * heads * keys))


def in_blocks(points: Sequence[HookPoint], path: str) -> bool:
    """Whether attention comes in blocks: every hook on these points works by query, and no gradient is wanted.

    Hooks that ask for rounds of previews (see `hooks.ByQuery`) need that every other hook has a preview.

    Raises:
        ScopeError: the path is "blocks" and a hook needs the whole pattern.
    """
    hooks = [handle.user_hook for point in points for handle in point.fwd_hooks]
    by_query = [hook for hook in hooks if isinstance(hook, ByQuery)]
    asking = any(hook.rounds for hook in by_query)
    able = (
        not torch.is_grad_enabled()
        and all(len(p._forward_hooks) == len(p.fwd_hooks) and not p._backward_hooks for p in points)
        and len(by_query) == len(hooks)
        and not (asking and any(hook.preview is None for hook in by_query))
    )
    if path == "blocks" and not able:
        raise ScopeError(
            f"{points[-1].name}: a hook needs the whole pattern (or a gradient is wanted), and attention is set to "
            "'blocks'; say dlm.attention = 'auto'"
        )
    return able and path != "pattern"


def attend(
    points: Sequence[HookPoint],
    received: Sequence[tuple[HookPoint, Tensor | None]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    scale: float,
    *,
    path: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Mixed values [batch, head, query, d_head], and the pattern if it was formed as a whole.

    Scores and weights are float32 at least, whatever the model's dtype, as inside fused kernels: bfloat16 scores would
    make received attention wrong by hundredths where attention is sharp.

    Args:
        points: Two: one gets the scores before the softmax, -inf where the model does not look; one the weights.
        received: Points that are shown received attention, each with its queries [batch or 1, 1, query]; None: all.
        q: Queries [batch, head, query, d_head].
        k: Keys [batch, key head, key, d_head], fewer heads in grouped-query models.
        v: Values, likewise.
        sight: Who sees whom.
        scale: Of the scores.
        path: "auto", "pattern" (whole) or "blocks" (an error where that cannot be).

    Raises:
        ScopeError: the path is "blocks" and a hook needs the whole pattern.
    """
    batch, heads, queries, _ = q.shape
    keys, (scores_point, pattern_point) = k.shape[-2], points
    size = rows_at_once(batch, heads, keys, q.device)
    if (size < queries or path == "blocks") and not in_blocks(points, path):
        size = queries
    spans = [slice(start, min(start + size, queries)) for start in range(0, queries, size)]
    rounds = [0, 0]
    if len(spans) > 1:
        k, v = k.contiguous(), v.contiguous()  # once: matmul would copy them for every block
        hooks: list[list[Any]] = [[handle.user_hook for handle in point.fwd_hooks] for point in points]
        rounds = [sum(hook.rounds for hook in on_point) for on_point in hooks]
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k.to(wide).transpose(-2, -1)

    # Nobody else has the scores then, and fresh memory for every block can cost more than the softmax.
    in_place = not scores_point._forward_hooks and not torch.is_grad_enabled() and q.device.type == "cpu"

    def weigh(scores: Tensor, seen: Tensor | None) -> Tensor:
        pattern = torch.softmax(scores, -1, out=scores) if in_place else scores.softmax(-1)
        if seen is None or sight.mask is None:
            return pattern
        # A padding query of a causal model sees no key at all; its row is zero, not nan.
        return pattern.masked_fill(~seen.any(-1, keepdim=True), 0.0)

    def score(rows: slice) -> tuple[Tensor, Tensor | None]:
        seen = None if sight.open else sight.rows(rows)[:, None]
        scores = _by_group(q[:, :, rows].to(wide), k).mul_(scale)
        return (scores if seen is None else scores.masked_fill_(~seen, float("-inf"))), seen

    mixed: Tensor | None = None
    pattern: Tensor | None = None
    sums = [Received() for _ in received]

    def run() -> None:
        nonlocal mixed, pattern
        for _ in range(sum(rounds)):
            for rows in spans:
                _at(points, rows, sight)
                scores, seen = score(rows)
                scores = _preview(scores_point, scores)
                if rounds[1]:
                    _preview(pattern_point, weigh(scores, seen))
        for rows in spans:
            _at(points, rows, sight)
            scores, seen = score(rows)
            weights: Tensor = through(pattern_point, weigh(through(scores_point, scores), seen))
            del scores
            part = _by_group(weights.to(v.dtype), v)
            for total, (_, which) in zip(sums, received, strict=True):
                total.add(weights, None if which is None else which[..., rows])
            if len(spans) == 1:
                mixed, pattern = part, weights
                continue
            if mixed is None:
                mixed = part.new_empty(batch, queries, heads, part.shape[-1]).transpose(1, 2)
            mixed[:, :, rows] = part
            del weights, part

    surely(run, lambda: forget(points))
    for (point, _), total in zip(received, sums, strict=True):
        point(total.total)
    if mixed is None:
        raise ValueError("attention over no query")
    return mixed, pattern


def _by_group(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, where several heads of `left` may share one of `right`."""
    groups = left.shape[1] // right.shape[1]
    if groups == 1:
        return left @ right
    batch, heads, rows, inner = left.shape
    return (left.reshape(batch, heads // groups, groups * rows, inner) @ right).view(batch, heads, rows, -1)


def forget(points: Sequence[HookPoint]) -> None:
    """A forward is over: its hooks' points know nothing of it any more."""
    for point in points:
        point.ctx.pop("queries", None)
        point.ctx.pop("sight", None)


def _at(points: Sequence[HookPoint], queries: slice, sight: Sight) -> None:
    for point in points:
        point.ctx |= {"queries": queries, "sight": sight}


def _preview(point: Any, tensor: Tensor) -> Tensor:
    """What the hooks of a point will make of a block, as far as they know by now; no hook is called."""
    for handle in point.fwd_hooks:
        changed = handle.user_hook.preview(tensor, hook=point)
        tensor = tensor if changed is None else changed
    return tensor
