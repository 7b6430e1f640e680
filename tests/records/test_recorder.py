"""What a record holds, and what it holds where nothing was measured: never zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from sinklens import HookedDLM, Plan, Scope, denoise
from sinklens.hooks import Canvas, Hook, Probe
from sinklens.probes import ReceivedAttention
from sinklens.records import Recorder

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


@dataclass(frozen=True, repr=False)
class Late(ReceivedAttention):
    """Received attention by another name."""

    name = "late"


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
    where = Scope(layers=[1], steps=[2, 3])
    part = record_of(models["tiny-dlm"], probes=[ReceivedAttention(where)])["received"]
    full = record_of(models["tiny-dlm"])["received"]
    assert part["layer"].values.tolist() == [1]
    assert part["step"].values.tolist() == list(range(NEW))
    assert part.isel(step=[0, 1, 4, 5]).isnull().all()
    np.testing.assert_allclose(part.sel(layer=1, step=[2, 3]), full.sel(layer=1, step=[2, 3]), atol=1e-5)


def test_two_probes_of_different_layers_in_one_record(models: dict[str, HookedDLM]) -> None:
    late = Late(Scope(layers=-1))
    record = record_of(models["tiny-dlm"], probes=[ReceivedAttention(), late])
    assert record["layer"].values.tolist() == [0, 1]
    assert record["late"].sel(layer=0).isnull().all()
    np.testing.assert_array_equal(record["late"].sel(layer=1), record["received"].sel(layer=1))


def test_received_attention_of_the_padded_rows_averages_one(models: dict[str, HookedDLM]) -> None:
    received = record_of(models["tiny-dlm"])["received"]
    np.testing.assert_allclose(received.mean("key"), 1, atol=1e-5)


# Every dim of a probe, and every dtype.


@dataclass(frozen=True, repr=False)
class Given(Probe):
    """Hands on whatever a test left in `seen`."""

    name: str = "given_values"
    dims: tuple[str, ...] = ()
    unit: str = "unit"
    definition: str = "definition"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        return []

    def values(self, seen: dict[Any, Any]) -> Tensor:
        return seen["values"]

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        return seen.get("coords", {})

    def attributes(self) -> dict[str, Any]:
        return {"queries": "masked"}


VALID = torch.tensor([[False, False, True, True, True], [True, True, True, True, False]])
STARTS, LENGTH = [2, 0], 5


def recorded(probe: Given, *steps: dict[str, Any] | None, active: Any = (True, True)) -> xr.DataArray:
    """What a record holds of a probe after some steps on one canvas."""
    recorder, none = Recorder([probe], STARTS, LENGTH), torch.zeros_like(VALID)
    tokens = torch.arange(10).view(2, 5)
    canvas = Canvas(tokens, VALID, none, VALID)
    for seen in steps:
        recorder.add(canvas, torch.tensor(active), [seen])
    final = {name: tokens for name in ("token", "commit_step", "predicted")}
    final |= {"given": VALID, "confidence": tokens.float()}
    record = recorder.dataset(final, [["a"] * 3, ["b"] * 4], {})
    return record[probe.name]


def test_queries_and_keys_are_both_counted_from_each_prompts_start() -> None:
    """Naively, entry by entry: where either position is not real there is no number."""
    values = torch.arange(2 * 5 * 5).view(2, 5, 5).float()
    found = recorded(Given(dims=("query", "key")), {"values": values})
    assert found.dims == ("prompt", "step", "query", "key")
    for row, start in enumerate(STARTS):
        for query in range(LENGTH):
            for key in range(LENGTH):
                a, b = start + query, start + key
                value = float(found[row, 0, query, key])
                if a < 5 and b < 5 and VALID[row, a] and VALID[row, b]:
                    assert value == values[row, a, b]
                else:
                    assert np.isnan(value)


@pytest.mark.parametrize("dims", [("key", "head"), ("head", "key"), ("layer", "key", "head"), ("key",)])
def test_positions_may_be_any_dim(dims: tuple[str, ...]) -> None:
    sizes = {"head": 3, "layer": 2, "key": 5}
    shape = [2, *(sizes[dim] for dim in dims)]
    values = torch.arange(int(np.prod(shape))).view(shape).float()
    found = recorded(Given(dims=dims), {"values": values}).transpose("prompt", "step", ..., "key")
    naive = values.movedim(1 + dims.index("key"), -1)
    np.testing.assert_array_equal(found[0, 0, ..., :3], naive[0, ..., 2:])
    np.testing.assert_array_equal(found[1, 0, ..., :4], naive[1, ..., :4])
    assert found[0, 0, ..., 3:].isnull().all()
    assert found[1, 0, ..., 4:].isnull().all()


@pytest.mark.parametrize("dims", [(), ("layer",), ("layer", "key"), ("query", "key")])
def test_rows_that_are_done_keep_nothing(dims: tuple[str, ...]) -> None:
    shape = [2, *({"layer": 3}.get(dim, 5) for dim in dims)]
    found = recorded(Given(dims=dims), {"values": torch.ones(shape)}, active=(False, True))
    assert found[0].isnull().all()
    assert found[1].notnull().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_values_of_every_dtype(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    found = recorded(Given(dims=("layer",)), {"values": values})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0], values.float())


def test_steps_out_of_scope_are_nan_and_coordinates_name_what_was_measured() -> None:
    probe = Given(dims=("layer", "kind"))
    seen = {"values": torch.ones(2, 2, 3), "coords": {"layer": [1, 3], "kind": ["x", "y", "z"]}}
    found = recorded(probe, None, seen, None)
    assert found["step"].values.tolist() == [0, 1, 2]
    assert found.sel(step=[0, 2]).isnull().all()
    assert (found.sel(step=1) == 1).all()
    assert found["layer"].values.tolist() == [1, 3]
    assert found["kind"].values.tolist() == ["x", "y", "z"]
    assert found.attrs == {"units": "unit", "definition": "definition", "queries": "masked"}


def test_what_was_measured_nowhere_is_no_variable() -> None:
    with pytest.raises(KeyError):
        recorded(Given(), None, None)


def test_a_step_whose_measurement_fails_is_not_kept_at_all() -> None:
    probes = [Given("good", ("layer",)), Given("bad", ("layer",))]
    recorder, none = Recorder(probes, STARTS, LENGTH), torch.zeros_like(VALID)
    tokens = torch.arange(10).view(2, 5)
    canvas, on = Canvas(tokens, VALID, none, VALID), torch.ones(2, dtype=torch.bool)
    good = {"values": torch.ones(2, 3)}
    recorder.add(canvas, on, [good, good])
    with pytest.raises(KeyError):
        recorder.add(canvas, on, [good, {}])
    recorder.add(canvas, on, [good, good])
    final = {name: tokens for name in ("token", "commit_step", "predicted")}
    record = recorder.dataset(final | {"given": VALID, "confidence": tokens.float()}, [["a"] * 3, ["b"] * 4], {})
    assert record.sizes["step"] == 2
    assert record["good"].shape == record["bad"].shape == (2, 2, 3)
