"""Keys that no query sees are left out of attention: the fused kernel runs on what is left."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sinklens.hooks.by_query import ByQuery
from sinklens.interrupts import surely
from sinklens.models.blocks import forget
from sinklens.sinks import Sight


def only_hidden(scores: HookPoint, others: tuple[HookPoint, ...]) -> bool:
    """Whether all that is hooked are scores, by hooks that take keys away from all queries and heads alike.

    Then nobody sees a score or a weight, and none need be formed. Not where a gradient is wanted.
    """
    hooks = [handle.user_hook for handle in scores.fwd_hooks]
    return (
        bool(hooks)
        and not torch.is_grad_enabled()
        and all(isinstance(hook, ByQuery) and hook.hides is not None for hook in hooks)
        and len(scores._forward_hooks) == len(hooks)
        and not scores._backward_hooks
        and not any(point._forward_hooks or point._backward_hooks for point in others)
    )


def visible(scores: HookPoint, sight: Sight, batch: int) -> Bool[Tensor, "batch key"]:
    """The keys that the hooks of `only_hidden` leave."""

    def ask() -> Tensor:
        scores.ctx |= {"queries": slice(0, sight.count), "sight": sight}
        left = sight.valid.expand(batch, -1)
        hooks: list[Any] = [handle.user_hook for handle in scores.fwd_hooks]
        for hook in hooks:
            left = hook.hides(left, hook=scores)
        return left

    return surely(ask, lambda: forget([scores]))


def attend(
    module: Any,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch key_head key d_head"],
    value: Float[Tensor, "batch key_head key d_head"],
    sight: Sight,
    kept: Bool[Tensor, "batch key"],
    **kwargs: Any,
) -> Float[Tensor, "batch query head d_head"]:
    """Fused attention to the kept keys alone; a query that sees none of them looks at its largest.

    The same as scores of minus infinity at the other keys, up to float rounding.

    Args:
        module: The attention module that runs.
        query: After RoPE.
        key: Likewise.
        value: The values.
        sight: Who sees whom.
        kept: Keys that stay.
        **kwargs: Of transformers' attention functions.
    """
    count = kept.sum(-1)
    width = max(1, int(count.max()))
    place = kept.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :width]  # kept first, in order
    real = torch.arange(width, device=place.device) < count[:, None]
    index = place[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[-1])
    few = key.gather(2, index), value.gather(2, index[..., :1].expand(-1, -1, -1, value.shape[-1]))
    seen = None if sight.open and bool(real.all()) else _seen(sight, place) & real[:, None]
    blind = None
    if seen is not None:
        blind = ~seen.any(-1)
        seen = torch.where(blind[..., None], True, seen).expand(-1, query.shape[2], -1)  # a softmax over something
        if bool(seen.all()):
            seen = None
    mask = None if seen is None else seen[:, None]
    out, _ = sdpa_attention_forward(module, query, *few, mask, **{**kwargs, "is_causal": False})
    if blind is not None and bool(blind.any()):
        out = _largest(out, query, key, value, sight, blind.expand(-1, query.shape[2]))
    return out


def _seen(sight: Sight, place: Tensor) -> Bool[Tensor, "batch query kept"]:
    """Which queries see the keys at some places of each row; one query where all look alike."""
    if sight.mask is None and sight.window is None and sight.whole:
        if sight.direction == "bidirectional":
            return torch.ones_like(place, dtype=torch.bool)[:, None]
        queries = torch.arange(sight.keys - sight.count, sight.keys, device=place.device)
        return place[:, None] <= queries[:, None]
    rows = sight.rows(slice(0, sight.count)).expand(len(place), -1, -1)
    return rows.gather(2, place[:, None].expand(-1, rows.shape[1], -1))


def _largest(out: Tensor, query: Tensor, key: Tensor, value: Tensor, sight: Sight, blind: Tensor) -> Tensor:
    """The output in which queries that see no kept key take the value of the key with their largest score."""
    out, groups = out.clone(), query.shape[1] // key.shape[1]
    rows = sight.rows(slice(0, sight.count)).expand(len(out), -1, -1)
    for row in blind.any(-1).nonzero()[:, 0].tolist():
        lost = blind[row].nonzero()[:, 0]
        keys, values = (each[row].repeat_interleave(groups, 0) for each in (key, value))
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = query[row][:, lost].to(wide) @ keys.to(wide).mT
        sees = rows[row][lost] if rows.shape[1] > 1 else rows[row]
        best = scores.masked_fill(~sees, float("-inf")).argmax(-1)  # [head, query]
        said = values.gather(1, best[..., None].expand(-1, -1, values.shape[-1])).transpose(0, 1)
        out[row, lost] = torch.where(sees.any(-1)[:, None, None], said, 0.0)
    return out
