"""How much attention each key receives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import BrokenPattern
from sinklens.hooks import Canvas, Hook, Positions, Where, chosen, plain_canvas
from sinklens.sinks import received_attention


class ReceivedAttention:
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

    def __init__(self, where: Where | None = None, *, query_sets: Sequence[Positions] | None = None) -> None:
        self.where = where or Where()
        for which in query_sets or ():
            Where(queries=which)  # an unknown name raises, and lists the known ones
        self.query_sets = tuple(query_sets) if query_sets else None
        self._by_layer: dict[int, Tensor] = {}

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims after prompt and step."""
        return ("layer", "head", "query_set", "key") if self.query_sets else ("layer", "head", "key")

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        which = "the valid queries of each query set" if self.query_sets else f"{self.where.queries} valid queries"
        return f"sum over {which} of the attention that the key receives"

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on `blocks.{layer}.attn.hook_pattern` of the layers in scope."""
        self._by_layer = {}
        layers = chosen(self.where.layers, int(model.cfg.n_layers), "layer")
        return [(f"blocks.{layer}.attn.hook_pattern", partial(self._reduce, layer, canvas)) for layer in layers]

    def _reduce(self, layer: int, canvas: Canvas | None, pattern: Tensor, *, hook: Any) -> None:
        seen = canvas or plain_canvas((pattern.shape[0], pattern.shape[-1]), pattern.device)
        masks = [seen.where(which)[:, None].to(pattern.device) for which in self.query_sets or (self.where.queries,)]
        sums = [received_attention(pattern, queries) for queries in masks]
        if bool(sums[0].isnan().any()):  # a record's nan means "no such key", so it must not come from a number
            raise BrokenPattern(
                f"the pattern of layer {layer} at step {seen.step} holds nan; an edit that leaves a row without a key, "
                "or a dtype that overflows, makes one"
            )
        self._by_layer[layer] = torch.stack(sums, 2) if self.query_sets else sums[0]

    def coords(self) -> dict[str, list[Any]]:
        """The layers that were measured, and the query sets."""
        layers: dict[str, list[Any]] = {"layer": sorted(self._by_layer)}
        return layers | ({"query_set": list(self.query_sets)} if self.query_sets else {})

    def values(self) -> Float[Tensor, "batch layer head *query_set key"]:
        """What the last forward measured."""
        device = next(iter(self._by_layer.values())).device
        return torch.stack([self._by_layer[layer].to(device) for layer in sorted(self._by_layer)], 1)

    def __repr__(self) -> str:
        parts = [repr(self.where)] if self.where != Where() else []
        parts += [f"query_sets={list(self.query_sets)}"] if self.query_sets else []
        return f"ReceivedAttention({', '.join(parts)})"
