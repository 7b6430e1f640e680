"""How long each value vector is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinklens.hooks import Canvas
from sinklens.probes.base import LayerProbe, norms


class ValueNorm(LayerProbe):
    """L2 norm of each value vector, `||v_j||`, per key head (grouped-query models have fewer than query heads).

    Unit: the model's own activations, in [0, inf). 0: attending to the key adds nothing; 1: unit length, which
    means nothing by itself: compare keys within a layer and head. Sinks with small values are drains
    (arXiv 2410.13835). Source: arXiv 2601.19657, equation 15; its equation 16 is the mean over heads.

    Args:
        where: Layers and steps to look at. Heads and keys are always all recorded.
    """

    name = "value_norm"
    dims = ("layer", "kv_head", "key")
    unit = "L2 norm"
    definition = "L2 norm of the value vector at this position, per key head"
    points = ("attn.v.hook_out",)

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        return norms(tensors[0], canvas)
