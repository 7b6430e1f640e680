"""How much attention each key receives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from sinklens.hooks import Scope
from sinklens.probes.base import Layer, ReceivedProbe, derived
from sinklens.sinks import Positions


@dataclass(frozen=True, repr=False)
class ReceivedAttention(ReceivedProbe):
    """Received attention of every key: the column sum `C_j = sum_i A[i, j]` over valid queries.

    Reduces inside the hook; the pattern is not kept. Unit: attention, in [0, number of queries]; 0: nobody attends
    to the key; 1: the average over keys when all queries count (a head that spreads evenly gives every key 1 in a
    bidirectional model, H_S - H_j in a causal one: `sinks.uniform_null`). Source: arXiv 2510.15731, section 4.1
    (printed as a column mean; see `SinkRule`).

    Attributes:
        where: Layers, heads and steps to look at. Keys are always all recorded.
        queries: Whose attention counts: "all", "masked", "committed", "prompt", "response" or "last", recorded as the
            attribute "queries". Or several of them, measured side by side: the record then has the dim "queries".

    Raises:
        ValueError: an unknown set, or one that is named twice.
    """

    where: Scope = Scope()
    queries: Positions | Sequence[Positions] = "all"
    own = "received"
    unit = "attention (column sum)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise ValueError(f"queries={self.queries!r} must name at least one set, and each set once")

    @property
    def sets(self) -> tuple[Positions, ...]:
        """The sets of queries."""
        return (self.queries,) if isinstance(self.queries, str) else tuple(self.queries)

    @derived
    def dims(self) -> tuple[str, ...]:
        """With a dim for the sets, if there are several."""
        return ("layer", "head", "key") if isinstance(self.queries, str) else ("layer", "head", "queries", "key")

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        which = f"{self.queries} valid queries" if isinstance(self.queries, str) else "the valid queries of each set"
        return f"sum over {which} of the attention that the key receives"

    def whose(self, model: Any) -> tuple[Positions, ...]:
        """The sets of queries whose attention counts."""
        return self.sets

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The sums, the sets before the keys."""
        (received,) = tensors
        return received[0] if isinstance(self.queries, str) else rearrange(received, "s batch h key -> batch h s key")

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        """What was measured, and the sets of queries."""
        coords = super().coords(seen)
        return coords if isinstance(self.queries, str) else coords | {"queries": list(self.queries)}
