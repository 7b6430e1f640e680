"""`sinklens select curve` and `select show`: what they write, what they refuse before a forward, and going on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app as cli
from sinklens.errors import ContentError, GateError, PlanError, TaskError
from sinklens.experiments import runner
from sinklens.selection import Gate, Shape

RUNNER = CliRunner()
SMALL = ["tiny-dlm", "--gaps", "0.5", "--prompts", "3", "--rate", "0.5", "--rate", "0.25", "--draws", "1"]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained gate of tiny-dlm."""
    folder = tmp_path_factory.mktemp("gates") / "mine"
    Gate.fresh(Shape(), sinklens.HookedDLM.from_pretrained("tiny-dlm"), seed=1).save(folder)
    return str(folder)


def invoke(*arguments: str, code: int = 0) -> str:
    """Output of a command."""
    result = RUNNER.invoke(cli.app, ["select", *arguments], catch_exceptions=False)
    assert result.exit_code == code
    return result.output


@pytest.mark.parametrize(("command", "words"), [("curve", ("--gate", "key_norm", "24")), ("show", ("TEXT", "--rate"))])
def test_help_teaches(command: str, words: tuple[str, ...]) -> None:
    text = invoke(command, "--help")
    assert f"sinklens select {command} tiny-dlm" in text
    for word in words:
        assert word in text


def test_a_curve_writes_what_the_library_says_and_goes_on(
    gate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "curve")
    said = invoke("curve", *SMALL, "--gate", gate, "--selector", "random", "--margin", "0.1", "--out", out)
    result = sinklens.AblationResult.open(tmp_path / "curve" / "result.json")
    table, written = sinklens.budget_table(result), pd.read_csv(tmp_path / "curve" / "budgets.csv")
    assert {"unmasked", "random", "mine", "without sinks"} < set(table.selector)
    assert written["value"].tolist() == pytest.approx(table["value"].tolist())
    assert set(written["model"]) == {"tiny-dlm"}
    assert "holds" in said
    page = (tmp_path / "curve" / "report.html").read_text()
    for words in ("How few keys are enough", "shown to lose less than 0.1 there", "What was kept in truth"):
        assert words in page

    def decode(*arguments: object, **options: object) -> None:
        raise AssertionError("something was run again")

    monkeypatch.setattr(runner.Runner, "_decode", decode)
    invoke("curve", *SMALL, "--gate", gate, "--selector", "random", "--out", out)
    with pytest.raises(AssertionError, match="run again"):
        invoke("curve", *SMALL, "--gate", gate, "--selector", "recency", "--out", out)


def test_an_interrupted_curve_keeps_what_it_has(gate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = runner.Runner.run, []

    def stop(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*arguments, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(runner.Runner, "run", stop)
    out = tmp_path / "curve"
    given = [*SMALL, "--gate", "none", "--selector", "random", "--batch-size", "8", "--out", str(out)]
    said = invoke("curve", *given, code=130)
    assert "unfinished" in said
    assert "unfinished" in (out / "report.html").read_text().lower()
    monkeypatch.setattr(runner.Runner, "run", honest)
    assert "unfinished" not in invoke("curve", *given)


WRONG: list[tuple[list[str], type[Exception], str]] = [
    (["--rate", "0"], ContentError, "outside"),
    (["--rate", "0.001"], TaskError, "less than one"),
    (["--selector", "best"], ContentError, "best"),
    (["--gate", "/nowhere"], GateError, "/nowhere"),
    (["--gate", "auto", "--family", "LLaDA", "--margin", "-1"], PlanError, "margin"),
    (["--metric", "speed"], ValueError, "speed"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG)
def test_a_curve_that_means_nothing_is_refused_before_a_forward(
    no_forward: None, tmp_path: Path, given: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        invoke("curve", "tiny-dlm", *given, "--out", str(tmp_path / "curve"))
    assert not (tmp_path / "curve").exists()


def test_show_writes_a_record_and_a_page(gate: str, tmp_path: Path) -> None:
    said = invoke(
        "show", "tiny-dlm", "dolko xe dolko xo", "gake xe", "--gate", gate, "--rate", "0.3", "--rate", "0.8",
        "--new-tokens", "4", "--out", str(tmp_path / "show"),
    )  # fmt: skip
    record = sinklens.open(tmp_path / "show" / "record.nc")
    assert record["rate"].to_numpy().tolist() == [0.3, 0.8]
    assert "Sinks that the gate keeps" in said
    page = (tmp_path / "show" / "report.html").read_text()
    assert "How long each token survives (prompt 1)" in page


def test_a_gate_of_another_model_is_not_shown(gate: str, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="tiny-dlm"):
        invoke("show", "tiny-arm", "dolko xe", "--gate", gate, "--out", str(tmp_path / "show"))
