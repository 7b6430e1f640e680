"""Which keys are sinks, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sinklens.hooks import Scope, usual_queries
from sinklens.probes.base import Layer, ReceivedProbe, derived, only
from sinklens.sinks import Positions, SinkRule


@dataclass(frozen=True, repr=False)
class SinkMask(ReceivedProbe):
    """1 where a key is a sink by a rule, 0 where it is none; the rule runs inside the hook.

    The same as `metrics.sinks` on a record of `ReceivedAttention`, without keeping the attention. Unit: yes/no (1/0);
    the mean over keys is the share of sinks. Source: arXiv 2510.15731, equation 3; see `SinkRule`.

    Attributes:
        rule: When a key is a sink; its `queries` and `keys` say whose attention counts and who can be one.
        where: Layers, heads and steps to look at. A rule with per="mean" averages all heads of a layer.
    """

    rule: SinkRule = SinkRule()
    where: Scope = Scope()
    own = "sink"
    dims = ("layer", "head", "key")
    unit = "1/0"

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"1 where the key is a sink: {self.rule.words()}"

    def whose(self, model: Any) -> tuple[Positions, ...]:
        """The rule's queries.

        Raises:
            ValueError: a rule that can never fire by them.
        """
        queries = self.rule.counting(usual_queries(model))
        self.rule.must_fire(queries)
        return (queries,)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The flags."""
        received = tensors[0][0]
        (which,) = self.whose(layer.model)
        queries, keys = layer.queries(which, received), layer.keys(self.rule.keys, received)
        visible = layer.sight.seen_by(queries)[:, None]
        flags = self.rule(received, keys[:, None], queries.sum(-1, keepdim=True).float(), visible)
        return only(flags.float(), layer.keys("all", received))

    def attributes(self) -> dict[str, Any]:
        """Whose attention counted, and which keys could be sinks."""
        return {"queries": self.rule.queries, "eligible_keys": self.rule.keys}
