"""What a task is: prompts plus a checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Example:
    """One item of a task: `prompt` (text or token ids), the `answer` held out behind it, and a stable `name`."""

    prompt: Any
    answer: str
    name: str


@dataclass(frozen=True)
class Score:
    """`correct` of `total` checkable places in one completion (total may be 0 for Echo)."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share in [0, 1]; nan where nothing was checkable."""
        return self.correct / self.total if self.total else float("nan")


class Task(Protocol):
    """Prompts plus a checker."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def score(self, example: Example, completion: str) -> Score:
        """Check a completion."""
        ...

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Which tokens of the tokenised answer count under teacher forcing."""
        ...


class Prompts:
    """Prompts without answers: what an edit changes can be measured, not whether the change is right.

    Args:
        prompts: Texts, or lists of token ids; also a single one.
    """

    def __init__(self, prompts: Sequence[Any]) -> None:
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer))
        self.prompts: list[Any] = [prompts] if one else list(prompts)
        self.name = f"prompts(n={len(self.prompts)})"
        if not self.prompts:
            raise ValueError("there are no prompts; give at least one")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Example:
        """One prompt, with an empty answer."""
        prompt = self.prompts[index]
        return Example(prompt if isinstance(prompt, str) else [int(token) for token in prompt], "", f"prompt {index}")

    def score(self, example: Example, completion: str) -> Score:
        """There is nothing to check."""
        return Score(0, 0)

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Nothing is."""
        return [False] * len(answer)
