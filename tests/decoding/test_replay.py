"""Replaying and joining records, and `sinklens trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import sinklens as sl
from sinklens.cli.app import app
from sinklens.errors import RecordError

PLAN = sl.Plan(new_tokens=6, temperature=1.0)


@pytest.fixture(scope="module", params=["tiny-dlm", "tiny-arm"])
def dlm(request: pytest.FixtureRequest) -> sl.HookedDLM:
    return sl.HookedDLM.from_pretrained(request.param)


def record_of(dlm: sl.HookedDLM, *prompts: str, plan: sl.Plan = PLAN, **options: Any) -> xr.Dataset:
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


def test_replay_notices_another_model(dlm: sl.HookedDLM) -> None:
    untrained = sl.HookedDLM.from_pretrained(dlm.name, revision="step-0")
    with pytest.raises(RecordError, match="gave other tokens"):
        sl.replay(record_of(dlm, "zuko xi zuko"), untrained, progress=False)


def test_concat_keeps_every_number_and_pads_the_rest(dlm: sl.HookedDLM) -> None:
    long, short = record_of(dlm, "zuko xi zuko tuko", "pante"), record_of(dlm, "boma", plan=sl.Plan(new_tokens=3))
    both = sl.concat([long, short])
    assert both.sizes["prompt"] == 3
    keys, steps = short.sizes["key"], short.sizes["step"]
    np.testing.assert_array_equal(both["received"][:2], long["received"])
    np.testing.assert_array_equal(both["received"][2, :steps, ..., :keys], short["received"][0])
    assert both["received"][2, steps:].isnull().all()
    assert (both["token"][2, keys:] == -1).all()
    assert (both["text"][2, keys:] == "").all()
    assert len(json.loads(both.attrs["provenance"])["joined"]) == 2


def test_concat_refuses_records_that_do_not_belong_together() -> None:
    dlm, arm = (sl.HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm"))
    with pytest.raises(RecordError, match="different models"):
        sl.concat([record_of(dlm, "zuko"), record_of(arm, "zuko")])
    bare = sl.denoise(dlm, "zuko", PLAN, progress=False).record
    with pytest.raises(RecordError, match="not all have received"):
        sl.concat([record_of(dlm, "zuko"), bare])
    with pytest.raises(RecordError, match="at least one"):
        sl.concat([])


def test_trace_writes_record_and_report_and_explains_its_rule(tmp_path: Path) -> None:
    arguments = [
        "trace",
        "tiny-dlm",
        "zuko xi zuko",
        "pante",
        "--new-tokens",
        "4",
        "--rule",
        "gu",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "units='share'" in result.output
    assert "zuko xi zuko -> " in result.output
    assert sl.open(tmp_path / "record.nc").sizes["prompt"] == 2
    assert "tiny-dlm" in (tmp_path / "report.html").read_text(encoding="utf-8")
