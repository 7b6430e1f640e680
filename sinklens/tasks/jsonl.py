"""A task from a file: one JSON object per line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinklens.tasks.base import Example, Score, Task


@dataclass(frozen=True, repr=False)
class Jsonl(Task):
    """A task from a JSONL file: one object per line with "prompt" and "answer".

    A completion is right if it equals the answer, surrounding white space aside.

    Attributes:
        path: The file. It is read when the task is made; later changes of the file do not change the task.
        extract: A regular expression: what it finds last in the completion (its first group, if it has one) is
            compared instead of the whole, for example `(-?[0-9][0-9,.]*)` for the last number. Commas in numbers and a
            full stop at the end do not count.
        limit: Read only so many examples.
        name: What results call it; the file's name if empty.
        examples: What the file holds; read from it if empty.

    Raises:
        ValueError: naming the line that is not of this form, or an expression that cannot be read.
    """

    path: str | Path
    extract: str | None = field(default=None, kw_only=True)
    limit: int | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)
    examples: tuple[Example, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        try:
            re.compile(self.extract or "")
        except re.error as error:
            raise ValueError(f"extract={self.extract!r} is no regular expression: {error}") from error
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1")
        examples = self.examples or _read(Path(self.path), self.name or Path(self.path).name, self.limit)
        object.__setattr__(self, "name", self.name or Path(self.path).name)
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "examples", examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self.examples[index]

    def score(self, example: Example, completion: str) -> Score:
        """1 of 1 if completion and answer are the same text."""
        return Score(int(self._said(completion) == self._said(example.answer)), 1)

    def _said(self, text: str) -> str:
        if not self.extract:
            return text.strip()
        matches = list(re.finditer(self.extract, text))
        if not matches:
            return text.strip()
        last = matches[-1]
        return (last[min(1, last.re.groups)] or "").replace(",", "").rstrip(".")

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Every token of the answer."""
        return [True] * len(answer)

    def checker(self) -> Any:
        """What is compared."""
        return {"type": "Jsonl", "extract": self.extract or None}


def _read(path: Path, name: str, limit: int | None) -> tuple[Example, ...]:
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            if not isinstance(item["prompt"], str):
                raise TypeError("the prompt is no text")
            examples.append(Example(item["prompt"], str(item["answer"]), f"{name}:{number}"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: expected {{"prompt": "...", "answer": "..."}}, got {line[:80]!r}'
            ) from error
    if not examples:
        raise ValueError(f"{path} holds no examples")
    return tuple(examples[:limit])
