"""One forward of a canvas with edits and probes attached, which gives numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sinklens.decoding.finite import finite
from sinklens.hooks import Canvas, Edit, Hook, Memory, Probe, with_hooks
from sinklens.models.hooked_dlm import HookedDLM


def forward(
    dlm: HookedDLM,
    canvas: Canvas,
    interventions: Sequence[Edit] = (),
    memories: Sequence[Memory] = (),
    probes: Sequence[Probe] = (),
    seen: Sequence[dict[Any, Any] | None] = (),
    fired: dict[str, int] | None = None,
    named: Sequence[str] | None = None,
    *,
    last: bool = False,
) -> Float[Tensor, "batch pos vocab"]:
    """One forward of a canvas with edits and probes attached, after the clean one that some edits want to see.

    Args:
        dlm: The model.
        canvas: What it sees.
        interventions: Edits.
        memories: What each of them remembers.
        probes: Measurements.
        seen: What each of them is to fill; None for one that does not look now.
        fired: Firing counts by label, added to.
        named: The labels of edits and probes (`labels_of`), if the caller has them.
        last: Give logits of the last position alone [batch, 1, vocab] (`HookedDLM.last_logits`).

    Raises:
        NotFinite: logits that are no numbers.
    """
    fired = {} if fired is None else fired
    named = labels_of([*interventions, *probes]) if named is None else named
    edits = list(zip(interventions, memories, strict=True))
    clean = [edit.clean_at_step(dlm, canvas, memory) for edit, memory in edits]
    _look(dlm, canvas, "clean", list(zip(interventions, clean, strict=True)), fired, last=last)
    hooks = [edit.at_step(dlm, canvas, memory) for edit, memory in edits]
    pairs = zip(probes, seen, strict=True)
    hooks += [[] if shown is None else probe.hooks(dlm, canvas, shown) for probe, shown in pairs]
    logits = _hooked(dlm, canvas, list(zip(named, hooks, strict=True)), fired, last=last)
    for memory in memories:
        memory.close()
    return logits


def watch(dlm: HookedDLM, canvas: Canvas, interventions: Sequence[Edit], memories: Sequence[Memory]) -> None:
    """What edits that look back see of a canvas that has no step before it: a forward of itself without any edit.

    They are shown it as the step before, so that -1 comes before step 0.
    """
    before = replace(canvas, step=canvas.step - 1)
    pairs = zip(interventions, memories, strict=True)
    _look(
        dlm, before, "watch", [(edit, edit.watch(dlm, before, memory)) for edit, memory in pairs if edit.looks_back], {}
    )


def _look(
    dlm: HookedDLM,
    canvas: Canvas,
    why: str,
    edits: Sequence[tuple[Edit, Sequence[Hook]]],
    fired: dict[str, int],
    *,
    last: bool = False,
) -> None:
    """A forward under hooks that only look, if there are any."""
    parts = [(f"{why}({edit!r})", hooks) for edit, hooks in edits if hooks]
    if parts:
        _hooked(dlm, canvas, parts, fired, last=last)


def _hooked(
    dlm: HookedDLM,
    canvas: Canvas,
    parts: Sequence[tuple[str, Sequence[Hook]]],
    fired: dict[str, int],
    *,
    last: bool = False,
) -> Tensor:
    """Logits of a canvas under hooks, which no other thread's forward meets, and which are numbers."""

    def plain() -> Tensor:
        run = dlm.last_logits if last else dlm
        return run(canvas.tokens, attention_mask=canvas.valid, levels=canvas.levels)

    def hooked() -> Tensor:
        return dlm.wiring.held(lambda: with_hooks(dlm, parts, fired, plain))

    return finite(dlm, canvas, hooked, [hook for _, hooks in parts for hook in hooks])


def labels_of(parts: Sequence[Edit | Probe]) -> list[str]:
    """What the parts are called in firing counts and errors: their reprs, numbered where two read alike."""
    texts = [repr(part) for part in parts]
    return [
        f"{text} ({texts[:index].count(text) + 1})" if texts.count(text) > 1 else text
        for index, text in enumerate(texts)
    ]
