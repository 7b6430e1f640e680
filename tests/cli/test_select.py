"""`sinklens select train`: a gate from the command line, gone on with after an interrupt, and errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sinklens.cli.app import app
from sinklens.selection import Gate, training

QUICK = ["--updates", "4", "--batch", "2", "--length", "20", "--hidden", "3"]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["select", "train", *words])


def test_a_gate_is_trained_described_and_used(tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    done = run("tiny-dlm", "--out", str(folder), *QUICK)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "gate.json", "gate.safetensors", "log.jsonl"]
    assert f"--edit keep=0.5:learned@gate={folder} --edit keep=0.5:random@layers=1-" in done.output
    gate = Gate.load(folder)
    assert gate.made["recipe"]["updates"] == 4
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["rate"] for row in lines[-1]["held_out"]] == [0.1, 0.25, 0.5, 0.75]
    assert {"loss", "kl", "share"} <= set(lines[-1])
    edits = [f"keep=0.5:learned@gate={folder}", "keep=0.5:random@layers=1-"]
    options = [word for edit in edits for word in ("--edit", edit)]
    more = ["--prompts", "4", "--control", "none", "--out", str(tmp_path / "out")]
    ablated = CliRunner().invoke(app, ["ablate", "tiny-dlm", *options, *more])
    assert ablated.exit_code == 0, ablated.output
    assert edits[0] in ablated.output


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training._update

    def update(*args: Any) -> Any:
        monkeypatch.setattr(training, "_update", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_update", update)
    stopped = run("tiny-dlm", "--out", str(tmp_path), *QUICK)
    assert stopped.exit_code == 130
    assert f"a checkpoint is in {tmp_path}; to go on start the same command again" in stopped.output
    assert run("tiny-dlm", "--out", str(tmp_path), *QUICK).exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "magic"], "kind='magic' is unknown"),
        (["--first", "2"], "first=2: tiny-dlm has the layers 0 to 1"),
        (["--updates", "0"], "updates=0"),
        (["--lowest", "1"], "lowest=1.0 must be below 1"),
        (["--text", "nowhere.txt"], "cannot be read"),
        (["--length", "9999"], "length=9999: tiny-dlm knows"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, words: list[str], said: str, no_forward: None) -> None:
    done = run("tiny-dlm", "--out", str(tmp_path), *words)
    assert done.exit_code != 0
    assert said in str(done.exception)
    assert not list(tmp_path.iterdir())
