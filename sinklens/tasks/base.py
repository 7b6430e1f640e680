"""What a task is: prompts plus a checker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinklens.errors import TaskError
from sinklens.models.prompts import read_prompts
from sinklens.values.content import Value, plain


@dataclass(frozen=True, repr=False)
class Example(Value):
    """One item of a task.

    Attributes:
        prompt: Text, token ids, an encoding of one row, or messages.
        answer: What is held out behind it, or in its gaps.
        name: A stable name.
    """

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


class Task(Value, ABC):
    """Prompts plus a checker.

    A task of your own is a frozen dataclass below this class with a `name` and the four methods, or sets `identity` to
    a text that says what it asks and how it checks: stored scores are found again by that.

    Attributes:
        name: What results and figures call it.
        separator: White space between a prompt and its answer where the prompt ends in none; None takes both as they
            are written (`decoding.answers`).
    """

    name: str
    separator: str | None = " "
    kind_error = TaskError

    @property
    def scoring(self) -> str:
        """How a completion is scored, in words."""
        return f"by {type(self).__name__}"

    @property
    def vocabulary(self) -> Mapping[str, int] | None:
        """Tokens and their ids, where the task reads token ids and means those of one tokenizer; None for any."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    @abstractmethod
    def score(self, example: Example, completion: str) -> Score:
        """Check a completion."""

    @abstractmethod
    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Which tokens of the tokenised answer count under teacher forcing."""

    def scored(self, example: Example, completion: Sequence[int]) -> list[bool]:
        """Which tokens of a completion, and of the EOS that ends it, `score` looks at: all, unless a task knows better.

        The share of them that an edited forward decided is the `exposed` of an accuracy.
        """
        return [True] * len(completion)

    def checker(self) -> Any:
        """Plain data on which a score depends beside the prompt, the answer and the completion: how it is checked.

        All of the task's content, unless a task knows better: with less, more examples of the same kind do not make
        the stored scores of the first ones worthless.

        Raises:
            ContentError: the task has no content that could be compared.
        """
        return plain(self)


@dataclass(frozen=True, repr=False)
class Prompts(Task):
    """Prompts without answers: what an edit changes can be measured, not whether the change is right.

    Attributes:
        prompts: One or several, in any form that `denoise` takes.
        name: What results call it; says how many there are if empty.

    Raises:
        ValueError: no prompts.
    """

    prompts: Any
    name: str = ""

    def __post_init__(self) -> None:
        listed = read_prompts(self.prompts)
        if not listed:
            raise ValueError("there are no prompts; give at least one")
        object.__setattr__(self, "prompts", tuple(listed))
        object.__setattr__(self, "name", self.name or f"prompts(n={len(listed)})")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Example:
        """One prompt, with an empty answer."""
        return Example(self.prompts[index], "", f"prompt {index}")

    def score(self, example: Example, completion: str) -> Score:
        """There is nothing to check."""
        return Score(0, 0)

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Nothing is."""
        return [False] * len(answer)

    def checker(self) -> Any:
        """Nothing but that nothing is checked."""
        return {"type": "Prompts"}
