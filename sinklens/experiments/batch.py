"""Prompts and edits of one forward: which row is whose, and what each row came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sinklens.hooks import Edit, Memory
from sinklens.interventions import SideBySide

SEEDS = 1_000_003  # a prompt's own seed is the repetition's times this, plus the prompt's index

# By the name of a metric, for each row of a batch: its value (nan if nothing counts) and of how many places it is.
Values = dict[str, list[tuple[float, int]]]


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
        """What a run came to, by edit and prompt: "values", {metric: (value, places)}, "edited_keys", "edited_mass".

        Args:
            values: By metric and row.
            memory: Of the edits as one.
        """
        none = [0.0] * len(self.rows)
        keys, mass = ((memory.per_row(name) if memory is not None else []) or none for name in ("keys", "mass"))
        scores = [
            {
                "values": {name: values[name][row] for name in values},
                "edited_keys": round(keys[row]),
                "edited_mass": float(mass[row]),
            }
            for row in range(len(self.rows))
        ]
        size = len(self.prompts)
        return [scores[first : first + size] for first in range(0, len(scores), size)]
