"""The registry of docs/compose.md: tools of TransformerLens, each with a check that runs it on every model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compose.cases import Case, case

from sinklens.errors import SinklensError

Check = Callable[[Case], Any]


@dataclass(frozen=True)
class Tool:
    """A row: what is run, which public names it stands for, and what its numbers are compared with.

    Attributes:
        room: The heading that it stands under.
        name: As the page shows it.
        covers: Public names of TransformerLens that the check calls.
        how: What the check compares with.
        check: Fails by AssertionError where a number is wrong; a refusal is an error of sinklens's.
    """

    room: str
    name: str
    covers: tuple[str, ...]
    how: str
    check: Check


TOOLS: list[Tool] = []


def tool(room: str, name: str, how: str, *covers: str) -> Callable[[Check], Check]:
    """Register the check of a tool; it covers its own name and those given."""

    def register(check: Check) -> Check:
        TOOLS.append(Tool(room, name, (name, *covers), how, check))
        return check

    return register


class Told(Exception):
    """TransformerLens's own refusal: a check raises it where TransformerLens itself says no, and says why.

    Args:
        error: What TransformerLens says.
        instead: What to do, where that does not say it.
    """

    def __init__(self, error: Any, instead: str = "") -> None:
        super().__init__(f"{error}".rstrip(".") + (f"; {instead}" if instead else ""))


def told(error: Exception, *words: str, instead: str = "") -> Told:
    """TransformerLens's refusal, if its message has one of the words; else the error goes on."""
    if not any(word in str(error) for word in words):
        raise error
    return Told(error, instead)


def state(found: Tool, column: str) -> str:
    """What a tool does on a model: "right", or what the refusal says. Anything else is raised.

    Raises:
        AssertionError: a wrong number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found.check(case(column))
        except SinklensError as error:
            return f"{type(error).__name__}: {error}"
        except Told as error:
            return f"TransformerLens: {error}"
    return "right"
