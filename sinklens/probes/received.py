"""How much attention each key receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas, Where
from sinklens.probes.base import LayerProbe
from sinklens.sinks import Positions, received_attention


class ReceivedAttention(LayerProbe):
    """Received attention of every key: the column sum `C_j = sum_i A[i, j]` over valid queries.

    Reduces inside the hook; the pattern is not kept. Unit: attention, in [0, number of queries]; 0: nobody attends
    to the key; 1: the average over keys when all queries count (a head that spreads evenly gives every key 1 in a
    bidirectional model, H_S - H_j in a causal one: `sinks.uniform_null`). Source: arXiv 2510.15731, section 4.1
    (printed as a column mean; see `SinkRule`).

    Args:
        where: Layers, steps and queries to look at. Heads are always all recorded; keys as well.
        query_sets: Measure several query sets side by side ("all", "masked", "committed", "prompt", "response",
            "last"); the record then has the dim query_set, and `where.queries` is not used.
    """

    name = "received"
    unit = "attention (column sum)"
    points = ("attn.hook_pattern",)

    def __init__(self, where: Where | None = None, *, query_sets: Sequence[Positions] | None = None) -> None:
        super().__init__(where)
        for which in query_sets or ():
            Where(queries=which)  # an unknown name raises, and lists the known ones
        self.query_sets = tuple(query_sets) if query_sets else None
        self.dims = ("layer", "head", "query_set", "key") if self.query_sets else ("layer", "head", "key")

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        which = "the valid queries of each query set" if self.query_sets else f"{self.where.queries} valid queries"
        return f"sum over {which} of the attention that the key receives"

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        sets = self.query_sets or (self.where.queries,)
        sums = [received_attention(pattern, canvas.where(which)[:, None, rows].to(pattern.device)) for which in sets]
        return torch.stack(sums, 2) if self.query_sets else sums[0]

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        return tensors[0]

    def coords(self) -> dict[str, list[Any]]:
        """The layers that were measured, and the query sets."""
        layers: dict[str, list[Any]] = {**super().coords()}
        return layers | ({"query_set": list(self.query_sets)} if self.query_sets else {})

    def _arguments(self) -> list[str]:
        return [f"query_sets={list(self.query_sets)}"] if self.query_sets else []
