"""Do masked and committed queries use the same sinks?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas, Where
from sinklens.probes.base import LayerProbe, seen
from sinklens.sinks import SinkRule, received_attention


class MaskedVsCommitted(LayerProbe):
    """Jaccard overlap between the sinks of masked queries and the sinks of committed queries, per head.

    A step has few queries of one kind and many of the other, so the received attention of each set is scaled to
    average 1 over keys (C_j * keys / queries); the rule then means the same for both. Unit: Jaccard, in [0, 1].
    0: they share no sink; 1: they have the same sinks. nan where a set is empty, or neither has a sink.
    Source: the separate sinks of masked and unmasked queries in arXiv 2510.15731, section 4.2 (figure 6a), which
    gives no number; the overlap and the scaling are sinklens's.

    Args:
        rule: When a key is a sink (its own `queries` are not used).
        where: Layers and steps to look at. Heads are always all recorded.
    """

    name = "masked_vs_committed"
    dims = ("layer", "head")
    unit = "Jaccard"
    points = ("attn.hook_pattern",)

    def __init__(self, rule: SinkRule | None = None, where: Where | None = None) -> None:
        super().__init__(where)
        self.rule = rule or SinkRule()

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"overlap of the sinks of masked and of committed queries, scaled alike: {self.rule.words()}"

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        queries = (canvas.where(which)[:, None, rows].to(pattern.device) for which in ("masked", "committed"))
        return torch.stack([received_attention(pattern, each) for each in queries])

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (both_sets,) = tensors
        full = seen(canvas, both_sets.shape[1], both_sets.shape[-1], both_sets.device)
        keys = full.where(self.rule.keys)[:, None].to(both_sets.device)
        size = full.valid.sum(-1)[:, None, None].to(both_sets.device)
        sets, there = [], []
        for which, raw in zip(("masked", "committed"), both_sets, strict=True):
            number = full.where(which)[:, None].to(raw.device).sum(-1, keepdim=True)
            received = raw * size / number.clamp(min=1)
            sets.append(self.rule(received, keys, queries=size[..., 0]))
            there.append(number[..., 0] > 0)
        both, either = (sets[0] & sets[1]).sum(-1), (sets[0] | sets[1]).sum(-1)
        defined = (either > 0) & there[0] & there[1]
        return torch.where(defined, both / either.clamp(min=1), torch.nan)

    def _arguments(self) -> list[str]:
        return [] if self.rule == SinkRule() else [repr(self.rule)]
