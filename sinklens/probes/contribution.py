"""How much of each key's value reaches the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Scope
from sinklens.probes.base import PATTERN, Layer, ReceivedProbe, derived, only
from sinklens.sinks import Positions


@dataclass(frozen=True, repr=False)
class Contribution(ReceivedProbe):
    """What each key writes into the residual stream through each head: `sum_i ||A[i, j] v_j W_O^h||`.

    That equals `C_j * ||v_j W_O^h||`: received attention times the length of what one unit of it writes. Values of
    grouped-query models serve several query heads. Unit: the model's own activations (L2 norm), in [0, inf).
    0: nobody attends to the key, or its value writes nothing (a sink that is a no-op); 1: one query's worth of a
    unit vector, which means nothing by itself: compare with other keys of the head. Source: the norm-based analysis
    of Kobayashi et al. (arXiv 2004.10102), per head and summed over queries.

    Attributes:
        where: Layers, heads and steps to look at. Keys are always all recorded.
        queries: Whose attention counts, as in `ReceivedAttention`.
    """

    where: Scope = Scope()
    queries: Positions = "all"
    own = "contribution"
    dims = ("layer", "head", "key")
    unit = "L2 norm (sum over queries)"
    points = ("attn.v.hook_out", PATTERN)

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"sum over {self.queries} valid queries of the L2 norm of what the key writes through the head"

    def whose(self, model: Any) -> tuple[Positions, ...]:
        """The queries whose attention counts."""
        return (self.queries,)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The norms."""
        value, received = tensors[0], tensors[1][0]
        out = layer.model.blocks[layer.index].attn.W_O.detach()
        heads, groups = received.shape[1], received.shape[1] // value.shape[2]
        # Head by head: [batch, key, d_model] at a time, one output projection in all.
        written = [(value[:, :, head // groups].float() @ out[head].float()).norm(dim=-1) for head in range(heads)]
        return only(received * torch.stack(written, 1), layer.keys("all", received))
