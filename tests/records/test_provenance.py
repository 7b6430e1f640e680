"""A record says what made its numbers."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Scope, denoise
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


def test_provenance_says_what_made_the_numbers(record: xr.Dataset) -> None:
    made = json.loads(record.attrs["provenance"])
    assert (made["model"], made["family"], made["dtype"], made["device"]) == ("tiny-dlm", "LLaDA", "float32", "cpu")
    assert made["seed"] == 4
    assert made["plan"]["new_tokens"] == NEW
    assert made["plan"]["remasking"] == "low_confidence"  # defaults are filled in
    for package in ("sinklens", "torch", "transformers", "transformer-lens"):
        assert made["versions"][package] == importlib.metadata.version(package)
    edit, probe = MaskSinks(SameStep(top_k=1)), ReceivedAttention()
    assert made["interventions"] == [edit.to_dict()]
    assert made["probes"] == [probe.to_dict()]
    assert made["read_as"] == {
        "plan": repr(Plan.from_dict(made["plan"])),
        "probes": [repr(probe)],
        "interventions": [repr(edit)],
    }
    assert made["fired"] == {repr(edit): NEW * 2, repr(probe): NEW * 2}  # steps x layers
    assert made["edit_counts"][0]["keys"] == 3 * NEW * 2 * 4  # rows x steps x layers x heads
    assert made["finished"] is True
    assert record.attrs["prompts"] == 3


def test_provenance_of_edits_that_watch_and_of_seeds_per_row(models: dict[str, HookedDLM]) -> None:
    edit = MaskSinks(PreviousStep(top_k=1), where=Scope(steps=slice(3, None), layers=[0]))
    made = json.loads(record_of(models["tiny-arm"], interventions=[edit], seed=[7, 8, 9]).attrs["provenance"])
    assert made["seed"] == [7, 8, 9]
    assert made["interventions"] == [json.loads(json.dumps(edit.to_dict()))]
    assert made["fired"][repr(edit)] == NEW - 2  # step 2 is watched
    assert made["edit_counts"][0]["keys"] == 3 * (NEW - 3) * 4


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
