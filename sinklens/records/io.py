"""Records as files, and several as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinklens.errors import RecordError
from sinklens.files import whole
from sinklens.records.schema import SCHEMA


def save(record: xr.Dataset, path: str | Path) -> Path:
    """Write a record as netCDF, whole or not at all."""
    encoding = {
        name: {"zlib": True, "complevel": 4}
        for name, variable in record.data_vars.items()
        if variable.dtype.kind in "fiu" and variable.ndim and variable.size
    }
    with whole(path) as partial:
        record.to_netcdf(partial, engine="h5netcdf", encoding=encoding)
    return Path(path)


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
    origins = [json.loads(record.attrs["provenance"]) for record in records]
    models = {origin["model"] for origin in origins}
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
    seeds = [seed for record in records for seed in seeds_of(record)]
    provenance = origins[0] | {"seed": seeds, "joined": origins}
    return joined.assign_attrs(
        sinklens_schema=SCHEMA, prompts=joined.sizes["prompt"], provenance=json.dumps(provenance)
    )


def seeds_of(record: xr.Dataset) -> list[int]:
    """The seed of each prompt of a record; 0 where it does not say."""
    seed: Any = json.loads(record.attrs.get("provenance", "{}")).get("seed", 0)
    return list(seed) if isinstance(seed, list) else [seed] * record.sizes["prompt"]
