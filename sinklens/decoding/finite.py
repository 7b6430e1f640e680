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
    """Raise for logits of a real position of an active row that are nan or infinite; -inf rules a token out.

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
    if not bool(wrong.any()):
        return
    row, position = wrong.nonzero()[0].tolist()
    raise NotFinite(
        f"step {canvas.step}: the logits of row {row}, position {position}, are not finite (nan or infinity), since "
        f"{_where(dlm, canvas, wanted, hooks)}. A weight, an edit or the dtype makes them so; nothing that is read off "
        "this forward would be a number"
    )


def _where(dlm: HookedDLM, canvas: Canvas, wanted: Tensor, hooks: Sequence[Hook]) -> str:
    """The first place of the forward that gives no numbers, found by running it again."""
    broken: list[str] = []

    def look(tensor: Tensor, *, hook: Any) -> None:
        if not bool(tensor[wanted].isfinite().all()):
            broken.append(hook.name)

    names = ["embed.hook_out", *(f"blocks.{layer}.hook_out" for layer in range(dlm.n_layers))]
    with dlm.hooks(fwd_hooks=[*hooks, *((name, look) for name in names)]), torch.no_grad():
        dlm(canvas.tokens, attention_mask=canvas.valid)
    first = next((name for name in names if name in broken), None)
    if first is None:
        return "the unembedding"
    return "the embedding" if first == names[0] else f"layer {first.split('.')[1]}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
