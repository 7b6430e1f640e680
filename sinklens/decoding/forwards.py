"""One forward of a canvas with edits and probes attached, which gives numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sinklens.decoding.finite import finite
from sinklens.decoding.past import Past
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
    past: Past | None = None,
    keep: int | None = None,
    forwards: Counter[str] | None = None,
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
        past: Columns whose keys and values are kept: the logits are of those behind them.
        keep: How many columns it keeps from now on; as many as before when None.
        forwards: How many there were of each kind, added to: "step", and "clean" ones beside.

    Raises:
        NotFinite: logits that are no numbers.
    """
    fired = {} if fired is None else fired
    forwards = Counter() if forwards is None else forwards
    named = labels_of([*interventions, *probes]) if named is None else named
    edits = list(zip(interventions, memories, strict=True))
    clean = [edit.clean_at_step(dlm, canvas, memory) for edit, memory in edits]
    _look(dlm, canvas, "clean", list(zip(interventions, clean, strict=True)), fired, forwards, last=last, past=past)
    hooks = [edit.at_step(dlm, canvas, memory) for edit, memory in edits]
    pairs = zip(probes, seen, strict=True)
    hooks += [[] if shown is None else probe.hooks(dlm, canvas, shown) for probe, shown in pairs]
    logits = _hooked(dlm, canvas, list(zip(named, hooks, strict=True)), fired, last=last, past=past, keep=keep)
    forwards["step"] += 1
    for memory in memories:
        memory.close()
    return logits


def store(dlm: HookedDLM, past: Past, canvas: Canvas, forwards: Counter[str], *, edited: bool) -> int:
    """Compute once more, without any edit, what has settled since the step before, and keep its keys and values.

    Of a baseline each step's own forward does that, edits or not, as in a decoder with a cache; only a prompt is read
    beforehand where edits are not to meet it.

    Args:
        dlm: The model.
        past: What is kept so far.
        canvas: What the coming step sees.
        forwards: As in `forward`; these are of the kind "store".
        edited: Whether the run has edits.

    Returns:
        How many columns may be kept after the forward of the step.
    """
    settled = past.settled(canvas)
    if settled > past.length and (edited or canvas.levels is not None):
        _hooked(dlm, past.finished(canvas), [], {}, last=True, past=past, keep=settled)
        forwards["store"] += 1
    return settled if canvas.levels is not None else settled + 1


def read_once_more(
    dlm: HookedDLM,
    canvas: Canvas,
    interventions: Sequence[Edit],
    memories: Sequence[Memory],
    probes: Sequence[Probe],
    seen: Sequence[dict[Any, Any] | None],
    fired: dict[str, int],
    past: Past | None,
    keep: int,
) -> None:
    """A store event: the forward of what is finished, under the probes and edits that subscribe to it.

    A past keeps the first `keep` columns of what it computes.
    """
    named = labels_of([*interventions, *probes])
    before = [memory.edited for memory in memories]
    for memory in memories:
        memory.stores(True)
    try:
        hooks = [edit.at_step(dlm, canvas, memory) for edit, memory in zip(interventions, memories, strict=True)]
        pairs = zip(probes, seen, strict=True)
        hooks += [[] if shown is None else probe.hooks(dlm, canvas, shown) for probe, shown in pairs]
        keep = keep if past is None else max(past.length, keep)
        _hooked(dlm, canvas, list(zip(named, hooks, strict=True)), fired, last=True, past=past, keep=keep)
    finally:
        for memory, edited in zip(memories, before, strict=True):
            memory.close()
            memory.stores(False)
            memory.edited = edited  # whether a step is edited is not said of what lies between steps


def watch(dlm: HookedDLM, canvas: Canvas, interventions: Sequence[Edit], memories: Sequence[Memory]) -> None:
    """What edits that look back see of a canvas that has no step before it: a forward of itself without any edit.

    They are shown it as the step before, so that -1 comes before step 0.
    """
    before = replace(canvas, step=canvas.step - 1)
    pairs = [(edit, memory) for edit, memory in zip(interventions, memories, strict=True) if edit.looks_back]
    hooks = [(edit, edit.watch(dlm, before, memory)) for edit, memory in pairs]
    _look(dlm, before, "watch", hooks, {}, Counter())


def _look(
    dlm: HookedDLM,
    canvas: Canvas,
    why: str,
    edits: Sequence[tuple[Edit, Sequence[Hook]]],
    fired: dict[str, int],
    forwards: Counter[str],
    *,
    last: bool = False,
    past: Past | None = None,
) -> None:
    """A forward under hooks that only look, if there are any."""
    parts = [(f"{why}({edit!r})", hooks) for edit, hooks in edits if hooks]
    if parts:
        _hooked(dlm, canvas, parts, fired, last=last, past=past)
        forwards[why] += 1


def _hooked(
    dlm: HookedDLM,
    canvas: Canvas,
    parts: Sequence[tuple[str, Sequence[Hook]]],
    fired: dict[str, int],
    *,
    last: bool = False,
    past: Past | None = None,
    keep: int | None = None,
) -> Tensor:
    """Logits of a canvas under hooks, which no other thread's forward meets, and which are numbers."""

    def plain() -> Tensor:
        run = dlm.last_logits if last else dlm
        if past is not None:
            return past.forward(canvas, run, keep=keep)
        return run(canvas.tokens, attention_mask=canvas.valid, levels=canvas.levels)

    def hooked() -> Tensor:
        return dlm.wiring.held(lambda: with_hooks(dlm, parts, fired, plain))

    since = 0 if past is None else past.length
    return finite(dlm, canvas, hooked, [hook for _, hooks in parts for hook in hooks], since=since)


def labels_of(parts: Sequence[Edit | Probe]) -> list[str]:
    """What the parts are called in firing counts and errors: their reprs, numbered where two read alike."""
    texts = [repr(part) for part in parts]
    return [
        f"{text} ({texts[:index].count(text) + 1})" if texts.count(text) > 1 else text
        for index, text in enumerate(texts)
    ]
