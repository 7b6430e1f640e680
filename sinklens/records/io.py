"""Records as files, and several as one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinklens import files
from sinklens.errors import RecordError, Unchecked
from sinklens.records import forms
from sinklens.records.checksum import CHECKSUM, checksum
from sinklens.records.provenance import made
from sinklens.records.schema import SCHEMA


def save(record: xr.Dataset, path: str | Path) -> Path:
    """Write a record, whole or not at all, with a checksum of its content: netCDF, or zarr if the name ends in ".zarr".

    xarray reads both (`xr.open_dataset`), and `open` reads what xarray's `to_netcdf` and `to_zarr` wrote.

    Args:
        record: A record, also one that you selected from or added to.
        path: The file; its folder is made if need be. A record that is there is replaced, any other file is not, and
            no zarr folder ever is.

    Raises:
        RecordError: no record, or one with something that netCDF or zarr has no form for.
        SaveError: the file cannot be written, or is there and no record.
    """
    if "sinklens_schema" not in record.attrs:
        raise RecordError(
            "this is no sinklens record: it has no sinklens_schema attribute. Much of xarray drops attributes; "
            "xr.set_options(keep_attrs=True) keeps them"
        )
    whole = forms.storable(record.assign_attrs(sinklens_schema=SCHEMA))
    whole = whole.assign_attrs({CHECKSUM: checksum(whole)})
    if Path(path).suffix == forms.ZARR:
        return files.write_folder(path, forms.zarr(whole))
    return files.write_bytes(path, forms.netcdf(whole), files.RECORD)


def open(path: str | Path, *, check: bool = True) -> xr.Dataset:
    """Read a record into memory.

    Args:
        path: A netCDF file or a zarr folder, of sinklens or of xarray's own `to_netcdf` and `to_zarr`.
        check: Refuse what was changed since sinklens wrote it, and warn (`Unchecked`) of what has no checksum, as
            nothing has that xarray itself wrote. Without, what can be read is taken as it is, also from a record that
            another program changed; `save` writes a checksum.

    Raises:
        RecordError: no such file, a truncated or damaged one, one that is no sinklens record, or one of a newer
            sinklens.
    """
    path = Path(path)
    if not path.is_file() and not (path.is_dir() and any((path / name).is_file() for name in (".zgroup", "zarr.json"))):
        raise RecordError(f"there is no record at {str(path)!r}")
    try:
        record = forms.read(path, packed=not check)
        if check and CHECKSUM not in record.attrs and any(set(forms.PACKED) & set(v.attrs) for v in _all(record)):
            record = forms.read(path, packed=True)
    except RecordError:
        raise
    except Exception as error:  # whatever a library says of bytes that it did not expect
        kind = "zarr" if path.is_dir() else "netCDF"
        raise RecordError(f"{str(path)!r} cannot be read as {kind} (truncated or foreign): {error}") from error
    if "sinklens_schema" not in record.attrs:
        raise RecordError(f"{str(path)!r} can be read, but is no sinklens record: it has no sinklens_schema attribute")
    if check:
        _check(record, path)
    return record.drop_attrs(deep=False).assign_attrs({k: v for k, v in record.attrs.items() if k != CHECKSUM})


def _all(record: xr.Dataset) -> list[xr.Variable]:
    return list(record.variables.values())


def _check(record: xr.Dataset, path: Path) -> None:
    schema = record.attrs["sinklens_schema"]
    if not isinstance(schema, int | np.integer) or not 1 <= schema <= SCHEMA:
        newer = isinstance(schema, int | np.integer) and schema > SCHEMA
        whose = "was written by a newer sinklens; update sinklens" if newer else "no sinklens wrote"
        raise RecordError(f"{str(path)!r} has sinklens_schema={schema!r}, which {whose}. This one knows {SCHEMA}")
    ask = f"sinklens.open({str(path)!r}, check=False) takes it as it is"
    if CHECKSUM not in record.attrs:
        warnings.warn(
            f"{str(path)!r} has no checksum, so nobody could see a damaged or changed number: another program wrote "
            f"it, or an older sinklens. {ask} without a word, and sinklens.save writes one",
            Unchecked,
            stacklevel=3,
        )
    elif str(record.attrs[CHECKSUM]) != checksum(record):
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
