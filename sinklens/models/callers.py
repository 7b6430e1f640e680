"""Tools of TransformerLens that assume another kind of model and ask nobody: known by the module that calls."""

from __future__ import annotations

import sys

NEXT_TOKEN = (  # they read row i of the logits as a prediction of token i + 1
    "transformer_lens.evals",
    "transformer_lens.lit.model",
    "transformer_lens.utilities.exploratory_utils",
)
LOOKS_BACK = ("transformer_lens.head_detector",)  # its patterns are lower triangles
UNEMBEDDING = ("transformer_lens.SVDInterpreter",)  # it reads directions of the residual stream by the unembedding
_BETWEEN = ("torch", "sinklens", "jaxtyping", "beartype")


def called_by(modules: tuple[str, ...]) -> str | None:
    """The one of these modules that called into sinklens last, if it was one of them."""
    frame = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in _BETWEEN:
            return name if name in modules else None
        frame = frame.f_back
    return None
