"""Several edits at once: one after the other on the same rows, or side by side on their own rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Hookable, Intervention, Where, leaves, overlap, rowwise, wanted


class _Several:
    """What composed edits share: a new run and the counts reach every part."""

    edits: list[Intervention]
    where: Where
    _steps: int | None = None

    def reset(self, steps: int | None = None) -> None:
        """A new run begins."""
        self._steps = steps
        for edit in self.edits:
            edit.reset(steps)

    def counts(self) -> Mapping[str, float]:
        """The counts of each edit, under its number."""
        return {f"{i}: {name}": n for i, edit in enumerate(self.edits) for name, n in edit.counts().items()}


class InOrder(_Several):
    """Edits that meet in scope, in this order: at each hook point the second sees what the first left.

    Order matters where they share a hook point. Whatever the order here, edits of scores come before edits of the
    pattern; an added key (NullKey, SinkToken) takes its share of the scores as all other edits left them; and edits of
    values see the final pattern: that is the order in which attention computes.

    Args:
        *edits: The edits; two edits of values may not meet in scope.
    """

    def __init__(self, *edits: Intervention) -> None:
        if not edits or not all(isinstance(edit, Intervention) for edit in edits):
            raise ValueError(f"InOrder({', '.join(map(repr, edits))}): give one or more edits")
        self.edits, self.where = _apart(edits), Where()

    @property
    def clean(self) -> Sequence[Hookable]:
        """What must watch a forward without edits."""
        return [part for edit in self.edits for part in getattr(edit, "clean", ())]

    def check(self, model: Any, canvas: Canvas) -> None:
        """Check every edit."""
        for edit in self.edits:
            getattr(edit, "check", lambda *_: None)(model, canvas)
        self._check_values(model)

    def _check_values(self, model: Any) -> None:
        """No two edits of values may meet: their changes would not add up."""
        values = [leaf for edit in self.edits for leaf in leaves(edit) if getattr(leaf, "stage", 0) == 2]
        for index, one in enumerate(values):
            for other in values[:index]:
                if overlap(one.where, other.where, model, self._steps):
                    raise ScopeError(f"{other!r} and {one!r} both edit values in one scope; name one of them")

    def per_row(self, name: str) -> list[float]:
        """A count for each row, summed over the edits that have it."""
        found: list[list[float]] = [getattr(edit, "per_row", lambda _: [])(name) for edit in self.edits]
        return [sum(row) for row in zip(*(each for each in found if each), strict=True)]

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """The hooks of the edits that are wanted at this step, in order."""
        self._check_values(model)
        step = canvas.step if canvas is not None else 0
        edits = sorted((edit for edit in self.edits if wanted(edit, step, self._steps)), key=_stage)
        return [hook for edit in edits for hook in edit.fwd_hooks(model, canvas)]

    def __repr__(self) -> str:
        return f"InOrder({', '.join(map(repr, self.edits))})"


class SideBySide(_Several):
    """Different edits for different rows of one batch, so that several conditions share a forward.

    Row r belongs to the edit number r // rows_each; None leaves its rows alone. Every edit sees only its own rows,
    so it does what it would do alone.

    Args:
        edits: One per group of rows.
        rows_each: Rows of each group.
    """

    def __init__(self, edits: Sequence[Intervention | None], rows_each: int) -> None:
        own = iter(_apart([edit for edit in edits if edit is not None]))
        self.groups = [None if edit is None else next(own) for edit in edits]
        self.rows_each, self.where = rows_each, Where()
        self.edits = [edit for edit in self.groups if edit is not None]

    @property
    def clean(self) -> Sequence[Hookable]:
        """What must watch a forward without edits, each on its own rows."""
        return [
            _OnRows(part, self._rows(index))
            for index, edit in enumerate(self.groups)
            for part in getattr(edit, "clean", ())
        ]

    def _rows(self, index: int) -> slice:
        return slice(index * self.rows_each, (index + 1) * self.rows_each)

    def check(self, model: Any, canvas: Canvas) -> None:
        """Check the number of rows, and every edit on its own."""
        if len(canvas.tokens) != len(self.groups) * self.rows_each:
            raise ScopeError(
                f"{len(self.groups)} groups of {self.rows_each} rows do not make the {len(canvas.tokens)} of this batch"
            )
        for index, edit in enumerate(self.groups):
            getattr(edit, "check", lambda *_: None)(model, _cut(canvas, self._rows(index)))

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """For each hook point one hook, which hands every edit its rows."""
        if canvas is None:
            raise ValueError("SideBySide needs a canvas to know its rows; use it in denoise")
        by_point: dict[str, list[tuple[slice, Callable[..., Tensor | None]]]] = {}
        for index, edit in enumerate(self.groups):
            if edit is not None and wanted(edit, canvas.step, self._steps):
                rows = self._rows(index)
                for name, function in edit.fwd_hooks(model, _cut(canvas, rows)):
                    by_point.setdefault(name, []).append((rows, function))
        return [(name, _shared(functions)) for name, functions in by_point.items()]

    def __repr__(self) -> str:
        return f"SideBySide({self.groups!r}, rows_each={self.rows_each})"


def _apart(edits: Sequence[Intervention]) -> list[Intervention]:
    """The edits; one that is there twice gets a memory of its own."""
    seen: list[Intervention] = []
    for edit in edits:
        again = any(edit is other for other in seen)
        seen.append(edit.own() if again and hasattr(edit, "own") else edit)  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def _stage(edit: Any) -> int:
    """When an edit comes among others; a composed one with its latest part."""
    return max(getattr(leaf, "stage", 0) for leaf in leaves(edit))


class _OnRows:
    """A part that sees only some rows."""

    def __init__(self, part: Hookable, rows: slice) -> None:
        self.part, self.rows, self.where = part, rows, part.where

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """The part's hooks, on its rows."""
        hooks = self.part.fwd_hooks(model, None if canvas is None else _cut(canvas, self.rows))
        return [(name, _shared([(self.rows, function)])) for name, function in hooks]

    def __repr__(self) -> str:
        return f"{self.part!r} on rows {self.rows.start} to {self.rows.stop - 1}"


def _shared(functions: Sequence[tuple[slice, Callable[..., Tensor | None]]]) -> Callable[..., Tensor | None]:
    """One hook that hands each function its rows, in blocks of queries if all of them can."""
    said = [getattr(function, "__dict__", {}) for _, function in functions]
    looks = [(rows, each.get("look")) for (rows, _), each in zip(functions, said, strict=True)]
    able = all(each.get("rowwise", False) for each in said)
    look = None if any(each is None for _, each in looks) else _each_its_rows(looks)
    return rowwise(_each_its_rows(functions), able, look=look, sweeps=max(each.get("sweeps", 0) for each in said))


def _each_its_rows(functions: Sequence[tuple[slice, Any]]) -> Callable[..., Tensor | None]:
    def hook_function(tensor: Tensor, *, hook: Any) -> Tensor | None:
        edited = None
        for rows, function in functions:
            result = function((tensor if edited is None else edited)[rows], hook=hook)
            if result is not None:
                edited = tensor.clone() if edited is None else edited
                edited[rows] = result
        return edited

    return hook_function


def _cut(canvas: Canvas, rows: slice) -> Canvas:
    """The canvas of some rows."""
    parts = {name: getattr(canvas, name)[rows] for name in ("tokens", "valid", "masked", "prompt")}
    active = None if canvas.active is None else canvas.active[rows]
    return replace(canvas, **parts, seeds=canvas.seeds[rows], active=active)
