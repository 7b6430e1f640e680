"""Records as tidy tables and back: every cell, dtype and attribute, or an error."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fuzzing import fuzz
from random_records import records

import sinklens as sl
from sinklens.errors import RecordError
from sinklens.values.arrays import in_order

RECORD = sl.planted("static", steps=3, keys=9, prompts=2).record


def same(found: xr.Dataset, record: xr.Dataset) -> None:
    """Equal in names, dims, coordinates, attributes, dtypes and bits."""
    xr.testing.assert_identical(found, record)
    for name, variable in record.variables.items():
        assert found[name].dtype == variable.dtype, name
        if variable.dtype.kind not in "OUT":
            assert found[name].values.tobytes() == variable.to_numpy().tobytes(), name


def test_every_cell_stands_in_one_row_with_its_coordinates() -> None:
    """Against a plain loop over all cells."""
    frame = sl.to_frame(RECORD, "received")
    dims = ["prompt", "step", "layer", "head", "key"]
    assert list(frame.columns) == [*dims, "received"]
    values = RECORD["received"].transpose(*dims)
    cells = [
        (*(RECORD[dim].values[i] for dim, i in zip(dims, index, strict=True)), values.values[index])
        for index in itertools.product(*map(range, values.shape))
    ]
    assert list(frame.itertuples(index=False, name=None)) == cells
    assert frame["received"].dtype == np.float32


def test_a_variable_stands_in_every_row_of_the_dims_that_it_lacks() -> None:
    frame = sl.to_frame(RECORD, "received", "commit_step", "text")
    for row in frame.sample(50, random_state=0).itertuples():
        place = {"prompt": row.prompt, "key": row.key}
        assert row.commit_step == RECORD["commit_step"].sel(place)
        assert row.text == RECORD["text"].sel(place).item()


@pytest.mark.parametrize("names", [("received",), ("token", "text", "prompt_length"), ()])
def test_a_record_comes_back_from_its_table(names: tuple[str, ...]) -> None:
    frame = sl.to_frame(RECORD, *names)
    back = sl.from_frame(frame.sample(frac=1, random_state=1))  # rows in any order
    same(back, RECORD[list(names)] if names else RECORD)


@fuzz(few=60, many=2000, record=records())
def test_any_record_comes_back_or_is_refused(record: xr.Dataset) -> None:
    """Refused is only what has cells and would have no row, because another variable has none."""
    if not record.data_vars:
        with pytest.raises(RecordError, match="no variable"):
            sl.to_frame(record)
        return
    empty = any(not v.size for v in record.data_vars.values())
    full = any(v.size for n, v in record.variables.items() if n not in record.sizes)
    if empty and full:
        with pytest.raises(RecordError, match="would be left"):
            sl.to_frame(record)
        return
    same(sl.from_frame(sl.to_frame(record)), in_order(record))


def test_parquet_keeps_it_all(tmp_path: Path) -> None:
    sl.to_frame(RECORD).to_parquet(tmp_path / "run.parquet")
    same(sl.from_frame(pd.read_parquet(tmp_path / "run.parquet")), RECORD)


def test_csv_loses_what_columns_mean_and_that_is_said(tmp_path: Path) -> None:
    frame = sl.to_frame(RECORD, "received", "commit_step")
    frame.to_csv(tmp_path / "run.csv", index=False)
    read = pd.read_csv(tmp_path / "run.csv")
    with pytest.raises(RecordError, match=r"CSV and.*frame.attrs = old.attrs"):
        sl.from_frame(read)
    read.attrs = frame.attrs
    same(sl.from_frame(read), RECORD[["received", "commit_step"]])


def test_part_of_a_table_is_part_of_the_record() -> None:
    frame = sl.to_frame(RECORD, "received", "token")
    part = frame[(frame["layer"] == 1) & (frame["key"] > 5)].drop(columns="token")
    same(sl.from_frame(part), RECORD[["received"]].sel(layer=[1], key=slice(6, None)))


def test_a_coordinate_of_no_variable_is_kept() -> None:
    record = RECORD.drop_vars("received")
    assert "layer" in record.coords
    same(sl.from_frame(sl.to_frame(record)), record)


def test_selected_and_odd_coordinates_come_back() -> None:
    for record in (
        RECORD.isel(prompt=1),
        RECORD.drop_vars("layer"),
        RECORD.isel(step=[2, 0]),
        RECORD.assign_coords(words=("prompt", ["a", ""])),
        RECORD.assign_coords(layer=["first", "last"]),
        RECORD.assign_coords(layer=np.array([0.1, 0.2], np.float32)),
    ):
        same(sl.from_frame(sl.to_frame(record)), record)


def changed(change: Any, *names: str) -> pd.DataFrame:
    frame = sl.to_frame(RECORD, *(names or ("received", "token")))
    done = change(frame)
    return frame if done is None else done


def put(column: str, value: Any) -> Any:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        out = frame.astype({column: object})
        out.loc[3, column] = value
        return out.infer_objects()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(index=5), "no row for prompt 0, step 0, layer 0, head 0, key 5"),
        (lambda f: pd.concat([f, f.iloc[[7]]]).pipe(lambda g: g.__setattr__("attrs", f.attrs) or g), "2 rows for"),
        (lambda f: f.drop(columns="layer"), "no column 'layer'"),
        (lambda f: f.assign(mine=1), "column 'mine' is none of the record's"),
        (put("token", 12345), "token has no dim but prompt, key, and differs along others"),
        (put("token", 0.5), "token is int32, and the column 'token' .* holds what that cannot"),
        (put("token", 2**40), "holds what that cannot"),
        (put("token", np.nan), "holds what that cannot"),
        (put("received", "much"), "holds what that cannot"),
        (put("received", 1e300), "holds what that cannot"),
        (put("layer", 7), "the record has no layer 7"),
        (put("step", np.nan), "the record has no step nan"),
    ],
)
def test_a_table_that_is_no_record_is_refused(change: Any, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        sl.from_frame(changed(change))


def test_texts_that_are_missing_are_refused() -> None:
    with pytest.raises(RecordError, match="text holds texts"):
        sl.from_frame(changed(put("text", np.nan), "text"))


def test_what_a_table_could_not_give_back_is_refused() -> None:
    with pytest.raises(RecordError, match="no variable 'mine'; it has token"):
        sl.to_frame(RECORD, "mine")
    with pytest.raises(RecordError, match=r"has 216 rows \(2 prompt x 3 step x 2 layer x 2 head x 9 key\); name fewer"):
        sl.to_frame(RECORD, "received", max_rows=215)
    assert len(sl.to_frame(RECORD, "received", max_rows=216)) == 216
    with pytest.raises(RecordError, match="'layer' has values that stand twice"):
        sl.to_frame(RECORD.assign_coords(layer=[1, 1]))
    with pytest.raises(RecordError, match="'layer' has values that stand twice or are none"):
        sl.to_frame(RECORD.assign_coords(layer=[1.0, np.nan]))
    with pytest.raises(RecordError, match="attribute mine=None is no text"):
        sl.to_frame(RECORD.assign_attrs(mine=None), "token")
    with pytest.raises(RecordError, match="numbers, truth values and texts, and day is datetime64"):
        sl.to_frame(RECORD.assign(day=("prompt", np.array(["2020-01-01"] * 2, "M8[ns]"))), "day")
