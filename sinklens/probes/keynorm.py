"""How long each key vector is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sinklens.hooks import Scope, rotated
from sinklens.probes.base import Layer, LayerProbe, norms


@dataclass(frozen=True, repr=False)
class KeyNorm(LayerProbe):
    """L2 norm of each key vector, `||k_j||`, per key head (grouped-query models have fewer than query heads).

    Read after RoPE, which keeps norms (`hook_rot_k`; `k.hook_out` in a model without RoPE). Unit: the model's own
    activations, in [0, inf). 0: a key that gives every query the score 0; 1: unit length, which means nothing by
    itself: compare keys within a layer and head. Low norms go with high attention in many models; those that
    normalise keys (Qwen3) leave little to see. Source: arXiv 2406.11430.

    Attributes:
        where: Layers and steps to look at. Key heads and keys are always all recorded.
    """

    where: Scope = Scope()
    own = "key_norm"
    dims = ("layer", "kv_head", "key")
    unit = "L2 norm"
    definition = "L2 norm of the key vector at this position, per key head"

    def points_of(self, model: Any) -> tuple[str, ...]:
        """Where the model has its keys."""
        return (rotated(model, "k"),)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The norms."""
        return norms(tensors[0], layer.keys("all", tensors[0]))
