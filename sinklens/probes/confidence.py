"""How sure the model is at every position."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import HookNeverFired
from sinklens.hooks import Canvas, Hook, Where
from sinklens.probes.base import SCORES, label, score_positions, seen, shifted

Certainty = Literal["probability", "entropy"]


class Confidence:
    """The model's certainty about the token at every position, masked or not.

    "probability": of the likeliest token, in [1/vocabulary, 1]; 1: certain, and 0 is not reached. "entropy": of the
    prediction, in nats, in [0, ln(vocabulary)]; 0: certain; 1: as open as an even choice among e = 2.7 tokens.
    The plain softmax of the model's logits over the whole vocabulary: no temperature, and no token is forbidden as
    it may be in the loop. Source: LLaDA's low-confidence remasking (arXiv 2502.09992) and Dream's "entropy"
    algorithm, there only at masked positions.

    Aligned with positions: the shift of the Dream family is undone as `HookedDLM` does it (a bare TransformerBridge
    has no family, so pass the HookedDLM to `fwd_hooks`); a row's first real token, which has nothing to its left,
    gets its own logits, padded or not. In an autoregressive baseline position i scores token i + 1.

    Args:
        what: "probability" or "entropy"; the variable is "prediction_probability" or "prediction_entropy".
        where: Steps to look at; `queries` are the positions, others are nan.

    Raises:
        ValueError: another `what`.
    """

    dims = ("key",)

    def __init__(self, what: Certainty = "probability", *, where: Where | None = None) -> None:
        if what not in get_args(Certainty):
            raise ValueError(f"what={what!r} is unknown; choose from {', '.join(get_args(Certainty))}")
        self.what: Certainty = what
        self.where = where or Where()
        self.name = f"prediction_{what}"
        self.unit = SCORES[what][0]
        self._values: Tensor | None = None

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"{SCORES[self.what][1]} at this position ({self.where.queries} positions)"

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """One hook, on `unembed.hook_out`."""
        self._values = None
        shift = shifted(model)

        def look(logits: Tensor, *, hook: Any) -> None:
            full = seen(canvas, logits.shape[0], logits.shape[1], logits.device)
            with torch.no_grad():
                self._values = score_positions(
                    logits.detach(), lambda rows: rows, self.what, full, self.where, shift, chunk=256
                )

        return [("unembed.hook_out", look)]

    def values(self) -> Float[Tensor, "batch key"]:
        """What the last forward measured."""
        if self._values is None:
            raise HookNeverFired(f"{self!r} has measured nothing; run a forward with its fwd_hooks first")
        return self._values

    def __repr__(self) -> str:
        return label(self, [] if self.what == "probability" else [repr(self.what)])
