"""How large the residual stream is after each layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinklens.hooks import Scope
from sinklens.probes.base import Layer, LayerProbe, derived, only
from sinklens.values.kinds import AtLeastZero


@dataclass(frozen=True, repr=False)
class ResidualNorm(LayerProbe):
    """L2 norm of the residual stream after each layer, `||h_j||`.

    Unit: the model's own activations, in [0, inf). 0: nothing at the position; 1: unit length, which means nothing
    by itself: compare positions within a layer. Sinks of autoregressive models have much larger residuals than
    other tokens ("residual-state peaks"). Source: arXiv 2410.13835.

    Attributes:
        where: Layers and steps to look at. Layer i is the stream after block i.
    """

    where: Scope = Scope()
    own = "residual_norm"
    dims = ("layer", "key")
    unit = "L2 norm"
    definition = "L2 norm of the residual stream at this position after the layer"
    points = ("hook_out",)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The norms."""
        (stream,) = tensors
        return only(stream.float().norm(dim=-1), layer.keys("all", stream))


@dataclass(frozen=True, repr=False)
class MassiveActivations(LayerProbe):
    """Number of massive activations at each position after each layer.

    An activation x is massive iff `|x| > above` and `|x| >= ratio * median |h|`, the median over all real positions
    and dimensions of the row's hidden state after that layer. Unit: hidden dimensions, in [0, d_model]. 0: none;
    1: one dimension, the usual case at a sink of an autoregressive model. Source: arXiv 2402.17762 (there
    "about" 1000 times); the median as in its released code (main_llm.py: of all positions and dimensions).

    Outside the denoising loop a HookedDLM says which positions are padding. Of another bridge all count as real: give
    `hooks` a canvas for a padded batch, else padding takes part in the median.

    Attributes:
        where: Layers and steps to look at. Layer i is the stream after block i.
        above: Smallest magnitude, exclusive.
        ratio: Smallest multiple of the median magnitude, inclusive.
    """

    where: Scope = Scope()
    above: AtLeastZero = 100.0
    ratio: AtLeastZero = 1000.0
    own = "massive_activations"
    dims = ("layer", "key")
    unit = "hidden dimensions"
    points = ("hook_out",)

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"hidden dimensions with |x| > {self.above:g} and >= {self.ratio:g} times the row's median |x|"

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The counts."""
        size = tensors[0].float().abs()
        valid = layer.keys("all", size)
        median = size.masked_fill(~valid[..., None], float("nan")).flatten(1).nanmedian(-1).values[:, None, None]
        massive = (size > self.above) & (size >= self.ratio * median)
        return only(massive.sum(-1).float(), valid)
