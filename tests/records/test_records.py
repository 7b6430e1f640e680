"""Records: what they hold where nothing was measured, and that a file is whole or refused."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import sinklens as sl
from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Where, denoise, records
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
    before, write = path.read_bytes(), xr.Dataset.to_netcdf

    def fail(self: xr.Dataset, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        raise error

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(type(error)):
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


# Provenance.


def test_provenance_says_what_made_the_numbers(record: xr.Dataset) -> None:
    made = json.loads(record.attrs["provenance"])
    assert (made["model"], made["family"], made["dtype"], made["device"]) == ("tiny-dlm", "LLaDA", "float32", "cpu")
    assert made["seed"] == 4
    assert made["plan"]["new_tokens"] == NEW
    assert made["plan"]["remasking"] == "low_confidence"  # defaults are filled in
    for package in ("sinklens", "torch", "transformers", "transformer-lens"):
        assert made["versions"][package] == importlib.metadata.version(package)
    edit = "MaskSinks(SameStep(top_k=1))"
    assert made["interventions"] == [edit]
    assert made["probes"] == ["ReceivedAttention()"]
    assert made["fired"] == {edit: NEW * 2, "ReceivedAttention()": NEW * 2}  # steps x layers
    assert made["edit_counts"][edit]["keys"] == 3 * NEW * 2 * 4  # rows x steps x layers x heads
    assert made["finished"] is True
    assert record.attrs["prompts"] == 3


def test_provenance_of_edits_that_watch_and_of_seeds_per_row(models: dict[str, HookedDLM]) -> None:
    edit = MaskSinks(PreviousStep(top_k=1), Where(steps=slice(3, None), layers=[0]))
    made = json.loads(record_of(models["tiny-arm"], interventions=[edit], seed=[7, 8, 9]).attrs["provenance"])
    assert made["seed"] == [7, 8, 9]
    assert made["interventions"] == [repr(edit)]
    assert made["fired"][repr(edit)] == NEW - 2  # step 2 is watched
    assert made["edit_counts"][repr(edit)]["keys"] == 3 * (NEW - 3) * 4


def test_a_revision_is_in_the_provenance() -> None:
    dlm = HookedDLM.from_pretrained("tiny-dlm", revision="step-50")
    assert json.loads(record_of(dlm, PROMPTS[:1]).attrs["provenance"])["revision"] == "step-50"


@pytest.mark.parametrize("seed", [np.int64(3), [np.int64(3)] * 3, np.full(3, 3), (3, 3, 3)])
def test_seeds_of_every_integer_type(models: dict[str, HookedDLM], seed: Any) -> None:
    plain = record_of(models["tiny-dlm"], seed=3)
    other = record_of(models["tiny-dlm"], seed=seed)
    np.testing.assert_array_equal(plain["token"], other["token"])
    assert json.loads(other.attrs["provenance"])["seed"] in (3, [3, 3, 3])


def test_units_and_definitions_are_there(record: xr.Dataset) -> None:
    for name, variable in record.data_vars.items():
        assert variable.attrs["definition"], name
        assert "units" in variable.attrs, name
    assert record["received"].attrs["units"] == "attention (column sum)"


# What is not there.


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_what_a_row_does_not_have_is_never_zero(models: dict[str, HookedDLM], name: str) -> None:
    dlm = models[name]
    record = record_of(dlm)
    given = [len(dlm.encode(prompt)) for prompt in PROMPTS]
    assert record["prompt_length"].values.tolist() == given
    assert record.sizes == {"prompt": 3, "key": max(given) + NEW, "step": NEW, "layer": 2, "head": 4}
    for p, prompt in enumerate(given):
        length = prompt + NEW
        for variable, outside in (("token", -1), ("given", -1), ("commit_step", -1), ("text", "")):
            values = record[variable].values[p]
            assert (values[length:] == outside).all(), variable
        assert (record["token"].values[p, :length] >= 0).all()
        assert record["given"].values[p, :length].tolist() == [1] * prompt + [0] * NEW
        assert (record["text"].values[p, :length] != "").all()
        assert np.isnan(record["confidence"].values[p]).tolist() == [
            not prompt <= key < length for key in range(record.sizes["key"])
        ]
        assert (record["predicted"].values[p, :prompt] == -1).all()
        assert (record["predicted"].values[p, prompt:length] >= 0).all()
        for t in range(NEW):
            seen = prompt + t if dlm.is_causal else length
            received = record["received"].values[p, t]
            assert not np.isnan(received[..., :seen]).any()
            assert np.isnan(received[..., seen:]).all()
            assert (record["canvas"].values[p, t, :seen] >= 0).all()
            assert (record["canvas"].values[p, t, seen:] == -1).all()
            assert np.isin(record["masked"].values[p, t, :seen], [0, 1]).all()
            assert (record["masked"].values[p, t, seen:] == -1).all()


def test_masks_leave_the_canvas_as_they_are_committed(models: dict[str, HookedDLM]) -> None:
    dlm, record = models["tiny-dlm"], record_of(models["tiny-dlm"])
    commit, masked = record["commit_step"].values, record["masked"].values
    for p in range(3):
        length = int(record["prompt_length"][p]) + NEW
        for t in range(NEW):
            for key in range(length):
                open_ = bool(record["given"][p, key] == 0) and commit[p, key] >= t
                assert masked[p, t, key] == open_
                expected = dlm.ids.mask if open_ else int(record["token"][p, key])
                assert int(record["canvas"][p, t, key]) == expected


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_a_row_alone_equals_its_slice_of_a_batch(models: dict[str, HookedDLM], name: str) -> None:
    """Keys are counted from each row's own first token, however it was padded."""
    together = record_of(models[name])
    for p, prompt in enumerate(PROMPTS):
        alone = record_of(models[name], prompt)
        length = alone.sizes["key"]
        piece = together.isel(prompt=[p], key=slice(length))
        for variable in ("token", "given", "commit_step", "predicted", "canvas", "masked", "text", "prompt_length"):
            np.testing.assert_array_equal(piece[variable].values, alone[variable].values, err_msg=variable)
        for variable in ("received", "confidence"):
            np.testing.assert_allclose(piece[variable], alone[variable], atol=2e-4)
    first = models[name].tokenizer.bos_token_id
    assert (together["token"].values[:, 0] == first).all()


def test_steps_and_layers_out_of_scope(models: dict[str, HookedDLM]) -> None:
    where = Where(layers=[1], steps=[2, 3])
    part = record_of(models["tiny-dlm"], probes=[ReceivedAttention(where)])["received"]
    full = record_of(models["tiny-dlm"])["received"]
    assert part["layer"].values.tolist() == [1]
    assert part["step"].values.tolist() == list(range(NEW))
    assert part.isel(step=[0, 1, 4, 5]).isnull().all()
    np.testing.assert_allclose(part.sel(layer=1, step=[2, 3]), full.sel(layer=1, step=[2, 3]), atol=1e-5)


def test_two_probes_of_different_layers_in_one_record(models: dict[str, HookedDLM]) -> None:
    late = ReceivedAttention(Where(layers=-1))
    late.name = "late"
    record = record_of(models["tiny-dlm"], probes=[ReceivedAttention(), late])
    assert record["layer"].values.tolist() == [0, 1]
    assert record["late"].sel(layer=0).isnull().all()
    np.testing.assert_array_equal(record["late"].sel(layer=1), record["received"].sel(layer=1))


def test_received_attention_of_the_padded_rows_averages_one(models: dict[str, HookedDLM]) -> None:
    received = record_of(models["tiny-dlm"])["received"]
    np.testing.assert_allclose(received.mean("key"), 1, atol=1e-5)


def test_seeds_for_wants_one_or_one_per_prompt() -> None:
    assert records.seeds_for(3, 2) == (3, 3)
    assert records.seeds_for([4, 5], 2) == (4, 5)
    with pytest.raises(ValueError, match="seed has 3 entries for 2 prompts"):
        records.seeds_for([1, 2, 3], 2)
