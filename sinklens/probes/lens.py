"""What each layer would predict: the logit lens."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from sinklens.hooks import Scope
from sinklens.models.adapters import align, read
from sinklens.probes.base import Layer, LayerProbe, derived
from sinklens.probes.scores import CHUNK, SCORES, Score, score_positions
from sinklens.sinks import Positions
from sinklens.values.kinds import Count


@dataclass(frozen=True, repr=False)
class LogitLens(LayerProbe):
    """The logit lens: the model's final norm and unembedding applied to the residual stream after each layer.

    "token": id of the likeliest token. "probability": its probability, in [1/vocabulary, 1]; 1: certain, and 0 is not
    reached. "entropy": of the prediction, in nats, in [0, ln(vocabulary)]; 0: certain. At the last layer it is the
    model's own output (unless an edit sits on the final norm or the unembedding: the lens calls the original modules
    that the bridge wraps, `ln_final.original_component` and `unembed.original_component`, so no hook point fires).
    Source: nostalgebraist's "interpreting GPT: the logit lens" (2020); asked for by arXiv 2510.15731, section 7.

    Aligned with positions as the logits are: for Dream the prediction for position i is read at i - 1. At most `chunk`
    positions' logits exist at once.

    Attributes:
        what: "token", "probability" or "entropy"; the variable is "lens_token" and so on.
        where: Layers and steps to look at.
        positions: Which positions to score; others are nan and cost nothing.
        chunk: Positions whose logits are held at once: chunk x vocabulary floats.

    Raises:
        ValueError: another `what`, an unknown set of positions, or a chunk below 1.
    """

    what: Score = "token"
    where: Scope = Scope()
    _: KW_ONLY
    positions: Positions = "all"
    chunk: Count = CHUNK
    dims = ("layer", "key")
    points = ("hook_out",)

    @derived
    def own(self) -> str:
        """The variable of this score."""
        return f"lens_{self.what}"

    @derived
    def unit(self) -> str:
        """The unit of this score."""
        return SCORES[self.what][0]

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"{SCORES[self.what][1]} read off the residual stream after the layer ({self.positions} positions)"

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The scores."""
        (stream,) = tensors
        own = getattr(getattr(layer.model, "adapter", None), "read", read)

        def to_logits(some: Tensor) -> Tensor:
            return own(layer.model, some)

        if getattr(getattr(layer.model, "family", None), "shift", False):
            stream = align(stream, layer.canvas.valid.to(stream.device))
        return score_positions(stream, to_logits, self.what, layer.canvas.positions(self.positions), self.chunk)
