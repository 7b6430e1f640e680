"""How sure the model is at every position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import HookNeverFired
from sinklens.hooks import Canvas, Hook, Scope
from sinklens.models.told import known_canvas
from sinklens.probes.base import Measurement, derived
from sinklens.probes.scores import SCORES, score_positions
from sinklens.sinks import Positions

Certainty = Literal["probability", "entropy"]


@dataclass(frozen=True, repr=False)
class Confidence(Measurement):
    """The model's certainty about the token at every position, masked or not.

    "probability": of the likeliest token, in [1/vocabulary, 1]; 1: certain, and 0 is not reached. "entropy": of the
    prediction, in nats, in [0, ln(vocabulary)]; 0: certain; 1: as open as an even choice among e = 2.7 tokens.
    The plain softmax of the model's logits over the whole vocabulary: no temperature, and no token is forbidden as
    it may be in the loop. Source: LLaDA's low-confidence remasking (arXiv 2502.09992) and Dream's "entropy"
    algorithm, there only at masked positions.

    Aligned with positions, as the logits of a HookedDLM are: for Dream a row's first real token, which has nothing to
    its left, gets its own logits, padded or not. In an autoregressive baseline position i scores token i + 1.

    Attributes:
        what: "probability" or "entropy"; the variable is "prediction_probability" or "prediction_entropy".
        where: Steps to look at.
        positions: Which positions to score; others are nan.

    Raises:
        ValueError: another `what`, or an unknown set of positions.
    """

    what: Certainty = "probability"
    where: Scope = Scope()
    positions: Positions = "all"
    dims = ("key",)

    @derived
    def own(self) -> str:
        """The variable of this score."""
        return f"prediction_{self.what}"

    @derived
    def unit(self) -> str:
        """The unit of this score."""
        return SCORES[self.what][0]

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"{SCORES[self.what][1]} at this position ({self.positions} positions)"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """One hook, on `unembed.hook_out`."""

        def keep(logits: Tensor, *, hook: Any) -> None:
            with torch.no_grad():
                plain = Canvas.plain(torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device))
                wanted = (known_canvas(canvas) or plain).positions(self.positions)
                seen["values"] = score_positions(logits.detach(), lambda some: some, self.what, wanted)

        return [("unembed.hook_out", keep)]

    def values(self, seen: dict[Any, Any]) -> Float[Tensor, "batch key"]:
        """What a forward showed."""
        if "values" not in seen:
            raise HookNeverFired(f"{self!r} has measured nothing; run a forward with its hooks first")
        return seen["values"]
