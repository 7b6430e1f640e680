"""`sinklens eval` is lm_eval's own command line, with the model sinklens and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from parts_harness import local_tasks
from typer.testing import CliRunner

from sinklens.cli.app import app
from sinklens.errors import PlanError

LINES = [
    {"question": "xe xo", "choices": ["xu", "xa"], "gold": 0},
    {"question": "dolko xe", "choices": ["xa", "xo"], "gold": 1},
]
SAID = 'pretrained=tiny-dlm,edit="mask:same/top1@layers=0,1",control=random,seed=1,mc_num=4'


def arguments(folder: Path) -> list[str]:
    """A command over a local task, and where its results go."""
    tasks = ["--tasks", "local_choice", "--include_path", str(local_tasks(folder / "tasks", LINES))]
    return ["eval", "--model_args", SAID, *tasks, "--batch_size", "4", "--output_path", str(folder / "out")]


def check(folder: Path, shown: str) -> None:
    """The table is shown, and the results say what was done."""
    assert "|local_choice|" in shown
    (written,) = (folder / "out").rglob("results*.json")
    told = json.loads(written.read_text())["config"]["sinklens"]
    assert told["mc_num"] == 4
    assert told["read_as"]["edited_requests"] == {"loglikelihood": 1.0}


def test_a_task_over_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without the harness's own tasks, whose list takes long to read."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("sys.argv", ["sinklens"])
    app(arguments(tmp_path), standalone_mode=False)
    check(tmp_path, capsys.readouterr().out)
    assert sys.argv == ["sinklens"]


@pytest.mark.slow
def test_the_same_from_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "sinklens.cli.app", *arguments(tmp_path)]
    apart = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=apart)
    assert found.returncode == 0, found.stderr
    check(tmp_path, found.stdout)


def test_other_models_are_lm_evals_own() -> None:
    found = CliRunner().invoke(app, ["eval", "--model", "hf"])
    assert isinstance(found.exception, PlanError)
    assert "sinklens eval is for the model 'sinklens'" in str(found.exception)


def test_help_names_the_arguments() -> None:
    found = CliRunner().invoke(app, ["eval", "--help"])
    assert found.exit_code == 0
    for word in ("pretrained=", "edit=", "control=", "plan=", "mc_num=", "--include_path"):
        assert word in found.output


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklens.cli.evaluate.find_spec", lambda name: None)
    found = CliRunner().invoke(app, ["eval", "--tasks", "x"])
    assert "pip install 'sinklens[evals]'" in str(found.exception)
