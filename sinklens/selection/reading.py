"""Gates read once: what an edit uses at every forward, and what tells one gate from another."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sinklens.selection.gate import Gate
from sinklens.selection.places import AUTO, find, names
from sinklens.selection.storing import GATE
from sinklens.values import digest


def load(path: str, model: Any = None) -> Gate:
    """A gate as `find` finds it, read once for as long as its files stay as they are; not to be changed.

    Raises:
        GateError: as in `Gate.load`.
    """
    gate, _ = _found(path, model)
    if model is not None:
        gate.check(model)
    return gate


def mark(path: str) -> str:
    """What tells a gate from others: the digest of its content; of "auto" that of all gates that come with sinklens."""
    return digest([_found(name)[1] for name in names()]) if path == AUTO else _found(path)[1]


def _found(path: str, model: Any = None) -> tuple[Gate, str]:
    folder = find(path, model)
    return _read(folder, GATE.stamps(folder))


@lru_cache(maxsize=64)
def _read(folder: Path, stamps: tuple[tuple[int, ...] | None, ...]) -> tuple[Gate, str]:
    gate = Gate.load(folder)
    return gate, gate.digest
