"""A task from a file: one JSON object per line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sinklens.tasks.base import Example, Score


class Jsonl:
    """A task from a JSONL file: one object per line with "prompt" and "answer".

    A completion is right if it equals the answer, surrounding white space aside.

    Args:
        path: The file.
        extract: A regular expression: what it finds last in the completion (its first group, if it has one) is
            compared instead of the whole, for example `(-?[0-9][0-9,.]*)` for the last number. Commas in numbers and a
            full stop at the end do not count.
        limit: Read only so many examples.

    Raises:
        ValueError: naming the line that is not of this form, or an expression that cannot be read.
    """

    def __init__(self, path: str | Path, *, extract: str | None = None, limit: int | None = None) -> None:
        self.name, self.examples = Path(path).name, []
        try:
            self.extract = re.compile(extract) if extract else None
        except re.error as error:
            raise ValueError(f"extract={extract!r} is no regular expression: {error}") from error
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                if not isinstance(item["prompt"], str):
                    raise TypeError("the prompt is no text")
                self.examples.append(Example(item["prompt"], str(item["answer"]), f"{self.name}:{number}"))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}, line {number}: expected {{"prompt": "...", "answer": "..."}}, got {line[:80]!r}'
                ) from error
        if not self.examples:
            raise ValueError(f"{path} holds no examples")
        self.examples = self.examples[:limit]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self.examples[index]

    def score(self, example: Example, completion: str) -> Score:
        """1 of 1 if completion and answer are the same text."""
        return Score(int(self._said(completion) == self._said(example.answer)), 1)

    def _said(self, text: str) -> str:
        if self.extract is None:
            return text.strip()
        found = [match[1] if match.re.groups else match[0] for match in self.extract.finditer(text)]
        return found[-1].replace(",", "").rstrip(".") if found else text.strip()

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Every token of the answer."""
        return [True] * len(answer)
