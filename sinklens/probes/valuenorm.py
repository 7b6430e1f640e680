"""How long each value vector is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinklens.hooks import Scope
from sinklens.probes.base import Layer, LayerProbe, norms


@dataclass(frozen=True, repr=False)
class ValueNorm(LayerProbe):
    """L2 norm of each value vector, `||v_j||`, per key head (grouped-query models have fewer than query heads).

    Unit: the model's own activations, in [0, inf). 0: attending to the key adds nothing; 1: unit length, which
    means nothing by itself: compare keys within a layer and head. Sinks with small values are drains
    (arXiv 2410.13835). Source: arXiv 2601.19657, equation 15; its equation 16 is the mean over heads.

    Attributes:
        where: Layers and steps to look at. Key heads and keys are always all recorded.
    """

    where: Scope = Scope()
    own = "value_norm"
    dims = ("layer", "kv_head", "key")
    unit = "L2 norm"
    definition = "L2 norm of the value vector at this position, per key head"
    points = ("attn.v.hook_out",)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The norms."""
        return norms(tensors[0], layer.keys("all", tensors[0]))
