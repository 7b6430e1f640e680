"""Users' regular expressions: read as Python's `re` reads them, and given up when one takes too long."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Literal, get_args

import regex

from sinklens.errors import TaskError

Match = Literal["last", "first", "full"]
# A brace that `re` takes as it is, and `regex` for a fuzzy match; before it what may hold one and is something else.
BRACE = re.compile(r"(\\N\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)
SECONDS = 5.0  # for one text; what ends takes milliseconds


def check_extract(extract: str | None, match: str) -> None:
    """Raise for an expression that cannot be read, or a match that is none.

    Raises:
        TaskError: quoting it.
    """
    _compiled(extract or "")
    if match not in get_args(Match):
        raise TaskError(f"match={match!r} is unknown; choose {', '.join(map(repr, get_args(Match)))}")
    if match != "last" and not extract:
        raise TaskError(f"match={match!r} says which match of extract is compared, and there is no extract")


def matches(extract: str, text: str, *, full: bool = False) -> list[str]:
    """What an expression finds in a text, from left to right: its first group, if it has one; "" if that took no part.

    Args:
        extract: The expression.
        text: The text.
        full: Only a match of the whole text, white space around it aside.

    Raises:
        TaskError: an expression that takes longer than 5 seconds for the text.
    """
    expression = _compiled(extract)
    try:
        if full:
            whole = expression.fullmatch(text.strip(), timeout=SECONDS)
            found = [] if whole is None else [whole]
        else:
            found = list(expression.finditer(text, timeout=SECONDS))
    except TimeoutError as error:
        raise TaskError(
            f"extract={extract!r} was not done with the {len(text)} characters {text[:60]!r} in {SECONDS:g} seconds; "
            "it tries one text in too many ways (a repetition of a repetition, as in (a+)+). Write it with one "
            "repetition, and what was computed before is kept"
        ) from error
    return [one[min(1, expression.groups)] or "" for one in found]


@lru_cache
def _compiled(extract: str) -> regex.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an expression that another Python reads otherwise
            re.compile(extract)
            return regex.compile(BRACE.sub(lambda found: found[1] or "\\{", extract), regex.VERSION0)
    except (re.error, regex.error, RecursionError, OverflowError, Warning) as error:
        raise TaskError(f"extract={extract!r} is no regular expression: {error}") from error
