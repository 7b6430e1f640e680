"""A task from a file: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sinklens.errors import TaskError
from sinklens.tasks.base import Example, Score, Task
from sinklens.tasks.matching import Match, check_extract, matches
from sinklens.values.kinds import Count


@dataclass(frozen=True, repr=False)
class Jsonl(Task):
    """A task from a JSONL file: one object per line with "prompt" and "answer".

    A completion is right if it equals the answer, surrounding white space aside. The prompt is a text, the answer a
    text or a number (which is taken as it is written); other fields are ignored.

    Attributes:
        path: The file, UTF-8. It is read when the task is made; later changes of the file do not change the task.
        extract: A regular expression: what it finds in the completion (its first group, if it has one) is compared
            instead of the whole, for example `(-?[0-9][0-9,.]*)` for the last number. The same is done to an answer in
            which it finds something; of any other answer the whole is compared. White space around it, commas and a
            full stop at the end do not count. A completion in which it finds nothing (no match, an empty one, or a
            group that took no part) is wrong.
        match: Which match of `extract` is compared: the "last", the "first", or "full": the one of the whole
            completion, white space around it aside.
        separator: White space between a prompt and its answer where the prompt ends in none, for metrics in which the
            model reads the answer: "Paris" and " Paris" are one answer. "" for languages without spaces. None takes
            prompt and answer as they are written (code, whose first indentation counts); then white space in front of a
            completion counts, too. White space behind answers and completions never does.
        by: What counts as one place: the whole "answer", which is right or wrong, or each "character" of it (residues
            of a protein, say), white space aside; then `extract` has no meaning, and a completion of another
            length is an error.
        limit: Read only so many examples.
        name: What results call it; the file's name if empty.
        examples: What the file holds; read from it if empty.

    Raises:
        TaskError: naming the line that is not of this form, an expression that cannot be read, an unknown match; from
            `score`, an expression that takes longer than 5 seconds for one text.
    """

    path: str | Path
    extract: str | None = field(default=None, kw_only=True)
    match: Match = field(default="last", kw_only=True)
    separator: str | None = field(default=" ", kw_only=True)
    by: Literal["answer", "character"] = field(default="answer", kw_only=True)
    limit: Count | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)
    examples: tuple[Example, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        check_extract(self.extract, self.match)
        check_separator(self.separator)
        if self.by == "character" and self.extract:
            raise TaskError(f"extract={self.extract!r} and by='character' both say what is compared; give one")
        examples = self.examples or _read(Path(self.path), self.name or Path(self.path).name)[: self.limit]
        object.__setattr__(self, "name", self.name or Path(self.path).name)
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "examples", examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self.examples[index]

    @property
    def scoring(self) -> str:
        """Which text is compared with the answer."""
        if self.by == "character":
            return "every character of the answer is compared with that of the completion at its place"
        if not self.extract:
            return "the whole completion is compared with the answer"
        which = {"last": "the last match", "first": "the first match", "full": "the completion, if all of it matches"}
        return f"{which[self.match]} of {self.extract!r} in the completion is compared with the answer"

    def score(self, example: Example, completion: str) -> Score:
        """1 of 1 if completion and answer are the same text; by characters, how many of the answer's are right."""
        if self.by == "character":
            said, true = ("".join(text.split()) for text in (completion, example.answer))
            if len(said) != len(true):  # a special token has no text: all behind it would be compared one place off
                raise TaskError(
                    f"{example.name}: the completion {said[:40]!r} has {len(said)} characters and the answer "
                    f"{len(true)}, so it is not known which stand at one place (a special token was committed, "
                    "say); use another metric"
                )
            return Score(sum(a == b for a, b in zip(said, true, strict=True)), len(true))
        if not self.extract:
            both = completion, example.answer
            said, true = (text.strip() if self.separator is not None else text.rstrip() for text in both)
            return Score(int(said == true), 1)
        said, true = self._found(completion), self._found(example.answer)
        return Score(int(said is not None and said == (_plain(example.answer) if true is None else true)), 1)

    def _found(self, text: str) -> str | None:
        """What the expression finds in a text; None for nothing."""
        found = matches(self.extract or "", text, full=self.match == "full")
        found = [said for each in found if (said := _plain(each))]
        return None if not found else found[0 if self.match == "first" else -1]

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """Every token of the answer."""
        return [True] * len(answer)

    def checker(self) -> Any:
        """What is compared."""
        checked = {"type": "Jsonl", "extract": self.extract or None, "match": self.match, "separator": self.separator}
        return checked if self.by == "answer" else {**checked, "by": self.by}


def check_separator(separator: str | None) -> None:
    """Raise for a separator that is more than white space.

    Raises:
        TaskError: quoting it.
    """
    if separator is not None and separator.strip():
        raise TaskError(f"separator={separator!r} must be white space, empty, or None (in files: as-written)")


def _plain(text: str) -> str:
    return text.strip().replace(",", "").rstrip(".")


class _Number(str):
    """A number as it is written: 1.50 stays 1.50."""


def _read(path: Path, name: str) -> tuple[Example, ...]:
    """The examples of a file; lines end with a line break and nothing else that Unicode calls one."""
    if not path.is_file():
        raise TaskError(f"task {str(path)!r} is no file that exists")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"task {str(path)!r} cannot be read as UTF-8: {error}") from error
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            examples.append(_example(line, f"{name}:{number}"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TaskError(
                f'{path}, line {number}: expected {{"prompt": "...", "answer": "..."}}, got {line[:80]!r} ({error})'
            ) from error
    if not examples:
        raise TaskError(f"{path} holds no examples")
    return tuple(examples)


def _example(line: str, name: str) -> Example:
    item = json.loads(
        line, parse_int=_Number, parse_float=_Number, parse_constant=_refused, object_pairs_hook=_each_once
    )
    if not isinstance(item, dict):
        raise TypeError("no object")
    missing = [key for key in ("prompt", "answer") if key not in item]
    if missing:
        raise KeyError(f"{missing[0]} is missing")
    prompt, answer = item["prompt"], item["answer"]
    if not isinstance(prompt, str) or isinstance(prompt, _Number):
        raise TypeError("the prompt is no text")
    if not isinstance(answer, str):
        raise TypeError("the answer is neither a text nor a number")
    if not answer.strip():
        raise ValueError("the answer is empty")
    for text in (prompt, answer):
        text.encode()  # half of a surrogate pair is no text
    return Example(str(prompt), str(answer), name)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice")
    return dict(pairs)
