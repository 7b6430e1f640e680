"""The two forms of a stored record, netCDF and zarr: bytes before a file is touched; and what xarray reads of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from sinklens.errors import RecordError
from sinklens.records.schema import VARIABLES

ZARR = ".zarr"  # how the name of a zarr folder ends
PACKED = ("_FillValue", "missing_value", "scale_factor", "add_offset")  # attributes by which CF changes numbers


def netcdf(record: xr.Dataset) -> bytes:
    """A record as the bytes of a netCDF file. In memory first: the library that writes them cannot fail halfway.

    Raises:
        RecordError: something in it that netCDF has no form for.
    """
    whole, encoding = storable(record), {}
    for name, variable in whole.variables.items():
        numbers = variable.dtype.kind in "fiu"
        encoding[name] = {"_FillValue": None} if numbers else {}
        if numbers and name in whole.data_vars and variable.ndim and variable.size:
            encoding[name] |= {"zlib": True, "complevel": 4}
    try:
        return bytes(whole.to_netcdf(engine="h5netcdf", encoding=encoding))
    except Exception as error:
        raise RecordError(f"this record cannot be written as netCDF: {error}") from error


def zarr(record: xr.Dataset) -> dict[str, bytes]:
    """A record as the files of a zarr folder (format 2, which every zarr reads), by name.

    Raises:
        RecordError: zarr is not installed; something in the record that it has no form for.
    """
    store, files = _zarr(), {}
    whole = storable(record)
    encoding: Any = {name: {"_FillValue": None} for name, v in whole.variables.items() if v.dtype.kind in "fiu"}
    options: Any = {"zarr_format": 2, "consolidated": True, "write_empty_chunks": True}  # 0 for -0.0 otherwise
    try:
        whole.to_zarr(store.storage.MemoryStore(files), encoding=encoding, **options)
    except Exception as error:
        raise RecordError(f"this record cannot be written as zarr: {error}") from error
    return {name: content.to_bytes() for name, content in files.items()}


def storable(record: xr.Dataset) -> xr.Dataset:
    """A record without what another file left in `encoding`, its texts as an array of texts, also where there is none.

    Raises:
        RecordError: a variable that holds neither numbers, truth values nor texts.
    """
    odd = [f"{name} ({v.dtype})" for name, v in record.variables.items() if not _good(v)]
    if odd:
        raise RecordError(f"a record holds numbers, truth values and texts without a NUL, and not {', '.join(odd)}")
    return as_texts(record.drop_encoding(), str)


def as_texts(record: xr.Dataset, dtype: type) -> xr.Dataset:
    """A record whose texts are of a dtype, `str` or `object`, coordinates among them.

    So is the `text` of no position, which xarray stores as if it were numbers.
    """
    texts = {
        name: (v.dims, v.to_numpy().astype(dtype), v.attrs)
        for name, v in record.variables.items()
        if v.dtype.kind in "OUT" or (not v.size and getattr(VARIABLES.get(str(name)), "dtype", None) is object)
    }
    coords = [name for name in texts if name in record.coords]
    return record.assign_coords({name: texts.pop(name) for name in coords}).assign(texts) if coords or texts else record


def read(path: Path, *, packed: bool) -> xr.Dataset:
    """What a file or a folder holds, in memory; texts as objects, as a run's record has them. Times stay numbers.

    Args:
        path: A netCDF file or a zarr folder.
        packed: Decode packed numbers as CF says. Without, numbers and attributes are what is stored; a `_FillValue` of
            nan, which changes none, is left out.

    Raises:
        RecordError: zarr is not installed.
        Exception: whatever a library says of bytes that it did not expect.
    """
    options: Any = {"mask_and_scale": packed, "decode_times": False}
    if path.is_dir():
        _zarr()
        stored = xr.open_dataset(path, engine="zarr", consolidated=False, chunks=None, **options)
    else:
        content = io.BytesIO(path.read_bytes())
        with h5py.File(content, "r") as raw:  # first, for h5netcdf prints a traceback of its own if it cannot
            dict(raw.attrs)
        stored = xr.open_dataset(content, engine="h5netcdf", **options)
    with stored:
        record = as_texts(stored.load().drop_encoding(), object)
    for variable in record.variables.values():
        fill = variable.attrs.get("_FillValue")
        if isinstance(fill, float | np.floating) and np.isnan(fill):
            del variable.attrs["_FillValue"]
    return record


def _good(variable: xr.Variable) -> bool:
    if variable.dtype.kind in "OUT":
        return all(isinstance(text, str) and "\0" not in text for text in variable.to_numpy().ravel().tolist())
    return variable.dtype.kind in "biufS"


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise RecordError("zarr folders need zarr: pip install 'sinklens[zarr]'") from error
    return zarr
