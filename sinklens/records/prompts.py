"""Which prompts of a record a batch holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from sinklens.errors import RecordError
from sinklens.hooks import Canvas
from sinklens.records.io import seeds_of
from sinklens.values.arrays import in_order


class Found(NamedTuple):
    """A row of a batch in a record.

    Attributes:
        prompt: Its index in the record.
        start: Where the row begins on the canvas: the record's key 0.
    """

    prompt: int
    start: int


class PromptIndex:
    """Finds a batch's rows among the prompts of a record, by their given tokens and places; holds no state of a run.

    Args:
        record: The record.
    """

    def __init__(self, record: xr.Dataset) -> None:
        record = in_order(record)
        token, given = record["token"].to_numpy(), record["given"].to_numpy() == 1
        self._known: dict[tuple, list[tuple[int, int]]] = {}
        for prompt, seed in enumerate(seeds_of(record)):
            places = np.flatnonzero(given[prompt])
            self._known.setdefault(_name(token[prompt], places, 0), []).append((prompt, seed))

    def find(self, canvas: Canvas) -> list[Found]:
        """For each row of a canvas: its prompt in the record, and where it begins on the canvas.

        A baseline that fills gaps shows later canvases only in part; `memory.start` is the whole one.

        Raises:
            RecordError: a prompt that the record does not hold, or holds several times with no seed to tell.
        """
        seeds = canvas.seeds or (0,) * len(canvas.tokens)
        parts = (canvas.tokens, canvas.positions("prompt"), canvas.valid)
        rows = []
        for row, (tokens, given, valid) in enumerate(zip(*(part.cpu().numpy() for part in parts), strict=True)):
            start, places = int(valid.argmax()), np.flatnonzero(given)
            matches = self._known.get(_name(tokens, places, start), [])
            if len(matches) > 1:
                matches = [match for match in matches if match[1] == seeds[row]]
            if len(matches) != 1:
                what = "is not in the record" if not matches else f"is {len(matches)} times in the record"
                raise RecordError(f"the prompt of row {row} (tokens {tokens[places].tolist()[:12]} ...) {what}")
            rows.append(Found(matches[0][0], start))
        return rows


def _name(tokens: np.ndarray, places: np.ndarray, start: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple((places - start).tolist()), tuple(tokens[places].tolist())
