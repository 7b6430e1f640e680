"""How large the residual stream is after each layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinklens.hooks import Canvas, Where
from sinklens.probes.base import LayerProbe, only, seen


class ResidualNorm(LayerProbe):
    """L2 norm of the residual stream after each layer, `||h_j||`.

    Unit: the model's own activations, in [0, inf). 0: nothing at the position; 1: unit length, which means nothing
    by itself: compare positions within a layer. Sinks of autoregressive models have much larger residuals than
    other tokens ("residual-state peaks"). Source: arXiv 2410.13835.

    Args:
        where: Layers and steps to look at. Layer i is the stream after block i.
    """

    name = "residual_norm"
    dims = ("layer", "key")
    unit = "L2 norm"
    definition = "L2 norm of the residual stream at this position after the layer"
    points = ("hook_out",)

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (stream,) = tensors
        valid = seen(canvas, stream.shape[0], stream.shape[1], stream.device).valid
        return only(stream.float().norm(dim=-1), valid)


class MassiveActivations(LayerProbe):
    """Number of massive activations at each position after each layer.

    An activation x is massive iff `|x| > above` and `|x| >= ratio * median |h|`, the median over all real positions
    and dimensions of the row's hidden state after that layer. Unit: hidden dimensions, in [0, d_model]. 0: none;
    1: one dimension, the usual case at a sink of an autoregressive model. Source: arXiv 2402.17762 (there
    "about" 1000 times); the median as in its released code (main_llm.py: of all positions and dimensions).

    Args:
        where: Layers and steps to look at. Layer i is the stream after block i.
        above: Smallest magnitude, exclusive.
        ratio: Smallest multiple of the median magnitude, inclusive.
    """

    name = "massive_activations"
    dims = ("layer", "key")
    unit = "hidden dimensions"
    points = ("hook_out",)

    def __init__(self, where: Where | None = None, *, above: float = 100.0, ratio: float = 1000.0) -> None:
        super().__init__(where)
        self.above, self.ratio = above, ratio

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"hidden dimensions with |x| > {self.above:g} and >= {self.ratio:g} times the row's median |x|"

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        size = tensors[0].float().abs()
        valid = seen(canvas, size.shape[0], size.shape[1], size.device).valid.to(size.device)
        median = size.masked_fill(~valid[..., None], float("nan")).flatten(1).nanmedian(-1).values[:, None, None]
        massive = (size > self.above) & (size >= self.ratio * median)
        return only(massive.sum(-1).float(), valid)

    def _arguments(self) -> list[str]:
        default = {"above": 100.0, "ratio": 1000.0}
        return [f"{name}={getattr(self, name):g}" for name, value in default.items() if getattr(self, name) != value]
