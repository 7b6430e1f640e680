"""Replaying records."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fuzzing import command
from torch import Tensor

import sinklens as sl
from sinklens.errors import RecordError
from sinklens.models.files import TWINS

PLAN = sl.Plan(new_tokens=6, temperature=1.0)


@pytest.fixture(scope="module", params=["tiny-dlm", "tiny-arm"])
def dlm(request: pytest.FixtureRequest) -> sl.HookedDLM:
    return sl.HookedDLM.from_pretrained(request.param)


def record_of(dlm: sl.HookedDLM, *prompts: Any, plan: sl.Plan = PLAN, **options: Any) -> xr.Dataset:
    probes = [sl.probes.ReceivedAttention()]
    return sl.denoise(dlm, list(prompts), plan, probes=probes, seed=4, progress=False, **options).record


def test_a_saved_record_replays_to_the_same_tokens_with_other_probes(dlm: sl.HookedDLM, tmp_path: Path) -> None:
    stored = sl.open(sl.save(record_of(dlm, "zuko xi zuko", "pante"), tmp_path / "record.nc"))
    run = sl.replay(stored, probes=[sl.probes.KeyNorm()], progress=False)
    np.testing.assert_array_equal(run.record["token"], stored["token"])
    np.testing.assert_array_equal(run.record["commit_step"], stored["commit_step"])
    assert "key_norm" in run.record


def test_filled_gaps_replay(dlm: sl.HookedDLM) -> None:
    record = record_of(dlm, "zuko xi <|mask|> tuko wa <|mask|>", plan=sl.Plan(new_tokens=0))
    np.testing.assert_array_equal(sl.replay(record, dlm, progress=False).record["token"], record["token"])


def test_replay_refuses_what_it_cannot_repeat(dlm: sl.HookedDLM) -> None:
    edit = sl.MaskSinks(sl.SameStep(top_k=1))
    edited = record_of(dlm, "zuko xi zuko", interventions=[edit])
    with pytest.raises(RecordError, match="made with interventions"):
        sl.replay(edited, dlm, progress=False)
    again = sl.replay(edited, dlm, interventions=[sl.MaskSinks(sl.SameStep(top_k=1))], progress=False)
    np.testing.assert_array_equal(again.record["token"], edited["token"])
    with pytest.raises(RecordError, match="teacher-forced"):
        sl.replay(record_of(dlm, "zuko", force=[[65] * 6]), dlm, progress=False)
    with pytest.raises(RecordError, match="provenance"):
        sl.replay(edited.assign_attrs(provenance="{}"), dlm, progress=False)
    old = json.loads(edited.attrs["provenance"]) | {"plan": {"new_tokens": 6}}
    with pytest.raises(RecordError, match="cannot be replayed, its provenance lacks"):
        sl.replay(edited.assign_attrs(provenance=json.dumps(old)), dlm, progress=False)


@dataclass(frozen=True, repr=False)
class Leans(sl.Edit):
    """Adds a bias to the first key's scores. Its repr rounds, as many do."""

    bias: float

    def hooks(self, model: Any, canvas: Any, memory: Any) -> list[Any]:
        def hook_function(scores: Tensor, *, hook: Any) -> Tensor:
            return torch.cat([scores[..., :1] + self.bias, scores[..., 1:]], -1)

        return [(f"blocks.{layer}.attn.hook_attn_scores", hook_function) for layer in range(model.cfg.n_layers)]

    def __repr__(self) -> str:
        return f"Leans({self.bias:g})"


def test_replay_compares_content_and_not_how_it_reads(dlm: sl.HookedDLM, tmp_path: Path) -> None:
    edited = record_of(dlm, "zuko xi zuko", interventions=[Leans(-1.000001)])
    stored = sl.open(sl.save(edited, tmp_path / "record.nc"))
    for record in (edited, stored):
        again = sl.replay(record, dlm, interventions=[Leans(-1.000001)], progress=False)
        np.testing.assert_array_equal(again.record["token"], edited["token"])
        assert repr(Leans(-1.0000001)) == repr(Leans(-1.000001))
        with pytest.raises(RecordError, match="they read alike, and their content differs"):
            sl.replay(record, dlm, interventions=[Leans(-1.0000001)], progress=False)
    with pytest.raises(RecordError, match=r"given are \[\]"):
        sl.replay(edited, dlm, progress=False)


def test_the_order_of_edits_is_content(dlm: sl.HookedDLM) -> None:
    one, other = (Scoped(where=sl.Scope(heads=head)) for head in (0, 1))
    record = record_of(dlm, "zuko", interventions=[one, other])
    assert sl.replay(record, dlm, interventions=[one, other], progress=False).finished
    with pytest.raises(RecordError, match="made with interventions"):
        sl.replay(record, dlm, interventions=[other, one], progress=False)


@dataclass(frozen=True, repr=False)
class Scoped(sl.Edit):
    """Changes nothing, in some heads."""

    where: sl.Scope = sl.Scope()

    def hooks(self, model: Any, canvas: Any, memory: Any) -> list[Any]:
        return [("blocks.0.attn.hook_pattern", lambda pattern, *, hook: None)]


def test_the_seed_of_each_prompt_survives_joining(dlm: sl.HookedDLM) -> None:
    one, other = (sl.denoise(dlm, "zuko xi zuko", PLAN, seed=seed, progress=False).record for seed in (3, [8]))
    both = sl.concat([one, other])
    assert json.loads(both.attrs["provenance"])["seed"] == [3, 8]
    np.testing.assert_array_equal(sl.replay(both, dlm, progress=False).record["token"], both["token"])


def test_replay_notices_another_model(dlm: sl.HookedDLM) -> None:
    untrained = sl.HookedDLM.from_pretrained(dlm.name, revision="step-0")
    with pytest.raises(RecordError, match="gave other tokens"):
        sl.replay(record_of(dlm, "zuko xi zuko"), untrained, progress=False)


def test_replay_loads_the_model_as_the_records_was() -> None:
    """In half precision, where the record was: in float32 tokens may be the same, and numbers are not."""
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm", dtype=torch.bfloat16)
    dlm.attention = "pattern"
    record = record_of(dlm, "zuko xi zuko")
    again = sl.replay(record, probes=[sl.probes.ReceivedAttention()], progress=False).record
    np.testing.assert_array_equal(again["received"], record["received"])
    made = [json.loads(each.attrs["provenance"]) for each in (record, again)]
    assert made[0]["dtype"] == made[1]["dtype"] == "bfloat16"
    assert made[0]["attention"] == made[1]["attention"] == "pattern"


def test_replay_loads_what_had_to_be_said_of_a_checkpoint(tmp_path: Path) -> None:
    """Neither family nor mask token are in its files; both are in the record."""
    folder = tmp_path / "unsaid"
    folder.mkdir()
    shutil.copy(TWINS / "tiny-dlm" / "model.safetensors", folder)
    config = json.loads((TWINS / "tiny-dlm" / "config.json").read_text())
    del config["mask_token_id"], config["architectures"]
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unsaid"}))
    said = sl.HookedDLM.from_pretrained(str(folder), family="LLaDA", mask_token_id=2)
    record = record_of(said, [5, 6, 7])
    again = sl.replay(record, probes=[sl.probes.ReceivedAttention()], progress=False).record
    np.testing.assert_array_equal(again["received"], record["received"])
    family = ["--family", "LLaDA"]
    assert command("hooks", str(folder), *family, "--mask-token-id", "2")[0] == 0
    assert "mask_token_id=" in command("hooks", str(folder), *family)[2]
    assert "family=" in command("hooks", str(folder))[2]
