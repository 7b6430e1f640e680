"""Do masked and committed queries use the same sinks?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Scope, autoregressive
from sinklens.probes.base import Layer, ReceivedProbe, derived
from sinklens.sinks import Positions, SinkRule


@dataclass(frozen=True, repr=False)
class MaskedVsCommitted(ReceivedProbe):
    """Jaccard overlap between the sinks of masked queries and the sinks of committed queries, per head.

    A step has few queries of one kind and many of the other, so the received attention of each set is scaled to
    average 1 over keys (C_j * keys / queries); the rule then means the same for both. Unit: Jaccard, in [0, 1].
    0: they share no sink; 1: they have the same sinks. nan where a set is empty, or neither has a sink.
    Source: the separate sinks of masked and unmasked queries in arXiv 2510.15731, section 4.2 (figure 6a), which
    gives no number; the overlap and the scaling are sinklens's.

    Attributes:
        rule: When a key is a sink.
        where: Layers, heads and steps to look at.

    Raises:
        ScopeError: a rule that names queries of its own; in a run: an autoregressive baseline, which sees no masks.
    """

    rule: SinkRule = SinkRule()
    where: Scope = Scope()
    own = "masked_vs_committed"
    dims = ("layer", "head")
    unit = "Jaccard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule.queries != "all":
            raise ScopeError(
                f"queries={self.rule.queries!r} of the rule has no meaning for MaskedVsCommitted, which compares "
                "masked with committed queries; leave it out"
            )

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"overlap of the sinks of masked and of committed queries, scaled alike: {self.rule.words()}"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """As in LayerProbe.

        Raises:
            ScopeError: an autoregressive model.
        """
        if autoregressive(model):
            raise ScopeError(
                f"{self!r} compares masked with committed queries, and an autoregressive model has no masks"
            )
        return super().hooks(model, canvas, seen)

    def whose(self, model: Any) -> tuple[Positions, ...]:
        """Both kinds of queries."""
        return "masked", "committed"

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The overlaps."""
        (both_sets,) = tensors
        keys = layer.keys(self.rule.keys, both_sets)[:, None]
        size = layer.keys("all", both_sets).sum(-1, keepdim=True)
        sets, defined = [], torch.ones_like(size, dtype=torch.bool)
        for which, raw in zip(self.whose(layer.model), both_sets, strict=True):
            queries = layer.queries(which, raw)
            number = queries.sum(-1, keepdim=True)
            scale = size / number.clamp(min=1)
            visible = layer.sight.seen_by(queries) * scale
            sets.append(self.rule(raw * scale[:, None], keys, queries=size.float(), visible=visible[:, None]))
            defined = defined & (number > 0)
        both, either = (sets[0] & sets[1]).sum(-1), (sets[0] | sets[1]).sum(-1)
        return torch.where(defined & (either > 0), both / either.clamp(min=1), torch.nan)

    def attributes(self) -> dict[str, Any]:
        """Whose attention counted, each kind by itself, and which keys could be sinks."""
        return {"queries": "masked, committed", "eligible_keys": self.rule.keys}
