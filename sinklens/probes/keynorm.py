"""How long each key vector is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinklens.hooks import Canvas, rotated
from sinklens.probes.base import LayerProbe, norms


class KeyNorm(LayerProbe):
    """L2 norm of each key vector, `||k_j||`, per key head (grouped-query models have fewer than query heads).

    Read after RoPE, which keeps norms (`hook_rot_k`; `k.hook_out` in a model without RoPE). Unit: the model's own
    activations, in [0, inf). 0: a key that gives every query the score 0; 1: unit length, which means nothing by
    itself: compare keys within a layer and head. Low norms go with high attention in many models; those that
    normalise keys (Qwen3) leave little to see. Source: arXiv 2406.11430.

    Args:
        where: Layers and steps to look at. Heads and keys are always all recorded.
    """

    name = "key_norm"
    dims = ("layer", "kv_head", "key")
    unit = "L2 norm"
    definition = "L2 norm of the key vector at this position, per key head"

    def _points(self, model: Any) -> tuple[str, ...]:
        return (rotated(model, "k"),)

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        return norms(tensors[0], canvas)
