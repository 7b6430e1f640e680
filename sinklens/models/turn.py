"""Whose turn it is: one thread at a time runs a transformers model, or hooks it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from sinklens.interrupts import surely
from sinklens.models.calls import Around

R = TypeVar("R")


class Turn:
    """Which thread runs or hooks a transformers model, and whose forward is running; several bridges may wrap it."""

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        self.owner: Any = None

    def held(self, body: Callable[[], R]) -> R:
        """What `body` gives while other threads wait."""
        if self.lock._is_owned():  # asked of the lock itself: an interrupt may fall behind `acquire`
            return body()

        def within() -> R:
            self.lock.acquire()
            return body()

        return surely(within, lambda: self.lock.release() if self.lock._is_owned() else None)


_TURNS: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()


def turn_of(model: nn.Module) -> Turn:
    """The one turn of a transformers model."""
    return _TURNS.setdefault(model, Turn())


class Held(Around):
    """A transformers model whose calls wait for other threads' forwards and hooks, and hold them back."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        inner = super().__call__
        return turn_of(self).held(lambda: inner(*args, **kwargs))
