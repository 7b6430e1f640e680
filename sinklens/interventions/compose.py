"""Several edits at once: one after the other on the same rows, or side by side on their own rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import ByQuery, Canvas, Edit, Hook, HookFunction, Memory, by_query
from sinklens.interventions.brief import Brief
from sinklens.values.kinds import Count

Ask = Callable[[Edit, Canvas | None, Memory], list[Hook]]


class Composed(Brief, Edit):
    """Base: what composed edits are asked, each of their edits is asked, with the part of the memory that is its own.

    One edit that is there twice keeps two memories.
    """

    @abstractmethod
    def members(self) -> Sequence[Edit]:
        """The edits, in the order of the memory's parts."""

    @abstractmethod
    def gathered(self, model: Any, canvas: Canvas | None, memory: Memory, ask: Ask) -> list[Hook]:
        """The hooks that all edits answer with."""

    def leaves(self) -> Sequence[Edit]:
        """The edits that these are made of."""
        return [leaf for edit in self.members() for leaf in edit.leaves()]

    def parts(self, memory: Memory) -> Sequence[tuple[Edit, Memory]]:
        """The same, each with its own memory."""
        pairs = zip(self.members(), memory.parts, strict=True)
        return [part for edit, inner in pairs for part in edit.parts(inner)]

    @property
    def looks_back(self) -> bool:
        """Whether one of them must see the forward before."""
        return any(edit.looks_back for edit in self.members())

    @property
    def earliest(self) -> int:
        """That of the earliest of them."""
        return min(edit.earliest for edit in self.members())

    def of_new(self, model: Any) -> bool:
        """Whether all of them know."""
        return all(edit.of_new(model) for edit in self.members())

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The hooks of the edits at a step in their scope."""

        def acting(edit: Edit, canvas: Canvas | None, memory: Memory) -> list[Hook]:
            out = canvas is not None and not edit.acts(canvas.step, memory)
            return [] if out else edit.hooks(model, canvas, memory)

        return self.gathered(model, canvas, memory, acting)

    def watch(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The hooks with which they look at the forward before."""
        return self.gathered(model, canvas, memory, lambda edit, *now: edit.watch(model, *now))

    def clean(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The hooks with which they look at a forward without any edit."""
        return self.gathered(model, canvas, memory, lambda edit, *now: edit.clean(model, *now))

    def at_step(self, model: Any, canvas: Canvas, memory: Memory) -> list[Hook]:
        """What each of them attaches at a step."""

        def at_step(edit: Edit, now: Canvas | None, memory: Memory) -> list[Hook]:
            return edit.at_step(model, canvas if now is None else now, memory)

        return self.gathered(model, canvas, memory, at_step)

    def clean_at_step(self, model: Any, canvas: Canvas, memory: Memory) -> list[Hook]:
        """What each of them attaches to a clean forward at a step."""

        def clean_at_step(edit: Edit, now: Canvas | None, memory: Memory) -> list[Hook]:
            return edit.clean_at_step(model, canvas if now is None else now, memory)

        return self.gathered(model, canvas, memory, clean_at_step)


@dataclass(frozen=True, repr=False, init=False)
class InOrder(Composed):
    """Edits that meet in scope, in this order: at each hook point the second sees what the first left.

    Order matters where they share a hook point. Whatever the order here, edits of scores come before edits of the
    pattern; an added key (NullKey, SinkToken) takes its share of the scores as all other edits left them; and edits of
    values see the final pattern: that is the order in which attention computes.

    Args:
        *several: The edits; two edits of values may not meet in scope.
        edits: The same, as one sequence.

    Raises:
        ValueError: no edit, or something that is none.
    """

    edits: tuple[Edit, ...]

    def __init__(self, *several: Edit, edits: Iterable[Edit] = ()) -> None:
        together = (*several, *edits)
        if not together or not all(isinstance(edit, Edit) for edit in together):
            raise ValueError(f"InOrder({', '.join(map(repr, together))}): give one or more edits")
        object.__setattr__(self, "edits", together)

    def members(self) -> Sequence[Edit]:
        """The edits."""
        return self.edits

    def memory(self, steps: int | None = None, start: Canvas | None = None) -> Memory:
        """A new memory, with one for each edit."""
        return Memory(steps, start, parts=tuple(edit.memory(steps, start) for edit in self.edits))

    def gathered(self, model: Any, canvas: Canvas | None, memory: Memory, ask: Ask) -> list[Hook]:
        """The hooks of the edits, in order; later stages last."""
        self._check_values(model, memory.steps)
        pairs = sorted(zip(self.edits, memory.parts, strict=True), key=lambda pair: _stage(pair[0]))
        return [hook for edit, inner in pairs for hook in ask(edit, canvas, inner)]

    def check(self, model: Any, canvas: Canvas) -> None:
        """Check every edit."""
        for edit in self.edits:
            edit.check(model, canvas)
        self._check_values(model, None)

    def _check_values(self, model: Any, steps: int | None) -> None:
        """No two edits of values may meet: their changes would not add up."""
        sizes = int(model.cfg.n_layers), int(model.cfg.n_heads)
        values = [leaf for leaf in self.leaves() if leaf.stage == 2]
        for index, one in enumerate(values):
            for other in values[:index]:
                if one.where.meets(other.where, *sizes, steps):
                    raise ScopeError(f"{other!r} and {one!r} both edit values in one scope; name one of them")

    def __repr__(self) -> str:
        return f"InOrder({', '.join(map(repr, self.edits))})"


@dataclass(frozen=True, repr=False)
class SideBySide(Composed):
    """Different edits for different rows of one batch, so that several conditions share a forward.

    Row r belongs to the edit number r // rows_each; None leaves its rows alone. Every edit sees only its own rows,
    so it does what it would do alone.

    Args:
        edits: One per group of rows.
        rows_each: Rows of each group.

    Raises:
        ContentError: something that is no edit, or less than one row.
    """

    edits: Sequence[Edit | None]
    rows_each: Count

    def members(self) -> Sequence[Edit]:
        """The edits; groups without one are left out."""
        return [edit for edit in self.edits if edit is not None]

    def groups(self) -> list[tuple[Edit, slice]]:
        """The edits with their rows."""
        rows = [slice(index * self.rows_each, (index + 1) * self.rows_each) for index in range(len(self.edits))]
        return [(edit, mine) for edit, mine in zip(self.edits, rows, strict=True) if edit is not None]

    def memory(self, steps: int | None = None, start: Canvas | None = None) -> Memory:
        """A new memory, with one for each edit, that begins with its rows."""
        parts = [edit.memory(steps, None if start is None else start.of_rows(rows)) for edit, rows in self.groups()]
        return Apart(steps, start, parts=tuple(parts), groups=self)

    def check(self, model: Any, canvas: Canvas) -> None:
        """Check the number of rows, and every edit on its own."""
        self._check_rows(canvas)
        for edit, rows in self.groups():
            edit.check(model, canvas.of_rows(rows))

    def _check_rows(self, canvas: Canvas) -> None:
        if len(canvas.tokens) != len(self.edits) * self.rows_each:
            raise ScopeError(
                f"{len(self.edits)} groups of {self.rows_each} rows do not make the {len(canvas.tokens)} of this batch"
            )

    def gathered(self, model: Any, canvas: Canvas | None, memory: Memory, ask: Ask) -> list[Hook]:
        """For each hook point one hook, which hands every edit its rows."""
        if canvas is None:
            raise ValueError("SideBySide needs a canvas to know its rows; use it in denoise")
        self._check_rows(canvas)
        by_point: dict[str, list[tuple[slice, HookFunction]]] = {}
        for (edit, rows), inner in zip(self.groups(), memory.parts, strict=True):
            for name, function in ask(edit, canvas.of_rows(rows), inner):
                by_point.setdefault(name, []).append((rows, function))
        return [(name, _shared(functions)) for name, functions in by_point.items()]


class Apart(Memory):
    """The memory of edits that have rows of their own."""

    def __init__(
        self, steps: int | None, start: Canvas | None, *, parts: tuple[Memory, ...], groups: SideBySide
    ) -> None:
        super().__init__(steps, start, parts=parts)
        self.groups = groups

    def taken(self) -> Tensor | None:
        """As in Memory, each edit's rows in their place."""
        found = [(rows, part.taken()) for part, (_, rows) in zip(self.parts, self.groups.groups(), strict=True)]
        touched = [(rows, mine) for rows, mine in found if mine is not None]
        if not touched:
            return None
        size = len(self.groups.edits) * self.groups.rows_each
        placed = torch.zeros(size, dtype=torch.bool, device=touched[0][1].device)
        for rows, mine in touched:
            placed[rows] = mine.to(placed.device)
        return placed

    def per_row(self, name: str) -> list[float]:
        """One of the counts for each row of the batch, 0 where its edit counts no such thing; empty if none does."""
        counted = [part.per_row(name) for part in self.parts]
        if not any(counted):
            return []
        rows = [0.0] * (len(self.groups.edits) * self.groups.rows_each)
        for (_, mine), amounts in zip(self.groups.groups(), counted, strict=True):
            rows[mine] = amounts or [0.0] * self.groups.rows_each
        return rows


class RowsHook:
    """A hook point as an edit of some rows sees it: what it says of the batch is said of these rows."""

    def __init__(self, hook: Any, rows: slice) -> None:
        self.point = hook
        self.ctx = dict(getattr(hook, "ctx", {}))
        if "sight" in self.ctx:
            self.ctx["sight"] = self.ctx["sight"].of_rows(rows)

    def __getattr__(self, name: str) -> Any:
        """The rest of the hook point: its name, its layer."""
        return getattr(self.point, name)


def _stage(edit: Edit) -> int:
    """When an edit comes among others; a composed one with its latest part."""
    return max(leaf.stage for leaf in edit.leaves())


def _shared(functions: Sequence[tuple[slice, HookFunction]]) -> HookFunction:
    """One hook that hands each function its rows, in blocks of queries if all of them can."""
    able = [(rows, function) for rows, function in functions if isinstance(function, ByQuery)]
    if len(able) < len(functions):
        return _each_its_rows(functions)
    previews = [(rows, function.preview) for rows, function in able if function.preview is not None]
    rounds: dict[int, int] = {}  # by group: edits of one group wait for each other, groups do not
    for rows, function in able:
        rounds[rows.start] = rounds.get(rows.start, 0) + function.rounds
    preview = _each_its_rows(previews) if len(previews) == len(able) else None
    return by_query(_each_its_rows(functions), preview=preview, rounds=max(rounds.values()))


def _each_its_rows(functions: Sequence[tuple[slice, HookFunction]]) -> HookFunction:
    def hook_function(tensor: Tensor, *, hook: Any) -> Tensor | None:
        edited = None
        for rows, function in functions:
            result = function((tensor if edited is None else edited)[rows], hook=RowsHook(hook, rows))
            if result is not None:
                edited = tensor.clone() if edited is None else edited
                edited[rows] = result
        return edited

    return hook_function
