"""How much of each key's value reaches the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas
from sinklens.probes.base import LayerProbe, only, seen
from sinklens.sinks import received_attention


class Contribution(LayerProbe):
    """What each key writes into the residual stream through each head: `sum_i ||A[i, j] v_j W_O^h||`.

    That equals `C_j * ||v_j W_O^h||`: received attention times the length of what one unit of it writes. Values of
    grouped-query models serve several query heads. Unit: the model's own activations (L2 norm), in [0, inf).
    0: nobody attends to the key, or its value writes nothing (a sink that is a no-op); 1: one query's worth of a
    unit vector, which means nothing by itself: compare with other keys of the head. Source: the norm-based analysis
    of Kobayashi et al. (arXiv 2004.10102), per head and summed over queries.

    Args:
        where: Layers, steps and queries to look at. Heads and keys are always all recorded.
    """

    name = "contribution"
    dims = ("layer", "head", "key")
    unit = "L2 norm (sum over queries)"
    points = ("attn.v.hook_out", "attn.hook_pattern")

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"sum over {self.where.queries} valid queries of the L2 norm of what the key writes through the head"

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        return received_attention(pattern, canvas.where(self.where.queries)[:, None, rows].to(pattern.device))

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        value, received = tensors
        full = seen(canvas, len(received), received.shape[-1], received.device)
        out = model.blocks[layer].attn.W_O.detach()
        heads, groups = received.shape[1], received.shape[1] // value.shape[2]
        # Head by head: [batch, key, d_model] at a time, one output projection in all.
        written = [(value[:, :, head // groups].float() @ out[head].float()).norm(dim=-1) for head in range(heads)]
        return only(received * torch.stack(written, 1), full.valid)
