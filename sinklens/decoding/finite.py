"""Forwards whose logits are no numbers stop the run, and say where they ceased to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import NotFinite
from sinklens.hooks import Canvas, Hook
from sinklens.models.hooked_dlm import HookedDLM


def check_finite(
    dlm: HookedDLM, canvas: Canvas, logits: Float[Tensor, "batch pos vocab"], hooks: Sequence[Hook] = ()
) -> None:
    """Raise for logits of a real position of an active row that are no numbers; -inf rules a token out.

    Nan, infinity, or logits that are all 0 because the residual stream is so large that the last normalisation, which
    squares it, overflows: the model then says nothing, in numbers that look like any others.

    Args:
        dlm: The model.
        canvas: What the forward saw.
        logits: What it gave.
        hooks: The hooks that it ran under, with which it is repeated to find the layer.

    Raises:
        NotFinite: naming the step, the first row and position, and the first layer that gave something else than
            numbers.
    """
    wanted = canvas.valid if canvas.active is None else canvas.valid & canvas.active[:, None]
    # A sum over the vocabulary is finite where all of it is; in float32, which float16 cannot make overflow.
    total = logits.sum(-1, dtype=_wide(logits.dtype))
    wrong = wanted & (total.isnan() | total.isposinf())
    if bool(total.isneginf().any()):  # tokens that are ruled out, unless they all are
        wrong |= wanted & logits.amax(-1).isneginf()
    blank = wanted & (total == 0)
    if bool(blank.any()):
        blank &= (logits == 0).all(-1)
    suspect = wrong | blank
    if not bool(suspect.any()):
        return
    where = _where(dlm, canvas, suspect, hooks)
    if where is None and not bool(wrong.any()):  # a model may really say nothing: planted ones do
        return
    row, position = suspect.nonzero()[0].tolist()
    raise NotFinite(
        f"step {canvas.step}: the logits of row {row}, position {position}, are no numbers (nan, infinity, or lost "
        f"in an overflow), since {where or 'the unembedding'}. A weight, an edit or the dtype makes them so; nothing "
        "that is read off this forward would mean anything"
    )


def _where(dlm: HookedDLM, canvas: Canvas, wanted: Tensor, hooks: Sequence[Hook]) -> str | None:
    """The first place of the forward that gives no numbers, or too large ones, found by running it again."""
    broken: list[str] = []

    def look(tensor: Tensor, *, hook: Any) -> None:
        if not bool(tensor[wanted].to(_wide(tensor.dtype)).square().mean(-1).isfinite().all()):
            broken.append(hook.name)

    names = ["embed.hook_out", *(f"blocks.{layer}.hook_out" for layer in range(dlm.n_layers))]
    with dlm.hooks(fwd_hooks=[*hooks, *((name, look) for name in names)]), torch.no_grad():
        dlm(canvas.tokens, attention_mask=canvas.valid)
    first = next((name for name in names if name in broken), None)
    if first is None:
        return None
    return "the embedding" if first == names[0] else f"layer {first.split('.')[1]}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
