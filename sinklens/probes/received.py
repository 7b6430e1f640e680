"""How much attention each key receives."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Where, chosen, plain_canvas
from sinklens.sinks import received_attention


class ReceivedAttention:
    """Received attention of every key: the column sum `C_j = sum_i A[i, j]` over valid queries.

    Reduces inside the hook; the pattern is not kept. Unit: attention, in [0, number of queries]; 0: nobody attends
    to the key; 1: the average over keys when all queries count (a head that spreads evenly gives every key 1 in a
    bidirectional model, H_S - H_j in a causal one: `sinks.uniform_null`). Source: arXiv 2510.15731, section 4.1
    (printed as a column mean; see `SinkRule`).

    Args:
        where: Layers, steps and queries to look at. Heads are always all recorded; keys as well.
    """

    name = "received"
    dims = ("layer", "head", "key")
    unit = "attention (column sum)"

    def __init__(self, where: Where | None = None) -> None:
        self.where = where or Where()
        self._by_layer: dict[int, Tensor] = {}

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"sum over {self.where.queries} valid queries of the attention that the key receives"

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on `blocks.{layer}.attn.hook_pattern` of the layers in scope."""
        self._by_layer = {}
        layers = chosen(self.where.layers, int(model.cfg.n_layers), "layer")
        return [(f"blocks.{layer}.attn.hook_pattern", partial(self._reduce, layer, canvas)) for layer in layers]

    def _reduce(self, layer: int, canvas: Canvas | None, pattern: Tensor, *, hook: Any) -> None:
        seen = canvas or plain_canvas((pattern.shape[0], pattern.shape[-1]), pattern.device)
        queries = seen.where(self.where.queries)[:, None].to(pattern.device)
        self._by_layer[layer] = received_attention(pattern, queries)

    def coords(self) -> dict[str, list[int]]:
        """The layers that were measured."""
        return {"layer": sorted(self._by_layer)}

    def values(self) -> Float[Tensor, "batch layer head key"]:
        """What the last forward measured."""
        device = next(iter(self._by_layer.values())).device
        return torch.stack([self._by_layer[layer].to(device) for layer in sorted(self._by_layer)], 1)

    def __repr__(self) -> str:
        return f"ReceivedAttention({'' if self.where == Where() else repr(self.where)})"
