"""Forwards whose logits, or what is normalised on the way to them, are no numbers stop the run, and say where."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sinklens.errors import NotFinite
from sinklens.hooks import Canvas, Hook
from sinklens.models import norms
from sinklens.models.hooked_dlm import HookedDLM


def finite(
    dlm: HookedDLM, canvas: Canvas, forward: Callable[[], Tensor], hooks: Sequence[Hook] = (), *, since: int = 0
) -> Tensor:
    """The logits that a forward gives, which are numbers; -inf rules a token out.

    They are none where a real position of an active row has nan or infinity, in its logits or in the input of any
    normalisation, or there something so large that its squares overflow: the normalisation then gives 0, and the model
    says in numbers that look like any others what it would say of nothing.

    Args:
        dlm: The model.
        canvas: What the forward sees.
        forward: Gives logits [batch, pos, vocab], or those of the last position alone.
        hooks: The hooks that it runs under, with which it is repeated to find the layer.
        since: The forward is of the positions from this one on; those before it are in a cache.

    Raises:
        NotFinite: naming the step, the first row and position, and the first layer that gave something else than
            numbers.
    """
    lengths: list[tuple[nn.Module, Tensor]] = []
    logits = norms.watching(lambda norm, tensor: lengths.append((norm, norms.length(norm, tensor))), forward)
    wanted = (canvas.valid if canvas.active is None else canvas.valid & canvas.active[:, None])[:, since:]
    # A sum over the vocabulary is finite where all of it is; in float32, which float16 cannot make overflow.
    total = logits.sum(-1, dtype=_wide(logits.dtype))
    wrong = total.isnan() | total.isposinf()
    if bool(total.isneginf().any()):  # tokens that are ruled out, unless they all are
        wrong |= logits.amax(-1).isneginf()
    lost = [_lost(length, wanted) for _, length in lengths]
    wrong = torch.cat([torch.zeros_like(wanted)[:, wrong.shape[1] :], wrong], 1)  # the last positions are there
    wrong = wanted & torch.stack([wrong, *lost]).any(0)
    if not bool(wrong.any()):
        return logits
    norm = next((norm for (norm, _), each in zip(lengths, lost, strict=True) if bool((each & wanted).any())), None)
    row, position = wrong.nonzero()[0].tolist()
    wrong = F.pad(wrong, (since, 0))
    raise NotFinite(
        f"step {canvas.step}: the logits of row {row}, position {position + since}, are no numbers (nan, infinity, or "
        f"lost in an overflow), since {_where(dlm, canvas, wrong, hooks) or _layer(dlm, norm)}. A weight, an edit or "
        "the dtype makes them so; nothing that is read off this forward would mean anything"
    )


def _lost(length: Tensor, wanted: Tensor) -> Tensor:
    """Where something that was normalised is not finite [batch, pos], or anywhere, if it has no such axes."""
    found = ~length.isfinite()
    found = found.flatten(2).any(-1) if found.shape[:2] == wanted.shape and found.ndim > 2 else found
    found = found if found.shape == wanted.shape else found.any().expand_as(wanted)
    return found.to(wanted.device)


def _where(dlm: HookedDLM, canvas: Canvas, wanted: Tensor, hooks: Sequence[Hook]) -> str | None:
    """The first place of the forward that gives no numbers, or too large ones, found by running it again."""
    broken: list[str | nn.Module] = []

    def look(tensor: Tensor, *, hook: Any) -> None:
        if not bool(tensor[wanted].to(_wide(tensor.dtype)).square().mean(-1).isfinite().all()):
            broken.append("the embedding" if hook.name == names[0] else f"layer {hook.name.split('.')[1]}")

    def watch(norm: nn.Module, tensor: Tensor) -> None:
        if bool((_lost(norms.length(norm, tensor), wanted) & wanted).any()):
            broken.append(norm)  # its path is read when the components are out again

    names = ["embed.hook_out", *(f"blocks.{layer}.hook_out" for layer in range(dlm.n_layers))]

    def again() -> None:
        with dlm.hooks(fwd_hooks=[*hooks, *((name, look) for name in names)]), torch.no_grad():
            dlm(canvas.tokens, attention_mask=canvas.valid, levels=canvas.levels)

    norms.watching(watch, again)
    first = next(iter(broken), None)
    return _layer(dlm, first) if isinstance(first, nn.Module) else first


def _layer(dlm: HookedDLM, norm: nn.Module | None) -> str:
    """Where a normalisation is; without one it is the unembedding that gives no numbers."""
    if norm is None:
        return "the unembedding"
    places = [*dlm.original_model.named_modules(), *((slot.place, slot.component) for slot in dlm.wiring.slots)]
    path = next((path for path, module in places if module is norm), "")
    numbers = re.findall(r"\.(\d+)\.", path)
    return f"layer {numbers[0]} ({path})" if numbers else f"the normalisation {path}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
