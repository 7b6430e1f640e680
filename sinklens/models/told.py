"""What a forward was told of its rows: the canvas, also where TransformerLens runs the model and nobody gave one."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.hooks import Canvas
from sinklens.models.driver import FORWARD
from sinklens.sinks import Positions


def known_canvas(canvas: Canvas | None) -> Canvas | None:
    """The canvas; outside the denoising loop what a HookedDLM was told of padding, if anything."""
    valid = FORWARD.get().valid if canvas is None else None
    return canvas if valid is None else Canvas.plain(valid)


def positions(
    canvas: Canvas | None, which: Positions, stream: Float[Tensor, "batch pos d_model"]
) -> Bool[Tensor, "batch pos"]:
    """Positions of one kind in rows that are still decoded, on the stream's device; all if nobody said more."""
    known = known_canvas(canvas)
    if known is None:
        known = Canvas.plain(stream.new_ones(stream.shape[:2]).bool())
    return (known.positions(which) & known.rows[:, None]).to(stream.device)
