"""Records: one xarray Dataset per run, with named dims, units in attributes and provenance.

Dims: prompt, step, layer, head, key. Keys are counted from each prompt's first real token, so key 0 is the same
token in a batch and alone; what a row does not have is nan (floats), -1 (integers) or "" (strings), never zero.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinklens.errors import RecordError
from sinklens.hooks import Canvas, Probe

SCHEMA = 1
ABOUT = {
    "token": ("id", "final token id of each position, -1 where the row is shorter"),
    "text": ("", "final token as text"),
    "prompt_length": ("tokens", "number of given tokens of each prompt"),
    "given": ("1/0", "1 where the position was given in the prompt"),
    "canvas": ("id", "token id before each step; the mask token where not yet committed"),
    "masked": ("1/0", "1 where the position is still to be committed before the step"),
    "commit_step": ("step", "step at which the position was committed; -1 for given positions"),
    "confidence": ("score", "the remasking rule's confidence in the committed token"),
    "predicted": ("id", "the token the model chose when the position was committed (differs from token if forced)"),
}


class Recorder:
    """Collects what a run measures, step by step, and turns it into a Dataset.

    Args:
        probes: The run's probes.
        starts: First real position of each row on the canvas.
    """

    def __init__(self, probes: Sequence[Probe], starts: Sequence[int]) -> None:
        self.probes, self.starts = list(probes), list(starts)
        self.measured: dict[str, list[np.ndarray]] = {probe.name: [] for probe in probes}
        self.coords: dict[str, Mapping[str, Any]] = {}
        self.canvases: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []

    def add(self, canvas: Canvas, active: Tensor, length: int, steps: int | None) -> None:
        """Keep one step: the canvas and every probe's values; rows that are done keep nothing.

        A step whose measurement fails is not kept at all.
        """
        measured: list[np.ndarray] = []
        for probe in self.probes:
            if not probe.where.at(canvas.step, steps):
                measured.append(np.empty(0))
                continue
            values = probe.values().float()
            keep = (canvas.valid & active[:, None]).to(values.device)
            if not {"query", "key"} & set(probe.dims):  # else every row that is done has no position to keep
                done = ~active.to(values.device)
                values = values.masked_fill(done.view(-1, *[1] * (values.ndim - 1)), float("nan"))
            for axis, dim in enumerate(probe.dims, start=1):
                if dim in ("query", "key"):  # a position is nan where the row has none, and counted from its start
                    shape = [len(values), *[1] * (values.ndim - 1)]
                    shape[axis] = values.shape[axis]
                    values = values.masked_fill(~keep.view(shape), float("nan")).movedim(axis, -1)
                    values = torch.from_numpy(self._left(values, None, length, np.nan)).movedim(-1, axis)
                    keep = keep.cpu()
            measured.append(values.cpu().numpy())
        real = canvas.valid & active[:, None]
        self.canvases.append(self._left(canvas.tokens, real, length, -1))
        self.masks.append(self._left(canvas.masked.long(), real, length, -1))
        for probe, values in zip(self.probes, measured, strict=True):
            self.measured[probe.name].append(values)
            if values.size:  # a probe forgets them when the next forward begins
                self.coords[probe.name] = getattr(probe, "coords", dict)()

    def _left(self, values: Tensor, keep: Tensor | None, length: int, fill: float) -> np.ndarray:
        """Move each row's first real position to index 0 and fill up to `length`."""
        source = values.cpu().numpy()
        if keep is not None:
            source = np.where(keep.cpu().numpy(), source, fill)
        if source.shape[-1] == length and not any(self.starts):
            return source.copy()
        out = np.full((*source.shape[:-1], length), fill, source.dtype)
        for row, start in enumerate(self.starts):
            width = min(source.shape[-1] - start, length)
            out[row, ..., :width] = source[row, ..., start : start + width]
        return out

    def dataset(
        self, final: Mapping[str, tuple[Tensor, float]], texts: list[list[str]], provenance: dict
    ) -> xr.Dataset:
        """The record of what was collected so far.

        Args:
            final: Per-position results [prompt, key on the canvas] with their fill value.
            texts: Token strings per row, aligned to the row's own positions.
            provenance: What made the numbers.
        """
        length = max((len(row) for row in texts), default=0)
        rows = len(self.starts)
        data: dict[str, Any] = {
            name: (("prompt", "key"), self._left(values, None, length, fill)) for name, (values, fill) in final.items()
        }
        data["text"] = (("prompt", "key"), np.array([row + [""] * (length - len(row)) for row in texts], dtype=object))
        data["prompt_length"] = ("prompt", (data["given"][1] == 1).sum(-1))
        if self.canvases:
            data["canvas"] = (("prompt", "step", "key"), np.stack(self.canvases, 1).astype(np.int32))
            data["masked"] = (("prompt", "step", "key"), np.stack(self.masks, 1).astype(np.int8))
        measured: list[xr.DataArray] = []
        for probe in self.probes:
            steps = self.measured[probe.name]
            shape = next((step.shape for step in steps if step.size), None)
            if shape is None:
                continue
            filled = [step if step.size else np.full(shape, np.nan, np.float32) for step in steps]
            stacked = np.stack(filled, 1)
            dims = ("prompt", "step", *probe.dims)
            measured.append(xr.DataArray(stacked, dims=dims, coords=self.coords[probe.name], name=probe.name))
        dataset = xr.merge([xr.Dataset(data), *measured], join="outer", compat="equals")
        for dim in ("prompt", "step", "layer", "head", "key"):
            if dim in dataset.dims and dim not in dataset.coords:
                dataset = dataset.assign_coords({dim: np.arange(dataset.sizes[dim])})
        for name, variable in dataset.data_vars.items():
            unit, definition = ABOUT.get(str(name), ("", ""))
            variable.attrs.update(units=unit, definition=definition)
        for probe in self.probes:
            if probe.name in dataset:
                dataset[probe.name].attrs.update(units=probe.unit, definition=probe.definition)
        dataset.attrs.update(sinklens_schema=SCHEMA, provenance=json.dumps(provenance), prompts=rows)
        return dataset


def provenance(dlm: Any, **more: Any) -> dict[str, Any]:
    """Model, versions, dtype and device that made a record, and whatever else the run adds."""
    packages = ("sinklens", "torch", "transformers", "transformer-lens")
    return {
        "model": dlm.name,
        "revision": dlm.revision,
        "family": dlm.family.name,
        "dtype": str(dlm.dtype).removeprefix("torch."),
        "device": str(dlm.device),
        "causal": dlm.is_causal,
        "versions": {package: _version(package) for package in packages},
        **more,
    }


_version = lru_cache(importlib.metadata.version)


def save(record: xr.Dataset, path: str | Path) -> Path:
    """Write a record as netCDF, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    encoding = {
        name: {"zlib": True, "complevel": 4} for name, v in record.data_vars.items() if v.dtype.kind in "fiu" and v.ndim
    }
    try:
        record.to_netcdf(partial, engine="h5netcdf", encoding=encoding)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def open(path: str | Path) -> xr.Dataset:
    """Read a record into memory.

    Raises:
        RecordError: no such file, a truncated file, or one that is no sinklens record.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"there is no record at {str(path)!r}")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            record = stored.load()
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{str(path)!r} cannot be read as netCDF (truncated or foreign): {error}") from error
    if "sinklens_schema" not in record.attrs:
        raise RecordError(
            f"{str(path)!r} is a netCDF file, but no sinklens record: it has no sinklens_schema attribute"
        )
    return record


def concat(records: Sequence[xr.Dataset]) -> xr.Dataset:
    """Several records as one, along the prompts; shorter ones are filled up as padding is (nan, -1, "").

    Raises:
        RecordError: nothing to join, or records of different models or with different variables.
    """
    if not records:
        raise RecordError("concat needs at least one record")
    models = {json.loads(record.attrs["provenance"])["model"] for record in records}
    if len(models) > 1:
        raise RecordError(f"records of different models cannot be joined: {', '.join(sorted(models))}")
    names = [set(map(str, record.data_vars)) for record in records]
    if any(other != names[0] for other in names):
        odd = set.union(*names) - set.intersection(*names)
        raise RecordError(f"records with different variables cannot be joined; not all have {', '.join(sorted(odd))}")
    fill = {
        name: {"f": np.nan, "i": -1, "u": 0}.get(variable.dtype.kind, "")
        for name, variable in records[0].data_vars.items()
    }
    joined = xr.concat(
        [record.drop_vars("prompt", errors="ignore") for record in records],
        dim="prompt",
        join="outer",
        fill_value=fill,
        combine_attrs="drop_conflicts",
    )
    joined = joined.assign_coords(prompt=np.arange(joined.sizes["prompt"]))
    parts = [json.loads(record.attrs["provenance"]) for record in records]
    return joined.assign_attrs(
        sinklens_schema=SCHEMA, prompts=joined.sizes["prompt"], provenance=json.dumps(parts[0] | {"joined": parts})
    )


def seeds_for(seed: int | Sequence[int], rows: int) -> tuple[int, ...]:
    """One seed per row: the same for all, so that a row's result does not depend on its batch."""
    if isinstance(seed, int | np.integer):
        return (int(seed),) * rows
    if len(seed) != rows:
        raise ValueError(f"seed has {len(seed)} entries for {rows} prompts; give one integer, or one per prompt")
    return tuple(int(value) for value in seed)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as numpy, bfloat16 as float32."""
    return tensor.detach().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).cpu().numpy()


class Rows:
    """Finds the rows of a canvas in a record, by the tokens and places of their prompts.

    Args:
        record: The record.
    """

    def __init__(self, record: xr.Dataset) -> None:
        made = json.loads(record.attrs.get("provenance", "{}"))
        seed = made.get("seed", 0)
        token, given = record["token"].to_numpy(), record["given"].to_numpy() == 1
        seeds = seed if isinstance(seed, list) else [seed] * len(token)
        self._known: dict[tuple, list[tuple[int, int]]] = {}
        self._found: tuple[Tensor | None, list[tuple[int, int]]] = (None, [])
        for row, (tokens, places) in enumerate(zip(token, given, strict=True)):
            name = (tuple(np.flatnonzero(places).tolist()), tuple(tokens[places].tolist()))
            self._known.setdefault(name, []).append((row, int(seeds[row])))

    def remember(self, canvas: Canvas) -> None:
        """Find the rows of a run's first canvas, for all its steps: a baseline shows later canvases only in part."""
        self._found = (canvas.tokens, self.find(canvas))

    def find(self, canvas: Canvas) -> list[tuple[int, int]]:
        """For each row of the canvas: its row in the record, and its first real position on the canvas.

        A canvas that continues the one that was remembered has its rows.

        Raises:
            RecordError: a prompt that the record does not hold, or holds several times with no seed to tell.
        """
        first, rows = self._found
        if first is not None and len(first) == len(canvas.tokens):
            width = canvas.tokens.shape[1]
            if width <= first.shape[1]:
                given = canvas.prompt & canvas.valid
                if bool((first[:, :width].to(given.device) == canvas.tokens)[given].all()):
                    return rows
        found = []
        seeds = canvas.seeds or (0,) * len(canvas.tokens)
        parts = (canvas.tokens, canvas.prompt & canvas.valid, canvas.valid)
        for row, (tokens, places, valid) in enumerate(zip(*(part.cpu().numpy() for part in parts), strict=True)):
            start = int(valid.argmax())
            name = (tuple((np.flatnonzero(places) - start).tolist()), tuple(tokens[places].tolist()))
            matches = self._known.get(name, [])
            if len(matches) > 1:
                matches = [match for match in matches if match[1] == seeds[row]]
            if len(matches) != 1:
                what = "is not in the record" if not matches else f"is {len(matches)} times in the record"
                raise RecordError(f"the prompt of row {row} (tokens {tokens[places].tolist()[:12]} ...) {what}")
            found.append((matches[0][0], start))
        return found
