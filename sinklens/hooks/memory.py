"""What one edit remembers in one run: the state that descriptions do not hold."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.hooks.canvas import Canvas


class Memory:
    """What one edit remembers in one run, and has counted. An edit is a value; whoever runs it holds its memory.

    Attributes:
        steps: Steps of the run; None if not known.
        start: The canvas that the run begins with; None if not known. A baseline shows later canvases only in part.
        notes: What the edit itself wants to find again at a later step or hook.
        again: Whether committed positions may be masked and decided again in this run (samplers that remask).
        storing: Whether the forward under way stores a finished block (`Scope.event`), and is no step.
        parts: Memories of the edits that a composed edit is made of, in its order.
        names: What the edit counts; 0 until it has happened.
        edited: Rows in which the edit changed something in the last forward, parts included [batch]; None before the
            first forward, and after one at which the edit was not at work.
        forwards: How many forwards have edited each row [batch]; None if none has.
    """

    def __init__(
        self,
        steps: int | None = None,
        start: Canvas | None = None,
        *,
        parts: tuple[Memory, ...] = (),
        names: tuple[str, ...] = (),
    ) -> None:
        self.steps, self.start, self.parts, self.names = steps, start, parts, names
        self.again = False
        self.storing = False
        self.notes: dict[Any, Any] = {}
        self.edited: Tensor | None = None
        self.forwards: Tensor | None = None
        self._counts: dict[str, Tensor] = {}
        self._touched: Tensor | None = None

    def decides_again(self) -> None:
        """Note, for parts too, that committed positions may be decided again."""
        self.again = True
        for part in self.parts:
            part.decides_again()

    def stores(self, storing: bool) -> None:
        """Note, for parts too, whether the forwards that come are store events."""
        self.storing = storing
        for part in self.parts:
            part.stores(storing)

    def count(self, name: str, amount: Tensor) -> None:
        """Add an amount per row [batch]."""
        before = self._counts.get(name)
        self._counts[name] = amount if before is None else before.to(amount.device) + amount

    def touch(self, rows: Bool[Tensor, " batch"]) -> None:
        """Note rows that the forward under way edits: of each something that changes what the model computes."""
        self._touched = rows if self._touched is None else self._touched.to(rows.device) | rows

    def untouched(self, rows: Bool[Tensor, " batch"]) -> bool:
        """Whether one of these rows was not touched yet."""
        return self._touched is None or bool((rows & ~self._touched.to(rows.device)).any())

    def close(self) -> None:
        """The forward is done: which rows did it edit? Whoever runs forwards says so after each."""
        self.edited = self.taken()
        if self.edited is not None:
            before = 0 if self.forwards is None else self.forwards.to(self.edited.device)
            self.forwards = before + self.edited.long()

    def taken(self) -> Tensor | None:
        """Rows that were touched since it was last asked, parts included [batch]; None if nothing was at work."""
        found = [rows for rows in (self._touched, *(part.taken() for part in self.parts)) if rows is not None]
        self._touched = None
        return torch.stack([rows.to(found[0].device) for rows in found]).any(0) if found else None

    def add(self, other: Memory) -> None:
        """Add what another memory of the same edit has counted, parts included. The notes of both stay their own."""
        if other.forwards is not None:
            before = 0 if self.forwards is None else self.forwards.to(other.forwards.device)
            self.forwards = before + other.forwards
        for name, amount in other._counts.items():
            self.count(name, amount)
        for own, theirs in zip(self.parts, other.parts, strict=True):
            own.add(theirs)

    def counts(self) -> dict[str, float]:
        """What was counted, summed over the batch; those of a composed edit's parts under "number: name"."""
        own = dict.fromkeys(self.names, 0.0) | {name: amount.sum().item() for name, amount in self._counts.items()}
        inner = {f"{i}: {name}": n for i, part in enumerate(self.parts) for name, n in part.counts().items()}
        return own | inner

    def per_row(self, name: str) -> list[float]:
        """One of the counts for each row of the batch, parts included; empty if nothing was counted by this name."""
        found = [self._counts[name].tolist()] if name in self._counts else []
        found += [rows for part in self.parts if (rows := part.per_row(name))]
        return [sum(row) for row in zip(*found, strict=True)]
