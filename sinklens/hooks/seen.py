"""What a hook on attention can know of the forward that it is in: who is real, and who sees whom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklens.hooks.attach import autoregressive
from sinklens.hooks.canvas import Canvas
from sinklens.sinks.sight import Sight


def sight_of(model: Any, hook: Any, tensor: Tensor, canvas: Canvas | None) -> Sight:
    """Who sees whom in the layer of a hook on scores or pattern.

    A HookedDLM's attention says it (`hook.ctx["sight"]`); for any other bridge it follows from the direction of the
    model and the canvas's real positions (all, outside the loop).
    """
    known = getattr(hook, "ctx", {}).get("sight")
    if known is not None:
        return known
    valid = torch.ones(1, tensor.shape[-1], dtype=torch.bool, device=tensor.device)
    if canvas is not None:
        valid = canvas.valid.to(tensor.device)
    return Sight(valid, "causal" if autoregressive(model) else "bidirectional")


def canvas_of(canvas: Canvas | None, sight: Sight, batch: int) -> Canvas:
    """The canvas; outside the denoising loop one where every real position is committed."""
    return canvas if canvas is not None else Canvas.plain(sight.real.expand(batch, -1))
