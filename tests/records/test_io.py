"""Records as files: whole or refused; and several records as one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import sinklens as sl
from sinklens import HookedDLM, MaskSinks, Plan, SameStep, denoise, records
from sinklens.errors import RecordError
from sinklens.probes import ReceivedAttention

PROMPTS = ["dolko xe dolko xo dolko talma wi", "gake xe", "boma wa boma talma"]
NEW = 6


@pytest.fixture(scope="module")
def models() -> dict[str, HookedDLM]:
    """Both bundled twins."""
    return {name: HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


def record_of(dlm: HookedDLM, prompts: Any = PROMPTS, **options: Any) -> xr.Dataset:
    """A run's record."""
    options = {"probes": [ReceivedAttention()], "progress": False, **options}
    plan = Plan(new_tokens=NEW, suppress_eos="logits" if dlm.is_causal else None)
    return denoise(dlm, prompts, plan, **options).record


@pytest.fixture(scope="module")
def record(models: dict[str, HookedDLM]) -> xr.Dataset:
    """Three prompts of different lengths, an edit, a probe."""
    return record_of(models["tiny-dlm"], interventions=[MaskSinks(SameStep(top_k=1))], seed=4)


# Files.


def test_a_record_survives_saving(record: xr.Dataset, tmp_path: Path) -> None:
    path = records.save(record, tmp_path / "deep" / "run.nc")
    assert path == tmp_path / "deep" / "run.nc"
    back = records.open(path)
    xr.testing.assert_equal(back, record)
    assert set(back.data_vars) == set(record.data_vars)
    for name, variable in record.variables.items():
        assert back[name].dims == variable.dims
        np.testing.assert_array_equal(back[name].values, variable.values)
        assert dict(back[name].attrs) == dict(variable.attrs)
        if variable.dtype.kind != "O":
            assert back[name].dtype == variable.dtype, name
    assert back["received"].isnull().any()
    assert (back["text"].values == "").any()
    assert all(isinstance(text, str) for text in back["text"].values.flatten())
    assert dict(back.attrs) == dict(record.attrs)
    assert json.loads(back.attrs["provenance"])["seed"] == 4


def test_public_names_save_and_open(record: xr.Dataset, tmp_path: Path) -> None:
    xr.testing.assert_equal(sl.open(sl.save(record, tmp_path / "run.nc")), record)


def test_special_characters_survive(record: xr.Dataset, tmp_path: Path) -> None:
    odd = record.copy(deep=True)
    odd["text"].values[0, :4] = ["\n", "é", "日本", "<|bos|>"]
    assert records.open(records.save(odd, tmp_path / "r.nc"))["text"].values[0, :4].tolist() == [
        "\n",
        "é",
        "日本",
        "<|bos|>",
    ]


def test_an_opened_record_does_not_hold_its_file(record: xr.Dataset, tmp_path: Path) -> None:
    path = records.save(record, tmp_path / "run.nc")
    back = records.open(path)
    path.unlink()
    xr.testing.assert_equal(back, record)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file(
    record: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = records.save(record, tmp_path / "run.nc")
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error), match="run.nc' cannot be written: disk full" if str(error) else None):
        records.save(record.isel(prompt=[0]), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.nc"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(record: xr.Dataset, tmp_path: Path, share: float) -> None:
    path = records.save(record, tmp_path / "run.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RecordError, match=r"run.nc' cannot be read as netCDF"):
        records.open(path)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("no netCDF at all\n" * 100)
    xr.Dataset({"x": ("y", [1.0, 2.0])}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(RecordError, match=r"text.nc' cannot be read as netCDF"):
        records.open(tmp_path / "text.nc")
    with pytest.raises(RecordError, match="no sinklens record: it has no sinklens_schema"):
        records.open(tmp_path / "foreign.nc")
    with pytest.raises(RecordError, match=r"there is no record at '.*missing.nc'"):
        records.open(tmp_path / "missing.nc")
    with pytest.raises(RecordError, match="there is no record"):
        records.open(tmp_path)


def test_a_record_without_a_step_survives_saving(record: xr.Dataset, tmp_path: Path) -> None:
    """All variables, and no step."""
    empty = record.isel(step=slice(0, 0))
    assert set(records.VARIABLES) <= set(empty.data_vars)
    back = records.open(records.save(empty, tmp_path / "run.nc"))
    xr.testing.assert_equal(back, empty)
    assert back["masked"].dims == empty["masked"].dims


# Joining.


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_concat_keeps_every_number_and_pads_the_rest(models: dict[str, HookedDLM], name: str) -> None:
    dlm, probes = models[name], [ReceivedAttention()]
    long = record_of(dlm, ["zuko xi zuko tuko", "pante"], seed=[5, 6])
    short = denoise(dlm, "boma", Plan(new_tokens=3), probes=probes, seed=7, progress=False).record
    both = sl.concat([long, short])
    assert both.sizes["prompt"] == 3
    keys, steps = short.sizes["key"], short.sizes["step"]
    np.testing.assert_array_equal(both["received"][:2], long["received"])
    np.testing.assert_array_equal(both["received"][2, :steps, ..., :keys], short["received"][0])
    assert both["received"][2, steps:].isnull().all()
    assert (both["token"][2, keys:] == -1).all()
    assert (both["text"][2, keys:] == "").all()
    made = json.loads(both.attrs["provenance"])
    assert [part["seed"] for part in made["joined"]] == [[5, 6], 7]
    assert made["seed"] == [5, 6, 7]


def test_concat_refuses_records_that_do_not_belong_together(models: dict[str, HookedDLM]) -> None:
    dlm, arm = models["tiny-dlm"], models["tiny-arm"]
    with pytest.raises(RecordError, match="different models"):
        sl.concat([record_of(dlm, "zuko"), record_of(arm, "zuko")])
    bare = record_of(dlm, "zuko", probes=[])
    with pytest.raises(RecordError, match="not all have received"):
        sl.concat([record_of(dlm, "zuko"), bare])
    with pytest.raises(RecordError, match="at least one"):
        sl.concat([])
