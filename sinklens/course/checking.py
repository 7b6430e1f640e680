"""`check`: the exercises by number, and what is said of an answer."""

from __future__ import annotations

import html
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sinklens.course.answers import Wrong
from sinklens.errors import CourseError

CHAPTERS = 6


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: Its number, "3.2": chapter and exercise.
        asks: What an answer is, with shape and unit.
        judge: Returns what to say of a right answer, and raises `Wrong` with what is wrong with another one.
    """

    name: str
    asks: str
    judge: Callable[[Any], str]


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer; true if it is right."""

    exercise: str
    right: bool
    says: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{self.exercise} {'right' if self.right else 'not yet'}: {self.says}"

    def _repr_html_(self) -> str:
        colour, word = ("#00876c", "right") if self.right else ("#e69f00", "not yet")
        return (
            f'<div style="border-left: 4px solid {colour}; padding: 2px 10px; color: inherit; max-width: 72em">'
            f"<b>{html.escape(self.exercise)} {word}</b>: {html.escape(self.says)}</div>"
        )


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, asks: str) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Put a judge under its number; see `Exercise`."""

    def register(judge: Callable[[Any], str]) -> Callable[[Any], str]:
        if name in EXERCISES:
            raise CourseError(f"there are two exercises {name}")
        EXERCISES[name] = Exercise(name, asks, judge)
        return judge

    return register


def check(name: str, answer: Any = None) -> Verdict:
    """Say whether an answer to an exercise of the course is right, and if not, what is wrong with it.

    Args:
        name: The exercise's number, such as "3.2".
        answer: The answer: a number, an array (torch, numpy, xarray), a function, an edit, a word, as the exercise
            asks. None is no answer yet.

    Returns:
        A `Verdict`: true if right; shown as one line, in notebooks as a coloured one.

    Raises:
        CourseError: no such exercise.

    Example:
        >>> import sinklens as sl
        >>> sl.course.check("1.1")
        1.1 not yet: no answer so far; it asks for what each key of layer 0 receives, ...
    """
    known = _of(name)
    if answer is None or answer is ...:
        return Verdict(name, False, f"no answer so far; it asks for {known.asks}")
    try:
        return Verdict(name, True, known.judge(answer))
    except Wrong as wrong:
        return Verdict(name, False, str(wrong))


def _of(name: str) -> Exercise:
    """The exercise of this number; its chapter is imported when it is first asked for."""
    chapter = str(name).split(".")[0]
    if not (chapter.isdigit() and 1 <= int(chapter) <= CHAPTERS):
        raise CourseError(f"there is no exercise {name!r}; chapters are 1 to {CHAPTERS}, as in check('3.2', answer)")
    importlib.import_module(f"sinklens.course.chapter{chapter}")
    if name not in EXERCISES:
        there = ", ".join(each for each in EXERCISES if each.startswith(f"{chapter}."))
        raise CourseError(f"there is no exercise {name!r}; chapter {chapter} has {there}")
    return EXERCISES[name]
