"""`sinklens demo --real`: its job and page, run on the twins in the place of real models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sinklens as sl
from sinklens.cli import app as cli
from sinklens.cli import real_job, real_models, real_page
from sinklens.cli.real_job import Subject
from sinklens.errors import CheckpointError
from sinklens.models import packages
from sinklens.models.placing import Placing
from sinklens.plots import doses

PLAN = sl.Plan(new_tokens=16, temperature=1.0)
SUBJECTS = [
    Subject("tiny-arm", sl.tasks.Echo(6, seed=3), sl.tasks.Echo(3, seed=3), PLAN, "an autoregressive twin"),
    Subject(
        "tiny-dlm",
        sl.tasks.Echo(6, seed=3, gaps=0.5),
        sl.tasks.Echo(3, seed=3, gaps=0.5),
        sl.Plan(new_tokens=0, steps=4),
        "a diffusion twin",
    ),
]

SINKS = {"first_token": [0.5, 0.01], "per_head": [1.0, 2.0], "on": {"first": 0.9, "newline": 0.1}}
LOG = [{"update": at, "causal": not at, "t=0.5": {"accuracy": 0.1}, "sinks": SINKS} for at in (0, 10)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[real_job.Found, Path]:
    """The job, done once, and its folder."""
    out = tmp_path_factory.mktemp("real")
    log = out / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in LOG), encoding="utf-8")
    subjects = [SUBJECTS[0], replace(SUBJECTS[1], log=log)]
    job = real_job.real_job(subjects, out, Placing(device="cpu"))
    real_page.write_report(job, out)
    return job, out


def test_every_setting_has_its_line_with_controls_and_exposure(found: tuple[real_job.Found, Path]) -> None:
    job, out = found
    table = pd.read_csv(out / "table1.csv")
    kinds = {"sinks", "random", "same_mass", "shifted"}
    for subject in SUBJECTS:
        mine = table[table.model == subject.model]
        assert len(mine) == 1 + 2 * 3 * len(kinds)
        for (_, k), part in mine[mine.k > 0].groupby(["detector", "k"]):
            assert set(part.kind) == kinds
            assert k in (1, 5, 10)
        scores = pd.DataFrame(job.results[subject.model].scores)
        for line in mine.itertuples():
            name = f"{line.detector}, k={line.k}" if line.k else "unmasked"
            these = scores[(scores.condition == name) & (scores.kind == line.kind)]
            assert line.accuracy == pytest.approx(these.groupby("prompt")["value"].mean().mean())
        same, before = (
            mine[(mine.kind == "sinks") & (mine.detector == name)] for name in ("same step", "previous step")
        )
        assert (same.exposed == 1).all()
        assert (before.exposed < 1).all()  # step 0 has no step before it


def test_differences_to_a_control_are_paired(found: tuple[real_job.Found, Path]) -> None:
    job, out = found
    table = pd.read_csv(out / "table1.csv")
    scores = pd.DataFrame(job.results["tiny-dlm"].scores)
    chosen = scores[scores.condition == "same step, k=5"]
    by_prompt = {kind: part.set_index("prompt")["value"] for kind, part in chosen.groupby("kind")}
    for kind in ("random", "same_mass", "shifted"):
        line = table[
            (table.model == "tiny-dlm") & (table.detector == "same step") & (table.k == 5) & (table.kind == kind)
        ]
        assert line.minus_control.item() == pytest.approx((by_prompt["sinks"] - by_prompt[kind]).mean())


def test_tables_of_places_and_records_are_of_every_model(found: tuple[real_job.Found, Path]) -> None:
    job, out = found
    for table in (job.places, job.tokens):
        for name in ("tiny-arm", "tiny-dlm"):
            assert table[table.model == name].share_of_keys.sum() == pytest.approx(1)
    for subject in SUBJECTS:
        record = sl.open(out / subject.record)
        assert record.sizes["prompt"] == 6
        assert np.isfinite(record["received"]).any()


def test_the_page_shows_curves_controls_and_what_was_published(found: tuple[real_job.Found, Path]) -> None:
    text = (found[1] / "report.html").read_text(encoding="utf-8")
    for word in (
        "Llama-3.1-8B (GSM8K, published)",
        "same_mass",
        "shifted",
        "exposed",
        "separator",
        "an autoregressive twin",
    ):
        assert word in text


def test_curves_of_chosen_controls_with_others_from_elsewhere(found: tuple[real_job.Found, Path]) -> None:
    results = list(found[0].results.values())
    figure = doses.dose_response(
        results, "same step, k", "accuracy", controls=["random"], reference={"a paper": {1.0: 0.5, 5.0: 0.25}}
    )
    assert len(figure.data) == 2 * 2 + 1
    assert list(figure.data[-1].y) == [0.5, 0.25]
    with pytest.raises(ValueError, match="was not run with bottom"):
        doses.dose_response(results, "same step, k", "accuracy", controls=["bottom"])


def test_what_was_not_fetched_is_said_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packages.CACHE, str(tmp_path / "none"))
    result = CliRunner().invoke(cli.app, ["demo", "--real", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, CheckpointError)
    assert re.search("sinklens models get smollm2-135m", str(result.exception))
    assert not (tmp_path / "out").exists()


def test_the_subjects_have_as_many_prompts_as_asked() -> None:
    few = real_models.subjects(5)
    assert [len(each.task) for each in few] == [5] * len(few)
    assert {"smollm2-135m", "antiberty"} <= {each.model for each in few}


@pytest.mark.parametrize(("prompts", "few"), [(4, 2), (16, 8), (30, 15)])
def test_budgets_are_asked_of_half_of_the_prompts(prompts: int, few: int) -> None:
    for subject in real_models.subjects(prompts):
        assert (len(subject.task), len(subject.few)) == (prompts, few)
        assert [subject.few[index] for index in range(few)] == [subject.task[index] for index in range(few)]
