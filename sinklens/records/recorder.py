"""How a run fills its record: step by step, every position counted from its prompt's first real token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.hooks import Canvas, Probe
from sinklens.records.schema import VARIABLES, Measured, dataset

POSITIONS = ("query", "key")  # dims along which positions lie


class _Kept(NamedTuple):
    """One step, kept at once, so that an interrupt leaves all of it or nothing."""

    tokens: np.ndarray
    masked: np.ndarray
    values: list[np.ndarray | None]
    coords: Sequence[Mapping[str, Any] | None]


class _Event(NamedTuple):
    """One store event: the step that brought it, the block of each row, and what each probe saw."""

    step: int
    number: np.ndarray
    values: list[Any]
    coords: Sequence[Any]


class Recorder:
    """Collects what a run measures, step by step, and turns it into a Dataset.

    Args:
        probes: The run's probes.
        starts: First real position of each row on the canvas.
        length: Positions of the longest row.
    """

    def __init__(self, probes: Sequence[Probe], starts: Sequence[int], length: int) -> None:
        self.probes, self.starts, self.length = list(probes), list(starts), length
        self._steps: list[_Kept] = []
        self._stored: list[_Event] = []

    def add(self, canvas: Canvas, active: Bool[Tensor, " batch"], seen: Sequence[dict[Any, Any] | None]) -> None:
        """Keep one step: the canvas and every probe's values; rows that are done keep nothing.

        A step whose measurement fails is not kept at all.

        Args:
            canvas: What the forward saw.
            active: Rows that were still being decoded.
            seen: What each probe's hooks saw; None at a step outside its scope.
        """
        real = canvas.valid & active[:, None]
        pairs = list(zip(self.probes, seen, strict=True))
        values = [None if shown is None else self._laid_out(probe, shown, real) for probe, shown in pairs]
        coords = [None if shown is None else probe.coords(shown) for probe, shown in pairs]
        tokens = self._from_start(canvas.tokens.masked_fill(~real, -1), -1)
        masked = self._from_start(canvas.masked.to(torch.int8).masked_fill(~real, -1), -1)
        self._steps.append(_Kept(tokens, masked, values, coords))

    def store(
        self, canvas: Canvas, number: Int[Tensor, " batch"], step: int, seen: Sequence[dict[Any, Any] | None]
    ) -> None:
        """Keep one store event (`decoding.step.Stored`), which the step brought."""
        real = canvas.valid & canvas.rows[:, None]
        pairs = list(zip(self.probes, seen, strict=True))
        values = [None if shown is None else self._laid_out(probe, shown, real) for probe, shown in pairs]
        coords = [None if shown is None else probe.coords(shown) for probe, shown in pairs]
        self._stored.append(_Event(step, number.cpu().numpy(), values, coords))

    def dataset(
        self,
        final: Mapping[str, Tensor],
        texts: Sequence[Sequence[str]],
        provenance: Mapping[str, Any],
        steps: int | None = None,
    ) -> xr.Dataset:
        """The record of what was collected.

        Args:
            final: "token", "given", "commit_step", "predicted" and "confidence" [prompt, position on the canvas].
            texts: Token strings per row, aligned to the row's own positions.
            provenance: What made the numbers.
            steps: The first so many steps; an interrupt may have left one that the run does not count. None: all.
        """
        kept, none = self._steps[:steps], np.empty((len(self.starts), 0, self.length))
        values = {name: self._from_start(tensor, VARIABLES[name].missing) for name, tensor in final.items()}
        shown = [[text.replace("\0", "\u2400") for text in row] for row in texts]  # netCDF has no text with a NUL in it
        values["text"] = np.array([[*row, *[""] * (self.length - len(row))] for row in shown], dtype=object)
        values["canvas"] = np.stack([step.tokens for step in kept], 1) if kept else none
        values["masked"] = np.stack([step.masked for step in kept], 1) if kept else none
        measured = []
        events = [event for event in self._stored if steps is None or event.step < steps]
        for index, probe in enumerate(self.probes):
            if probe.where.event == "store":
                measured += _by_block(probe, index, events)
                continue
            stacked = _stacked([step.values[index] for step in kept])
            coords = next((known for step in reversed(kept) if (known := step.coords[index]) is not None), {})
            if stacked is not None:
                about = (tuple(probe.dims), probe.unit, probe.definition, coords, probe.attributes())
                measured.append(Measured(probe.name, stacked, *about))
        return dataset(values, measured, provenance)

    def _laid_out(self, probe: Probe, seen: dict[Any, Any], real: Bool[Tensor, "batch pos"]) -> np.ndarray:
        """A probe's values of a step; nan where a row has no such position, or is done."""
        values = probe.values(seen).float().cpu()
        real = real.cpu()
        along = [axis for axis, dim in enumerate(probe.dims, start=1) if dim in POSITIONS]
        for axis in along:
            shape = [len(values), *[1] * (values.ndim - 1)]
            shape[axis] = values.shape[axis]
            values = values.masked_fill(~real.view(shape), float("nan")).movedim(axis, -1)
            values = torch.from_numpy(self._from_start(values, float("nan"))).movedim(-1, axis)
        if not along:  # else every row that is done has no position to keep
            values = values.masked_fill(~real.any(-1).view(-1, *[1] * (values.ndim - 1)), float("nan"))
        return values.numpy()

    def _from_start(self, values: Tensor, missing: Any) -> np.ndarray:
        """Each row's first real position moved to index 0, and filled up to `length`."""
        source = (values.to(torch.int8) if values.dtype == torch.bool else values).cpu().numpy()
        out = np.full((*source.shape[:-1], self.length), missing, source.dtype)
        for row, start in enumerate(self.starts):
            width = min(source.shape[-1] - start, self.length)
            out[row, ..., :width] = source[row, ..., start : start + width]
        return out


def _by_block(probe: Probe, index: int, events: Sequence[_Event]) -> list[Measured]:
    """What a probe saw of store events [prompt, block, ...]; nan where a row had none of that number."""
    if not events:
        return []
    known, blocks = events[0].values[index], 1 + max(int(event.number.max()) for event in events)
    if known is None:
        return []
    out = np.full((len(known), blocks, *known.shape[1:]), np.nan, known.dtype)
    for event in events:
        for row, number in enumerate(event.number):
            if number >= 0:
                out[row, number] = event.values[index][row]
    about = (tuple(probe.dims), probe.unit, probe.definition, events[0].coords[index], probe.attributes())
    return [Measured(probe.name, out, *about, along="block")]


def _stacked(steps: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Steps along axis 1, nan at those outside the probe's scope; None if none was measured."""
    known = next((step for step in steps if step is not None), None)
    if known is None:
        return None
    return np.stack([np.full_like(known, np.nan) if step is None else step for step in steps], 1)
