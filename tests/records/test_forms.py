"""Records as netCDF and as zarr, written by sinklens or by xarray: what is opened is what there was, bit for bit."""

from __future__ import annotations

import builtins
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from fuzzing import fuzz
from random_records import records

import sinklens as sl
from sinklens.errors import RecordError, SaveError, Unchecked


def same(found: xr.Dataset, record: xr.Dataset) -> None:
    """Names, dims, dtypes, bits, attributes and encodings are those of the record; texts are objects."""
    assert set(found.variables) == set(record.variables)
    assert set(found.coords) == set(record.coords)
    assert set(found.attrs) == set(record.attrs)
    for name, variable in record.variables.items():
        other = found.variables[name]
        values, stored = variable.to_numpy(), other.to_numpy()
        assert other.dims == variable.dims
        assert other.encoding == {}
        assert set(other.attrs) == set(variable.attrs)
        for key, value in variable.attrs.items():
            np.testing.assert_array_equal(other.attrs[key], value)
        if variable.dtype.kind in "OU":
            assert other.dtype == object
            assert stored.tolist() == values.tolist()
            assert all(type(text) is str for text in stored.ravel())
        else:
            assert other.dtype == variable.dtype.newbyteorder("=")
            assert stored.astype(other.dtype.newbyteorder("<")).tobytes() == values.astype(other.dtype).tobytes()
    for key, value in record.attrs.items():
        np.testing.assert_array_equal(found.attrs[key], value)


WRITERS: dict[str, Callable[[xr.Dataset, Path], Any]] = {
    "sinklens.nc": sl.save,
    "sinklens.zarr": sl.save,
    "xarray.nc": lambda record, path: record.to_netcdf(path, engine="h5netcdf"),
    "xarray2.zarr": lambda record, path: record.to_zarr(path, zarr_format=2, write_empty_chunks=True),
    "xarray3.zarr": lambda record, path: record.to_zarr(path, zarr_format=3, write_empty_chunks=True),
}


@pytest.mark.filterwarnings(
    "ignore::sinklens.errors.Unchecked", "ignore::UserWarning:zarr", "ignore::FutureWarning:zarr"
)
@pytest.mark.parametrize("writer", WRITERS)
def test_any_record_comes_back_whoever_wrote_it(writer: str) -> None:
    @fuzz(few=25, many=500, record=records())
    def comes_back(record: xr.Dataset) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / writer
            WRITERS[writer](record, path)
            same(sl.open(path), record)

    comes_back(25)


@pytest.mark.filterwarnings("ignore::UserWarning:zarr")
@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_what_sinklens_wrote_is_read_by_xarray_alone(name: str, tmp_path: Path) -> None:
    record = sl.planted("static", steps=3, keys=9).record
    path = sl.save(record, tmp_path / name)
    engine: Any = "h5netcdf" if name.endswith("nc") else "zarr"
    with xr.open_dataset(path, engine=engine, decode_times=False) as stored:
        found = stored.load()
    xr.testing.assert_equal(found, record)
    assert {str(n): v.dtype for n, v in found.variables.items() if v.dtype.kind in "fiub"} == {
        str(n): v.dtype for n, v in record.variables.items() if v.dtype.kind in "fiub"
    }
    again = tmp_path / "again.nc"
    found.to_netcdf(again, engine="h5netcdf")
    same(sl.open(again), record)  # the checksum went along, and holds: no warning
    found["received"].values[0, 0] += 1
    found.to_netcdf(again, engine="h5netcdf")
    with pytest.raises(RecordError, match="its checksum is another"):
        sl.open(again)


@pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::FutureWarning:zarr")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_record_without_positions_or_prompts_can_be_opened(writer: str, tmp_path: Path) -> None:
    """It could be saved, and was then refused as changed."""
    record = sl.planted("static", steps=3, keys=9).record
    for number, dim in enumerate(("key", "prompt", "step")):
        empty = record.isel({dim: slice(0, 0)})
        path = tmp_path / str(number) / writer
        path.parent.mkdir()
        WRITERS[writer](empty, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Unchecked)
            same(sl.open(path), empty)


@pytest.mark.parametrize("bad", [[1.5, 2.5], ["a", 2], ["a", None], ["a\0"], [float("nan"), "a"]])
@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_objects_that_are_no_texts_are_refused_before_a_file_is_there(name: str, bad: list, tmp_path: Path) -> None:
    """Some were saved, and could not be opened."""
    record = xr.Dataset({"mine": ("prompt", np.array(bad, object))}, attrs={"sinklens_schema": 2})
    with pytest.raises(RecordError, match=r"without a NUL, and not mine \(object\)"):
        sl.save(record, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_xarray_packed_are_unpacked(tmp_path: Path) -> None:
    record = xr.Dataset({"mine": ("prompt", [1.5, 2.0])}, attrs={"sinklens_schema": 2})
    packing = {"mine": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}}
    record.to_netcdf(tmp_path / "run.nc", engine="h5netcdf", encoding=packing)
    with pytest.warns(Unchecked, match=r"run.nc' has no checksum.*sinklens.save writes one"):
        found = sl.open(tmp_path / "run.nc")
    assert found["mine"].values.tolist() == [1.5, 2.0]


@pytest.mark.filterwarnings("ignore::UserWarning:zarr")
def test_a_changed_zarr_folder_is_refused(tmp_path: Path) -> None:
    path = sl.save(sl.planted("static", steps=3, keys=9).record, tmp_path / "run.zarr")
    zarr.open_group(path, mode="r+")["received"][0, 0] = 7.0  # type: ignore[index]
    with pytest.raises(RecordError, match="its checksum is another"):
        sl.open(path)
    assert (sl.open(path, check=False)["received"].values[0, 0] == 7).all()
    next((path / "received").glob("0*")).write_bytes(b"nonsense")
    with pytest.raises(RecordError, match=r"run.zarr' cannot be read as zarr"):
        sl.open(path)


def test_a_lost_chunk_is_refused(tmp_path: Path) -> None:
    """Zarr itself reads a chunk that is not there as its fill value."""
    path = sl.save(sl.planted("static", steps=3, keys=9).record, tmp_path / "run.zarr")
    next((path / "token").glob("0*")).unlink()
    with pytest.raises(RecordError, match="its checksum is another"):
        sl.open(path)


@pytest.mark.filterwarnings("ignore:Object at notes.txt")
def test_a_folder_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    record = sl.planted("static", steps=3, keys=9).record
    path = sl.save(record, tmp_path / "run.zarr")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(SaveError, match=r"run.zarr' is there already, and a folder is never replaced"):
        sl.save(record.isel(step=[0]), path)
    assert (path / "notes.txt").read_text() == "mine"
    same(sl.open(path), record)
    (tmp_path / "empty.zarr").mkdir()
    sl.save(record, tmp_path / "empty.zarr")
    (tmp_path / "file.zarr").write_text("mine")
    with pytest.raises(SaveError, match="is there already"):
        sl.save(record, tmp_path / "file.zarr")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.zarr", "file.zarr", "run.zarr"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    record, write, calls = sl.planted("static", steps=3, keys=9).record, Path.write_bytes, []

    def fail(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == 5:
            raise error
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(SaveError if isinstance(error, OSError) else KeyboardInterrupt):
        sl.save(record, tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_no_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no record at"):
        sl.open(tmp_path)
    xr.Dataset({"x": ("y", [1.0])}).to_zarr(tmp_path / "foreign.zarr", zarr_format=2, consolidated=False)
    with pytest.raises(RecordError, match=r"foreign.zarr' can be read, but is no sinklens record"):
        sl.open(tmp_path / "foreign.zarr")


def test_without_zarr_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = sl.planted("static", steps=3, keys=9).record
    path, real = sl.save(record, tmp_path / "run.zarr"), builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "zarr":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: sl.save(record, tmp_path / "b.zarr"), lambda: sl.open(path)):
        with pytest.raises(RecordError, match=r"pip install 'sinklens\[zarr\]'"):
            call()


def test_a_run_is_not_saved_into_a_zarr_folder_while_it_is_under_way(no_forward: None, tmp_path: Path) -> None:
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm", check=False)
    with pytest.raises(SaveError, match=r"save_to='.*run.zarr': a zarr folder is written once"):
        sl.denoise(dlm, "x", save_to=tmp_path / "run.zarr")
