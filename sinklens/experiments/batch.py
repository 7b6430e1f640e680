"""Prompts and edits of one forward: which row is whose, and what each row came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.decoding.step import Step
from sinklens.hooks import Canvas, Edit, Memory
from sinklens.interventions import SideBySide
from sinklens.values.exact import Range

SEEDS = 1_000_003  # a prompt's own seed is the repetition's times this, plus the prompt's index
Repetition = Annotated[int, Range(0, 2**43 - 1)]  # so that a prompt's own seed is one

FORM = 5  # of a stored score; those of another form are not read as if they were of this one


class Measured(NamedTuple):
    """What a metric came to in one row.

    Attributes:
        value: The metric; nan if nothing counts.
        places: Of how many places it is the mean.
        exposed: The share of them, 0 to 1, that were decided by a forward in which the edit changed something of this
            row (see `hooks.changed`); None if nothing counts, or nothing was to be edited (NoOp, or a dose that is the
            identity).
    """

    value: float
    places: int
    exposed: float | None = None


Values = dict[str, list[Measured]]  # by the name of a metric, for each row of a batch


class Exposure:
    """Where the forward that decided a place was an edited one.

    Attributes:
        places: Committed by a forward in which something of the row was edited [batch, pos].
    """

    def __init__(self, canvas: Canvas) -> None:
        self.places: Bool[Tensor, "batch pos"] = torch.zeros_like(canvas.masked)

    def add(self, step: Step) -> None:
        """The next step."""
        self.places = torch.where(step.committed, edited_rows(step)[:, None], self.places)

    def share(self, row: int, counting: Bool[Tensor, " pos"]) -> float | None:
        """The share of some places of a row; None of none."""
        met = self.places[row, counting].tolist()
        return sum(met) / len(met) if met else None


def edited_rows(step: Step) -> Bool[Tensor, " batch"]:
    """Rows in which the step's forward was edited."""
    edited = [memory.edited for memory in step.memories if memory.edited is not None]
    rows = torch.zeros_like(step.active)
    return rows if not edited else torch.stack([each.to(rows.device) for each in edited]).any(0)


class Conditions(SideBySide):
    """Edits beside each other that were checked before, on all prompts of the task.

    An edit whose steps never come in one batch, because its prompts take fewer, does nothing in it.
    """

    def leaves(self) -> Sequence[Edit]:
        """None but itself: the scopes of the edits are not checked against the steps of one batch."""
        return (self,)


@dataclass(frozen=True)
class Batch:
    """Some prompts, once for each of several edits: group after group, each with the prompts in this order.

    Attributes:
        prompts: Their indices in the task.
        seed: The repetition.
        edits: One per group; None for the unedited one.
    """

    prompts: tuple[int, ...]
    seed: int
    edits: tuple[Edit | None, ...] = (None,)

    @property
    def rows(self) -> list[int]:
        """The prompt of each row."""
        return list(self.prompts) * len(self.edits)

    @property
    def seeds(self) -> list[int]:
        """The seed of each row."""
        return [self.seed * SEEDS + index for index in self.rows]

    @property
    def interventions(self) -> Sequence[Edit]:
        """The edits as one, each on its own rows."""
        edited = any(edit is not None for edit in self.edits)
        return [Conditions(self.edits, len(self.prompts))] if edited else []

    def scores(self, values: Values, memory: Memory | None) -> list[list[dict[str, Any]]]:
        """What a run came to, by edit and prompt: "values", {metric: Measured}, "edited_keys", "edited_mass", "kept".

        Args:
            values: By metric and row.
            memory: Of the edits as one.
        """
        none = [0.0] * len(self.rows)
        names = ("keys", "mass", "candidates")
        keys, mass, among = ((memory.per_row(name) if memory is not None else []) or none for name in names)
        scores = [
            {
                "values": {name: self._met(row, values[name][row]) for name in values},
                "edited_keys": round(keys[row]) if self._counts(row, "keys") else None,
                "edited_mass": float(mass[row]) if self._counts(row, "mass") else None,
                "kept": 1 - keys[row] / among[row] if among[row] else None,
            }
            for row in range(len(self.rows))
        ]
        size = len(self.prompts)
        return [scores[first : first + size] for first in range(0, len(scores), size)]

    def _counts(self, row: int, name: str) -> bool:
        """Whether the edit of a row counts such a thing; one that acts on no keys does not. Nothing is 0 of all."""
        edit = self.edits[row // len(self.prompts)]
        return edit is None or any(name in getattr(leaf, "counted", (name,)) for leaf in edit.leaves())

    def _met(self, row: int, measured: Measured) -> Measured:
        """As measured; nothing can be exposed to an edit that changes nothing."""
        edit = self.edits[row // len(self.prompts)]
        edits = edit is not None and any(leaf.changes for leaf in edit.leaves())
        return measured if edits else measured._replace(exposed=None)
