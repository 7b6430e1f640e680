"""What each layer would predict: the logit lens."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from sinklens.hooks import Canvas, Where
from sinklens.probes.base import SCORES, LayerProbe, Score, score_positions, seen, shifted


class LogitLens(LayerProbe):
    """The logit lens: the model's final norm and unembedding applied to the residual stream after each layer.

    "token": id of the likeliest token. "probability": its probability, in [1/vocabulary, 1]; 1: certain, and 0 is not
    reached. "entropy": of the prediction, in nats, in [0, ln(vocabulary)]; 0: certain. At the last layer it is the
    model's own output (unless an edit sits on the final norm or the unembedding: the lens calls the original modules
    that the bridge wraps, `ln_final.original_component` and `unembed.original_component`, so no hook point fires).
    Source: nostalgebraist's "interpreting GPT: the logit lens" (2020); asked for by arXiv 2510.15731, section 7.

    Aligned with positions as `Confidence` is: for Dream the prediction for position i is read at i - 1 (pass the
    HookedDLM, not its bare bridge, to `fwd_hooks`). At most `chunk` positions' logits exist at once.

    Args:
        what: "token", "probability" or "entropy"; the variable is "lens_token" and so on.
        where: Layers and steps to look at; `queries` are the positions, others are nan and cost nothing.
        chunk: Positions whose logits are held at once: chunk x vocabulary floats.

    Raises:
        ValueError: another `what`, or a chunk below 1.
    """

    dims = ("layer", "key")
    points = ("hook_out",)

    def __init__(self, what: Score = "token", *, where: Where | None = None, chunk: int = 256) -> None:
        super().__init__(where)
        if what not in get_args(Score):
            raise ValueError(f"what={what!r} is unknown; choose from {', '.join(get_args(Score))}")
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        self.what: Score = what
        self.chunk = chunk
        self.name = f"lens_{what}"
        self.unit = SCORES[what][0]

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"{SCORES[self.what][1]} read off the residual stream after the layer ({self.where.queries} positions)"

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (stream,) = tensors
        full = seen(canvas, stream.shape[0], stream.shape[1], stream.device)
        norm, unembed = model.ln_final.original_component, model.unembed.original_component

        def to_logits(rows: Tensor) -> Tensor:
            return unembed(norm(rows.to(unembed.weight.device)))

        return score_positions(stream, to_logits, self.what, full, self.where, shifted(model), self.chunk)

    def _arguments(self) -> list[str]:
        what = [] if self.what == "token" else [repr(self.what)]
        return what + ([] if self.chunk == 256 else [f"chunk={self.chunk}"])
