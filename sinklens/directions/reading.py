"""Directions read once: what an edit uses at every forward, and what tells one direction from another."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sinklens.directions.direction import DIRECTION, Direction


def load(path: str) -> tuple[Direction, str]:
    """A direction and its digest, read once for as long as its files stay as they are.

    Raises:
        DirectionError: as in `Direction.load`.
    """
    return _read(path, DIRECTION.stamps(Path(path)))


@lru_cache(maxsize=64)
def _read(path: str, stamps: tuple[tuple[int, ...] | None, ...]) -> tuple[Direction, str]:
    direction = Direction.load(path)
    return direction, direction.digest
