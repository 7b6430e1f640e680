"""Records as tidy tables, a column per dim and per variable, and back without a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.errors import RecordError
from sinklens.values.arrays import ORDER
from sinklens.values.kinds import Count, reads

KEPT = "sinklens"  # where a table keeps, in `attrs`, what its columns do not say


@reads()
def to_frame(record: xr.Dataset, *names: str, max_rows: Count = 10_000_000) -> pd.DataFrame:
    """Variables of a record as one tidy table: a row per cell, a column per dim (its coordinate) and per variable.

    A variable that lacks a dim of the others stands in every row of that dim; mind it when you average. Dims, dtypes,
    units and all other attributes are kept in `frame.attrs`, which parquet keeps, too, and CSV does not. What comes
    back is the record to the bit, with dims in their usual order.

        frame = sl.to_frame(run.record, "received")  # prompt, step, layer, head, key, received
        frame.groupby(["layer", "step"])["received"].max()
        sl.from_frame(frame)["received"]  # as it was

    Args:
        record: The record.
        *names: Its variables; all if none is named.
        max_rows: The most rows. All variables of a record together have a row for every combination of all dims.

    Raises:
        RecordError: a variable that the record has not; more rows; what a table could not give back: a coordinate that
            stands twice, a variable of which no row would be left because another has no cell.
    """
    unknown = [name for name in names if name not in record.data_vars]
    if unknown:
        known = ", ".join(map(str, record.data_vars))
        raise RecordError(f"the record has no variable {unknown[0]!r}; it has {known}")
    if not record.data_vars:
        raise RecordError("the record has no variable, and so a table of it no row")
    record = record[list(names)] if names else record
    variables = {str(name): variable for name, variable in record.variables.items() if name not in record.sizes}
    found = {str(dim): size for name in variables for dim, size in record[name].sizes.items()}
    sizes = dict(sorted(found.items(), key=lambda dim: ORDER.index(dim[0]) if dim[0] in ORDER else 1.5))
    rows = math.prod(sizes.values())
    if rows > max_rows:
        raise RecordError(f"a table of {', '.join(variables)} has {rows:,} rows ({_of(sizes)}); name fewer variables")
    _check(record, variables, sizes, rows)
    columns = {dim: _index(record, dim) for dim in sizes}
    whole = {dim: (tuple(sizes), np.meshgrid(*columns.values(), indexing="ij")[n]) for n, dim in enumerate(sizes)}
    spread = {name: (tuple(sizes), _spread(variable, sizes)) for name, variable in variables.items()}
    table = {
        name: pd.Series(np.ravel(values).astype(_column(values.dtype)), dtype=_column(values.dtype))
        for name, (_, values) in {**whole, **spread}.items()
    }
    frame = pd.DataFrame(table)
    about = {
        str(name): {
            "dims": list(variable.dims),
            "dtype": _name(variable.dtype),
            "attrs": _plain(f"attribute of {name}", variable.attrs),
            "coord": name in record.coords,
            **({"values": variable.to_numpy().tolist()} if name in record.sizes else {}),
        }
        for name, variable in record.variables.items()
    }
    frame.attrs[KEPT] = {"attrs": _plain("attribute", record.attrs), "sizes": sizes, "variables": about}
    return frame


@reads()
def from_frame(frame: pd.DataFrame) -> xr.Dataset:
    """The record of a table that `to_frame` made; rows in any order, columns and whole coordinates may be left out.

    Args:
        frame: The table, with the `attrs` that `to_frame` gave it.

    Raises:
        RecordError: a table without them (CSV loses them); a cell that has no row, or two; a variable that differs
            where it has no dim; a value that its dtype does not hold.
    """
    kept = frame.attrs.get(KEPT)
    if not isinstance(kept, Mapping):
        raise RecordError(
            "this table does not say what its columns were: sinklens.to_frame keeps that in frame.attrs, which CSV and "
            "much of pandas lose. Set them again: frame.attrs = old.attrs; parquet keeps them"
        )
    about, sizes = kept["variables"], kept["sizes"]
    odd = [name for name in frame.columns if name not in sizes and (name not in about or "values" in about[name])]
    if odd or not frame.columns.is_unique:
        what = f"its column {odd[0]!r} is none of the record's" if odd else "two of its columns have one name"
        raise RecordError(f"the table cannot be a record: {what}; drop it")
    lacking = [dim for dim in sizes if dim not in frame.columns]
    if lacking:
        raise RecordError(f"the table has no column {lacking[0]!r}, without which no row has a place")
    coords = {dim: _left(frame, dim, size, about.get(dim)) for dim, size in sizes.items()}
    shape = tuple(len(values) for values in coords.values())
    order = _places(frame, coords, shape)
    made = {
        name: xr.Variable(said["dims"], _gathered(frame, name, said, order, shape, list(sizes)), said["attrs"])
        for name, said in about.items()
        if name not in sizes and name in frame.columns
    }
    indices = {
        name: xr.Variable(name, np.array(left, _dtype(said)), said["attrs"])
        for name, said in about.items()
        if "values" in said
        for left in [coords[name].tolist() if name in coords else said["values"]]
    }
    here = {name for name, said in about.items() if said["coord"]} & set(made)
    data = {name: made[name] for name in made if name not in here}
    return xr.Dataset(data, {**{name: made[name] for name in here}, **indices}, kept["attrs"])


def _check(record: xr.Dataset, variables: Mapping[str, xr.Variable], sizes: Mapping[str, int], rows: int) -> None:
    for name, variable in variables.items():
        if not rows and variable.size:
            raise RecordError(
                f"no row of {name} would be left, for others have no cell ({_of(sizes)}); name them apart"
            )
    for dim in sizes:
        index = record.indexes.get(dim)
        if index is not None and (not index.is_unique or index.hasnans):
            raise RecordError(f"the coordinate {dim!r} has values that stand twice or are none: rows have no one place")
    odd = [name for name, v in record.variables.items() if v.dtype.kind not in "biufOUT"]
    if odd:
        raise RecordError(f"a record holds numbers, truth values and texts, and {odd[0]} is {record[odd[0]].dtype}")


def _index(record: xr.Dataset, dim: str) -> np.ndarray:
    return record[dim].to_numpy() if dim in record.coords else np.arange(record.sizes[dim])


def _spread(variable: xr.Variable, sizes: Mapping[str, int]) -> np.ndarray:
    """The values for all dims; nothing is copied yet."""
    absent = [dim for dim in sizes if dim not in variable.dims]
    values = variable.to_numpy()[(None,) * len(absent)]
    moved = xr.Variable((*absent, *variable.dims), values).transpose(*sizes)
    return np.broadcast_to(moved.to_numpy(), tuple(sizes.values()))


def _column(dtype: np.dtype) -> Any:
    """The dtype of a column: texts are objects, numbers of this machine's byte order."""
    return object if dtype.kind in "OUT" else dtype.newbyteorder("=")


def _name(dtype: np.dtype) -> str:
    return "T" if dtype.kind == "T" else dtype.str  # of numpy's texts of any length, which dtype.str does not name


def _plain(what: str, attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as parquet can keep them."""
    plain = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}
    for name, value in plain.items():
        each = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) for one in each):
            raise RecordError(f"the {what} {name}={value!r} is no text, no number and no list of one kind of them")
    return plain


def _left(frame: pd.DataFrame, dim: str, size: int, said: Mapping[str, Any] | None) -> np.ndarray:
    """Which of the coordinates of a dim the table still has, in their old order; all, if it never had a row."""
    if said is None:
        return np.arange(size)
    values = np.array(said["values"], _dtype(said)).astype(_column(_dtype(said)))
    if not len(frame):
        return values
    there = set(frame[dim].unique().tolist())
    return values[[value in there for value in values.tolist()]]


def _places(frame: pd.DataFrame, coords: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """For each cell the row that holds it."""
    cells = math.prod(shape)
    at = np.zeros(len(frame), np.int64)
    for dim, values in coords.items():
        column = frame[dim].astype(object) if values.dtype == object else frame[dim]
        found = pd.Index(values).get_indexer(pd.Index(column))
        if (found < 0).any():
            raise RecordError(f"the record has no {dim} {_said(frame[dim].iloc[int((found < 0).argmax())])}")
        at = at * len(values) + found
    counts = np.bincount(at, minlength=cells)
    if (counts != 1).any():
        cell = dict(zip(coords, np.unravel_index(int((counts != 1).argmax()), shape), strict=True))
        where = ", ".join(f"{dim} {_said(coords[dim][index])}" for dim, index in cell.items())
        many = "no row" if not counts[counts != 1][0] else f"{counts[counts != 1][0]} rows"
        raise RecordError(f"a table must have one row for each cell of its dims, and has {many} for {where}")
    order = np.empty(cells, np.int64)
    order[at] = np.arange(len(frame))
    return order


def _gathered(
    frame: pd.DataFrame, name: str, said: Mapping[str, Any], order: np.ndarray, shape: tuple[int, ...], dims: list[str]
) -> np.ndarray:
    """A variable from its column: in its dims, and the same along all others."""
    column = frame[name].to_numpy()[order]
    dtype = _dtype(said)
    text = dtype.kind in "OUT"
    if text and not all(isinstance(each, str) for each in column.tolist()):
        raise RecordError(f"{name} holds texts, and the column {name!r} something else")
    if not text and not _holds(dtype, column):
        raise RecordError(f"{name} is {dtype}, and the column {name!r} ({column.dtype}) holds what that cannot")
    if not len(order):
        return np.empty([shape[dims.index(dim)] for dim in said["dims"]], dtype)
    values = xr.Variable(dims, column.reshape(shape))
    first = values.isel({dim: 0 for dim in dims if dim not in said["dims"]}).transpose(*said["dims"])
    spread = _spread(first, dict(zip(dims, shape, strict=True)))
    same = values.to_numpy() == spread
    if not text and column.dtype.kind == "f":
        same |= np.isnan(values.to_numpy()) & np.isnan(spread)
    if not np.all(same):
        raise RecordError(f"{name} has no dim but {', '.join(said['dims']) or 'none'}, and differs along others")
    return first.to_numpy().astype(dtype)


def _holds(dtype: np.dtype, column: np.ndarray) -> bool:
    """Whether numbers are those of a dtype; between floats, to its precision."""
    if column.dtype.kind not in "biuf" or (dtype.kind == "b") != (column.dtype.kind == "b"):
        return False
    with np.errstate(all="ignore"):
        narrow = column.astype(dtype)
        if dtype.kind == column.dtype.kind == "f":
            return bool((np.isfinite(narrow) == np.isfinite(column)).all())
        return np.array_equal(narrow.astype(column.dtype), column)


def _dtype(said: Mapping[str, Any]) -> Any:
    return np.dtypes.StringDType() if said["dtype"] == "T" else np.dtype(said["dtype"])


def _said(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def _of(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{size} {dim}" for dim, size in sizes.items())
