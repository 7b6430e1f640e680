"""What an interrupt must not break. KeyboardInterrupt may fall between any two instructions, also of a `finally`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")


def surely(body: Callable[[], R], undo: Callable[[], object]) -> R:
    """What `body` gives; afterwards all of `undo` is done, even if an interrupt falls into it.

    `with` does not do that: an interrupt in its `__exit__` leaves the rest undone.

    Args:
        body: What is done, from the first change on.
        undo: Takes back whatever was changed so far; it is done twice, and the second time must change nothing.
    """
    try:
        try:
            return body()
        finally:
            undo()
    finally:
        undo()


def again(make: Callable[[], R]) -> R:
    """What `make` gives, which nobody wants to lose: interrupted, it is begun once more until it is done."""
    while True:
        try:
            return make()
        except KeyboardInterrupt:
            continue
