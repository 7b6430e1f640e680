"""What a record holds: names, dims, units, and the one place where arrays become a Dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

SCHEMA = 2  # 1 had no checksum

# Dims that count from 0 unless a variable names what it measured. "prompt" and "step" are in every measurement.
DIMS = {
    "prompt": "prompts of the run, in order",
    "step": "denoising steps",
    "block": "blocks of a model that sees block by block, as it counts them: their store events",
    "layer": "layers",
    "head": "query heads",
    "kv_head": "key heads",
    "query": "positions that look, counted from the prompt's first real token",
    "key": "positions, counted from the prompt's first real token: key 0 is the same token in a batch and alone",
    "position": "positions that are patched, counted likewise",
}


@dataclass(frozen=True)
class Variable:
    """A variable that every record has.

    Attributes:
        dims: Its dims.
        unit: Its unit.
        definition: What its numbers mean.
        dtype: How it is stored.
        missing: What stands where a prompt has no such position or step.
    """

    dims: tuple[str, ...]
    unit: str
    definition: str
    dtype: type
    missing: float | str = -1


VARIABLES: dict[str, Variable] = {
    "token": Variable(
        ("prompt", "key"), "id", "final token id of each position, -1 where the row is shorter", np.int32
    ),
    "given": Variable(("prompt", "key"), "1/0", "1 where the position was given in the prompt", np.int8),
    "commit_step": Variable(
        ("prompt", "key"),
        "step",
        "step at which the position was committed, for the last time; -1 for given positions",
        np.int32,
    ),
    "predicted": Variable(
        ("prompt", "key"),
        "id",
        "the token the model chose when the position was committed (differs from token if forced)",
        np.int32,
    ),
    "confidence": Variable(
        ("prompt", "key"), "score", "the remasking rule's confidence in the committed token", np.float32, np.nan
    ),
    "text": Variable(("prompt", "key"), "", "final token as text (a NUL is \u2400)", object, ""),
    "prompt_length": Variable(("prompt",), "tokens", "number of given tokens of each prompt", np.int64),
    "canvas": Variable(
        ("prompt", "step", "key"),
        "id",
        "token id before each step; the mask token where not yet committed",
        np.int32,
    ),
    "masked": Variable(
        ("prompt", "step", "key"), "1/0", "1 where the position is still to be committed before the step", np.int8
    ),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """What a probe measured, laid out for a record.

    Attributes:
        name: The record variable.
        values: float32 [prompt, step or block, *dims]; nan where nothing was measured.
        dims: After prompt and step.
        unit: The unit.
        definition: What the numbers mean.
        coords: Of dims that do not count from 0.
        attributes: What is said beside unit and definition, such as whose attention counted.
        along: "step", or "block" for what was measured at store events.
    """

    name: str
    values: np.ndarray
    dims: tuple[str, ...]
    unit: str
    definition: str
    coords: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    along: str = "step"


def dataset(
    values: Mapping[str, np.ndarray], measured: Sequence[Measured], provenance: Mapping[str, Any]
) -> xr.Dataset:
    """A record.

    Args:
        values: The variables of every record (`VARIABLES`) except prompt_length, which follows from "given".
        measured: What the probes measured. Layers or heads that only some of them measured are nan in the others.
        provenance: What made the numbers.
    """
    values = {**values, "prompt_length": (values["given"] == 1).sum(-1)}
    data = {
        name: (variable.dims, values[name].astype(variable.dtype), _about(variable.unit, variable.definition))
        for name, variable in VARIABLES.items()
    }
    parts = [
        xr.DataArray(
            variable.values.astype(np.float32),
            dims=("prompt", variable.along, *variable.dims),
            coords={
                **_counted(dict(zip(("prompt", variable.along, *variable.dims), variable.values.shape, strict=True))),
                **variable.coords,
            },
            name=variable.name,
            attrs={**_about(variable.unit, variable.definition), **variable.attributes},
        )
        for variable in measured
    ]
    record = xr.Dataset(data)
    record = record.assign_coords(_counted({str(dim): size for dim, size in record.sizes.items()}))
    attrs = {"sinklens_schema": SCHEMA, "provenance": json.dumps(provenance), "prompts": record.sizes["prompt"]}
    attrs |= {"finished": int(provenance["finished"])} if "finished" in provenance else {}
    return xr.merge([record, *parts], join="outer", compat="equals").assign_attrs(attrs)


def contents(record: xr.Dataset) -> pd.DataFrame:
    """What a record holds, to read: columns variable, dims (with sizes), unit, definition; first what was measured."""
    names = sorted(map(str, record.data_vars), key=lambda name: name in VARIABLES)
    lines = []
    for name in names:
        dims = ", ".join(f"{dim} {size}" for dim, size in record[name].sizes.items())
        lines.append((name, dims, *(str(record[name].attrs.get(said, "")) for said in ("units", "definition"))))
    return pd.DataFrame(lines, columns=["variable", "dims", "unit", "definition"])


def _about(unit: str, definition: str) -> dict[str, Any]:
    return {"units": unit, "definition": definition}


def _counted(sizes: Mapping[str, int]) -> dict[str, Any]:
    return {dim: np.arange(size) for dim, size in sizes.items() if dim in DIMS}
