"""Record files: whatever was done to one, it is the record as it was, or one RecordError; results, too."""

from __future__ import annotations

import io
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from fuzzing import fuzz, refused
from hypothesis import strategies as st

import sinklens as sl
from sinklens import HookedDLM, MaskSinks, Plan, SameStep, denoise
from sinklens.errors import RecordError, Unchecked
from sinklens.experiments.results import AblationResult
from sinklens.probes import KeyNorm, ReceivedAttention
from sinklens.records.schema import SCHEMA

FOLDER = Path(tempfile.mkdtemp())
FILE = FOLDER / "run.nc"


@lru_cache
def record() -> xr.Dataset:
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    probes = [ReceivedAttention(), KeyNorm()]
    edits = [MaskSinks(SameStep(top_k=1))]
    plan = Plan(new_tokens=4)
    return denoise(dlm, ["dolko xe dolko", "gake"], plan, probes=probes, interventions=edits, progress=False).record


@lru_cache
def written() -> bytes:
    return sl.save(record(), FOLDER / "whole.nc").read_bytes()


def opened(content: bytes, quotes: str = "run.nc'") -> xr.Dataset | None:
    """The record of a file, the same in all that it holds; None if it is refused, by one RecordError."""
    FILE.write_bytes(content)
    found: list[xr.Dataset] = []
    said = refused(lambda: found.append(sl.open(FILE)), [quotes])
    if said is None:
        xr.testing.assert_identical(found[0], record())
        for name, variable in record().variables.items():
            assert found[0][name].dims == variable.dims
            assert found[0][name].dtype == variable.dtype or variable.dtype.kind == "O", name
        return found[0]
    with pytest.raises(RecordError):
        sl.open(FILE)
    return None


def flipped(content: bytes, places: list[float]) -> bytes:
    """Bits turned, each at a share of the file."""
    changed = bytearray(content)
    for place in places:
        bit = min(int(place * len(content) * 8), len(content) * 8 - 1)
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


SHARE = st.floats(0, 1, exclude_max=True)


@fuzz(few=250, many=8000, places=st.lists(SHARE, min_size=1, max_size=3))
def test_flipped_bits(places: list[float]) -> None:
    """As it was, where a bit means nothing, or refused; never a record with another number in it."""
    opened(flipped(written(), places))


@fuzz(few=40, many=1000, share=SHARE, more=st.binary(max_size=40))
def test_cut_and_lengthened_files(share: float, more: bytes) -> None:
    cut = written()[: int(share * len(written()))]
    assert opened(cut) is None
    opened(cut + more)
    opened(written() + more)


@fuzz(few=30, many=1000, start=SHARE, length=st.integers(1, 4000), fill=st.sampled_from([b"\0", b"\xff"]))
def test_blocks_that_were_never_written(start: float, length: int, fill: bytes) -> None:
    """As a crash of the machine leaves them."""
    first = int(start * len(written()))
    content = written()
    opened(content[:first] + (fill * length)[: len(content) - first] + content[first + length :])


def another_program(change: Any) -> bytes:
    """The file after another program changed it."""
    content = io.BytesIO(written())
    with h5py.File(content, "r+") as file:
        change(file)
    return content.getvalue()


NAMES = st.deferred(lambda: st.sampled_from(sorted(map(str, record().variables))))
ATTRIBUTES = st.sampled_from(["prompts", "provenance", "sinklens_checksum", "sinklens_schema"])


@fuzz(few=30, many=500, name=NAMES, to=st.sampled_from([None, "other", "sinks"]))
def test_variables_that_another_program_removed_or_renamed(name: str, to: str | None) -> None:
    def change(file: h5py.File) -> None:
        if to is not None:
            file.move(name, to)
        else:
            del file[name]

    assert opened(another_program(change)) is None


VALUES = st.one_of(
    st.integers(-5, 2**40), st.floats(allow_nan=True), st.text(max_size=8).filter(lambda text: "\0" not in text),
    st.lists(st.integers(0, 5), max_size=3), st.none(),
)  # fmt: skip


@fuzz(few=50, many=1000, name=ATTRIBUTES, value=VALUES)
def test_attributes_that_another_program_removed_or_changed(name: str, value: Any) -> None:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    was = record().attrs.get(name, SCHEMA if name == "sinklens_schema" else None)
    assert opened(another_program(change)) is None or np.array_equal(np.ravel(was), np.ravel(value))


@fuzz(few=30, many=500, name=NAMES, place=SHARE, by=st.sampled_from([1, -1, 100]))
def test_numbers_that_another_program_changed(name: str, place: float, by: int) -> None:
    def change(file: h5py.File) -> None:
        values = file[name][()]
        flat = values.reshape(-1)
        index = int(place * flat.size)
        flat[index] = b"word" if values.dtype.kind == "O" else np.nan_to_num(flat[index]) + by
        file[name][...] = values

    assert opened(another_program(change)) is None


@fuzz(few=15, many=300, name=NAMES, kind=st.sampled_from(["f8", "i8", "f2", "u1", ">f4"]))
def test_numbers_of_another_dtype(name: str, kind: str) -> None:
    def change(file: h5py.File) -> None:
        values, attributes = file[name][()], dict(file[name].attrs)
        if values.dtype.kind == "O":
            values = np.zeros(values.shape)
        del file[name]
        file.create_dataset(name, data=np.nan_to_num(values).astype(kind))
        for key, value in attributes.items():
            file[name].attrs[key] = value

    opened(another_program(change))


def test_schemas_of_others_are_named() -> None:
    def of(schema: Any) -> bytes:
        return another_program(lambda file: file.attrs.modify("sinklens_schema", schema))

    for schema, said in ((SCHEMA + 1, "newer sinklens"), (99, "newer sinklens"), (0, "no sinklens wrote"), (-1, "no")):
        FILE.write_bytes(of(schema))
        with pytest.raises(RecordError, match=said):
            sl.open(FILE)
    FILE.write_bytes(another_program(lambda file: file.attrs.pop("sinklens_checksum")))
    with pytest.warns(Unchecked, match="no checksum"):
        sl.open(FILE)


def test_what_another_program_changed_can_be_taken_and_kept() -> None:
    def change(file: h5py.File) -> None:
        file["received"][...] = 1.0

    FILE.write_bytes(another_program(change))
    with pytest.raises(RecordError, match=r"another program changed it; .*check=False.* takes it as it is"):
        sl.open(FILE)
    taken = sl.open(FILE, check=False)
    assert bool((taken["received"] == 1).all())
    sl.save(taken, FILE)
    xr.testing.assert_identical(sl.open(FILE), taken)


EDITED = {
    "a prompt": lambda r: r.isel(prompt=0),
    "a layer": lambda r: r.isel(layer=0),
    "some steps": lambda r: r.isel(step=[0, 2]),
    "no step": lambda r: r.isel(step=slice(0, 0)),
    "turned": lambda r: r.transpose("key", ...),
    "without": lambda r: r.drop_vars(["confidence", "received"]),
    "without a coordinate": lambda r: r.drop_vars("layer"),
    "another variable": lambda r: r.assign(mine=r["received"].astype("f8") * 2),
    "truth values": lambda r: r.assign(mine=r["received"] > 1),
    "one number": lambda r: r.assign(mine=3),
    "texts": lambda r: r.assign_coords(words=("prompt", ["a b", "日本"])),
    "units that are times": lambda r: r.assign(mine=r["received"].assign_attrs(units="seconds since 2000-01-01")),
    "packing": lambda r: r.assign(mine=r["received"].assign_attrs(units="days", scale_factor=2.0, add_offset=1)),
    "big-endian": lambda r: r.assign(mine=(("prompt",), np.array([1, 2], ">i4"))),
    "attributes": lambda r: r.assign_attrs(a=1, b=2.5, c=[1, 2], d=["x"], e=np.float32(0.1), f="", g=np.arange(3)),
}


@pytest.mark.parametrize("what", EDITED)
def test_what_a_user_edits_and_saves_is_opened_as_it_is(what: str) -> None:
    edited = EDITED[what](record())
    again = sl.open(sl.save(edited, FILE))
    xr.testing.assert_equal(again, edited)
    for name, variable in edited.variables.items():
        assert again[name].dtype == variable.dtype.newbyteorder("=") or variable.dtype.kind in "OU", name
        assert set(again[name].attrs) == set(variable.attrs), name
    assert set(again.attrs) == set(edited.attrs)
    xr.testing.assert_identical(sl.open(sl.save(again, FILE)), again)


def scores() -> AblationResult:
    row: dict[str, Any] = {"model": "m", "task": "t", "prompt": 0, "name": "n", "seed": 0, "condition": "c"}
    row |= {"kind": "sinks", "metric": "kl", "value": 0.25, "places": 3, "exposed": 1.0, "edited_keys": 2.0}
    return AblationResult([row | {"prompt": prompt} for prompt in range(3)], True, {"plan": {"é": None}})


@fuzz(few=250, many=5000, places=st.lists(SHARE, min_size=1, max_size=3))
def test_flipped_bits_of_results(places: list[float]) -> None:
    path = FOLDER / "result.json"
    path.unlink(missing_ok=True)
    content = scores().save(path).read_bytes()
    path.write_bytes(flipped(content, places))
    found: list[AblationResult] = []
    if refused(lambda: found.append(AblationResult.open(path)), ["result.json'"]) is None:
        assert found[0] == scores()
