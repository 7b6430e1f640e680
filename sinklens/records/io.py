"""Records as files, and several as one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from sinklens import files
from sinklens.errors import RecordError
from sinklens.records.checksum import CHECKSUM, checksum
from sinklens.records.provenance import made
from sinklens.records.schema import SCHEMA


def save(record: xr.Dataset, path: str | Path) -> Path:
    """Write a record as netCDF, whole or not at all, with a checksum of its content.

    Args:
        record: A record, also one that you selected from or added to.
        path: The file; its folder is made if need be. A record that is there is replaced, any other file is not.

    Raises:
        RecordError: no record, or one with something that netCDF has no form for.
        SaveError: the file cannot be written, or is there and no record.
    """
    return files.write_bytes(path, netcdf(record), files.RECORD)


def netcdf(record: xr.Dataset) -> bytes:
    """A record as the bytes of a netCDF file. In memory first: the library that writes them cannot fail halfway.

    Raises:
        RecordError: as in `save`.
    """
    if "sinklens_schema" not in record.attrs:
        raise RecordError(
            "this is no sinklens record: it has no sinklens_schema attribute. Much of xarray drops attributes; "
            "xr.set_options(keep_attrs=True) keeps them"
        )
    odd = [f"{name} ({v.dtype})" for name, v in record.variables.items() if v.dtype.kind not in "biufOSUT"]
    if odd:
        raise RecordError(f"a record holds numbers, truth values and texts, and not {', '.join(odd)}")
    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in record.variables.items():
        numbers = variable.dtype.kind in "fiu"
        encoding[name] = {"_FillValue": None} if numbers else {}
        if numbers and name in record.data_vars and variable.ndim and variable.size:
            encoding[name] |= {"zlib": True, "complevel": 4}
    whole = record.drop_encoding().assign_attrs(sinklens_schema=SCHEMA)
    try:
        whole = whole.assign_attrs({CHECKSUM: checksum(whole)})
        return bytes(whole.to_netcdf(engine="h5netcdf", encoding=encoding))
    except Exception as error:
        raise RecordError(f"this record cannot be written as netCDF: {error}") from error


def open(path: str | Path, *, check: bool = True) -> xr.Dataset:
    """Read a record into memory.

    Args:
        path: The file.
        check: Refuse what was changed since sinklens wrote it. Without, what can be read is taken as it is, also from a
            record that another program changed, or that an older sinklens wrote without a checksum; `save` writes one.

    Raises:
        RecordError: no such file, a truncated or damaged one, one that is no sinklens record, or one of a newer
            sinklens.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"there is no record at {str(path)!r}")
    try:
        content = io.BytesIO(path.read_bytes())
        with h5py.File(content, "r") as raw:  # first, for h5netcdf prints a traceback of its own if it cannot
            dict(raw.attrs)
        with xr.open_dataset(content, engine="h5netcdf", mask_and_scale=not check, decode_times=False) as stored:
            record = stored.load().drop_encoding()
    except Exception as error:  # whatever a library says of bytes that it did not expect
        raise RecordError(f"{str(path)!r} cannot be read as netCDF (truncated or foreign): {error}") from error
    if "sinklens_schema" not in record.attrs:
        raise RecordError(
            f"{str(path)!r} is a netCDF file, but no sinklens record: it has no sinklens_schema attribute"
        )
    if check:
        _check(record, path)
    return record.drop_attrs(deep=False).assign_attrs({k: v for k, v in record.attrs.items() if k != CHECKSUM})


def _check(record: xr.Dataset, path: Path) -> None:
    schema = record.attrs["sinklens_schema"]
    if not isinstance(schema, int | np.integer) or not 1 <= schema <= SCHEMA:
        newer = isinstance(schema, int | np.integer) and schema > SCHEMA
        whose = "was written by a newer sinklens; update sinklens" if newer else "no sinklens wrote"
        raise RecordError(f"{str(path)!r} has sinklens_schema={schema!r}, which {whose}. This one knows {SCHEMA}")
    ask = f"sinklens.open({str(path)!r}, check=False) takes it as it is"
    if CHECKSUM not in record.attrs:
        raise RecordError(f"{str(path)!r} has no checksum: an older sinklens wrote it, or it was changed; {ask}")
    if str(record.attrs[CHECKSUM]) != checksum(record):
        raise RecordError(
            f"{str(path)!r} is not what sinklens wrote: its checksum is another. It is damaged, or another program "
            f"changed it; {ask}, and sinklens.save writes a new checksum"
        )


def concat(records: Sequence[xr.Dataset]) -> xr.Dataset:
    """Several records as one, along the prompts; shorter ones are filled up as padding is (nan, -1, "").

    Raises:
        RecordError: nothing to join, or records of different models or with different variables.
    """
    if not records:
        raise RecordError("concat needs at least one record")
    origins = [made(record) for record in records]
    models = {str(origin.get("model")) for origin in origins}
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
    finished = all(origin.get("finished", True) for origin in origins)
    provenance = origins[0] | {"seed": seeds, "joined": origins, "finished": finished}
    return joined.assign_attrs(
        sinklens_schema=SCHEMA,
        prompts=joined.sizes["prompt"],
        provenance=json.dumps(provenance),
        finished=int(finished),
    )


def seeds_of(record: xr.Dataset) -> list[int]:
    """The seed of each prompt of a record; 0 where it does not say."""
    seed: Any = made(record).get("seed", 0)
    return list(seed) if isinstance(seed, list) else [seed] * record.sizes["prompt"]
