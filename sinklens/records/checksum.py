"""The checksum of a record: a hash of all that it holds, so that no number changes in a file without a word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

CHECKSUM = "sinklens_checksum"  # the attribute that it is kept in


def checksum(record: xr.Dataset) -> str:
    """SHA-256 of variables, dims, coordinates and attributes, the checksum itself left out.

    The same before a record is written and after it is read: texts are texts in any array, and an attribute of one
    number is that number.
    """
    made = hashlib.sha256(_line("record", _attributes(record.attrs), sorted(map(str, record.coords))))
    for name in sorted(record.variables, key=str):
        variable = record.variables[name]
        values, dims = variable.to_numpy(), list(map(str, variable.dims))
        text = values.dtype.kind in "OSUT"
        kind = "text" if text else values.dtype.newbyteorder("<").str
        made.update(_line(str(name), dims, list(values.shape), kind, _attributes(variable.attrs)))
        made.update(_line(*map(str, values.ravel())) if text else np.ascontiguousarray(values).astype(kind).tobytes())
    return made.hexdigest()


def _line(*parts: Any) -> bytes:
    return json.dumps(parts).encode() + b"\n"


def _attributes(attributes: Mapping[Any, Any]) -> list[tuple[str, list[Any]]]:
    return [(str(name), _plain(value)) for name, value in sorted(attributes.items()) if name != CHECKSUM]


def _plain(value: Any) -> list[Any]:
    """An attribute as a flat list: netCDF does not tell one number from a list of one."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return [each if isinstance(each, str) else repr(each) for each in np.ravel(np.asarray(value)).tolist()]
