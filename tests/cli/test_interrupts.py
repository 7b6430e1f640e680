"""Ctrl-C on the command line: stop, keep, say what was kept and how to go on, mark it everywhere, exit 130."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fuzzing import command

import sinklens as sl
from sinklens import AblationResult, HookedDLM
from sinklens.decoding import run as runs
from sinklens.experiments import ablation

TRACE = ["trace", "tiny-dlm", "dolko xe dolko", "--new-tokens", "6"]
ABLATE = ["ablate", "--edit", "mask:same/top1", "--prompts", "4", "--new-tokens", "6", "--batch-size", "6"]
REPRODUCE = ["reproduce", "table1", "--prompts", "4", "--new-tokens", "6", "--batch-size", "20"]
DEMO = ["demo", "--prompts", "4"]
BANNER = re.compile(r'<p class="warning" role="alert">(.*?)</p>')


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Raises KeyboardInterrupt at a forward of a model that is loaded; None for never, to count."""
    forward = HookedDLM.__call__

    def at(number: int | None, model: str = "") -> list[int]:
        forwards: list[int] = []

        def until(self: HookedDLM, *args: Any, **kwargs: Any) -> Any:
            if self.__dict__.get("points") and "checked" in self.__dict__ and model in self.name:
                forwards.append(1)
                if len(forwards) == number:
                    raise KeyboardInterrupt
            return forward(self, *args, **kwargs)

        def check(self: HookedDLM) -> dict[str, float]:
            self.__dict__["checked"] = True
            return {}

        monkeypatch.setattr(HookedDLM, "__call__", until)
        monkeypatch.setattr(HookedDLM, "check", check)
        return forwards

    yield at
    monkeypatch.undo()


def stopped(*arguments: str) -> tuple[str, str]:
    """Output and last line of errors of a command that is interrupted."""
    code, out, err = command(*arguments)
    assert code == 130, (code, out, err)
    last = err.strip().splitlines()[-1]
    assert last.startswith("interrupted; "), err
    return out, last


def banner(path: Path) -> str:
    found = BANNER.findall(path.read_text(encoding="utf-8"))
    assert len(found) <= 1
    return found[0] if found else ""


@pytest.mark.parametrize("arguments", [TRACE, ABLATE, REPRODUCE, DEMO], ids=lambda each: each[0])
def test_before_anything_is_finished_nothing_is_written(
    tmp_path: Path, interrupt_at: Any, arguments: list[str]
) -> None:
    interrupt_at(1)
    stopped(*arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_trace_keeps_and_marks_the_finished_steps(tmp_path: Path, interrupt_at: Any) -> None:
    interrupt_at(4)
    text, last = stopped(*TRACE, "--out", str(tmp_path))
    assert text.index("*** unfinished: it was interrupted after 3 steps") < text.index("dolko xe dolko ->")
    assert "record.nc" in last
    assert "3 finished steps" in last
    assert sl.open(tmp_path / "record.nc").attrs["finished"] == 0
    assert sl.open(tmp_path / "record.nc").sizes["step"] == 3
    assert banner(tmp_path / "report.html").startswith("Unfinished: it was interrupted after 3 steps")
    interrupt_at(None)
    code, text, _ = command(*TRACE, "--out", str(tmp_path))
    assert (code, "***" in text, banner(tmp_path / "report.html")) == (0, False, "")
    assert sl.open(tmp_path / "record.nc").attrs["finished"] == 1


def test_trace_that_is_interrupted_while_it_saves_has_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save", interrupt)
    stopped(*TRACE, "--out", str(tmp_path))
    assert sl.open(tmp_path / "record.nc").sizes["step"] == 6
    assert (tmp_path / "report.html").is_file()


def test_ablate_keeps_and_marks_the_finished_batches(tmp_path: Path, interrupt_at: Any) -> None:
    whole = tmp_path / "whole"
    forwards = interrupt_at(None)
    assert command(*ABLATE, "--out", str(whole))[0] == 0
    every = len(forwards)
    for number in (every // 2 + 1, every):
        part = tmp_path / str(number)
        interrupt_at(number)
        text, last = stopped(*ABLATE, "--out", str(part))
        assert text.index("*** unfinished: it was interrupted after ") < text.index("Effects on accuracy")
        assert "scores.jsonl" in last
        assert "start the same command again" in last
        result = AblationResult.open(part / "result.json")
        assert not result.finished
        assert banner(part / "report.html").startswith("Unfinished: it was interrupted after ")
        assert "is unfinished: it was interrupted" in (part / "report.html").read_text()  # on the figures, too
        interrupt_at(None)
        code, text, _ = command(*ABLATE, "--out", str(part))
        assert (code, "***" in text, banner(part / "report.html")) == (0, False, "")
        assert AblationResult.open(part / "result.json").scores == AblationResult.open(whole / "result.json").scores


def test_reproduce_does_not_go_on_with_the_next_model(tmp_path: Path, interrupt_at: Any) -> None:
    two = [*REPRODUCE, "--model", "tiny-dlm", "--model", "tiny-arm"]
    forwards = interrupt_at(None, "tiny-arm")
    assert command(*two, "--out", str(tmp_path / "whole"))[0] == 0
    second = len(forwards)
    forwards = interrupt_at(None)
    assert command(*two, "--out", str(tmp_path / "whole2"))[0] == 0
    first = len(forwards) - second
    out = tmp_path / "part"
    interrupt_at(first // 2 + 2)
    text, _ = stopped(*two, "--out", str(out))
    table = pd.read_csv(out / "table1.csv")
    assert set(table.model) == {"tiny-dlm"}
    assert table.unfinished.all()
    said = banner(out / "report.html")
    assert said.startswith("Tiny-dlm is unfinished: it was interrupted after ")
    assert said.endswith("tiny-arm was not run.")
    assert "*** tiny-dlm is unfinished" in text
    assert " UNFINISHED" in (out / "report.html").read_text()
    interrupt_at(2, "tiny-arm")  # the first model is whole now, and the second has nothing
    text, _ = stopped(*two, "--out", str(out))
    assert banner(out / "report.html") == "Tiny-arm was not run."
    assert "unfinished" not in pd.read_csv(out / "table1.csv")
    interrupt_at(None)
    code, text, _ = command(*two, "--out", str(out))
    assert (code, "***" in text, banner(out / "report.html")) == (0, False, "")
    for name in ("tiny-dlm", "tiny-arm"):
        whole, again = (AblationResult.open(each / f"result-{name}.json") for each in (tmp_path / "whole", out))
        assert repr(again.scores) == repr(whole.scores)


def test_the_demo_stops_at_once_and_goes_on_where_it_was(tmp_path: Path, interrupt_at: Any) -> None:
    for number in (5, 80, 100):  # a trace of sinks, the first ablation, the next one
        forwards = interrupt_at(number)
        _, last = stopped(*DEMO, "--out", str(tmp_path))
        assert len(forwards) == number
        assert not (tmp_path / "report.html").exists()
        assert not (tmp_path / "ablation.csv").exists()
        assert "start the same command again" in last
    kept = (tmp_path / "scores.jsonl").read_text()
    interrupt_at(None)
    assert command(*DEMO, "--out", str(tmp_path))[0] == 0
    assert (tmp_path / "scores.jsonl").read_text().startswith(kept)


def test_an_interrupt_behind_the_last_batch_keeps_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "judge", interrupt)
    stopped(*REPRODUCE, "--model", "tiny-dlm", "--out", str(tmp_path))
    assert AblationResult.open(tmp_path / "result-tiny-dlm.json").finished


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (TRACE, "record.nc"),
        (TRACE, "report.html"),
        (ABLATE, "result.json"),
        (ABLATE, "summary.csv"),
        (ABLATE, "report.html"),
        (REPRODUCE, "table1.csv"),
        (REPRODUCE, "result-tiny-arm.json"),
        (DEMO, "ablation.csv"),
        (DEMO, "scores.jsonl"),
    ],
    ids=lambda each: each if isinstance(each, str) else each[0],
)
@pytest.mark.parametrize("mine", ["mine\n", '{"prompt": "a", "answer": "b"}'])
def test_files_of_others_in_out_are_found_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str, mine: str
) -> None:
    monkeypatch.setattr(HookedDLM, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / name).write_text(mine)
    code, _, err = command(*arguments, "--out", str(tmp_path))
    assert code == 2
    assert repr(str(tmp_path / name)) in err
    assert "left as it is" in err
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, mine)]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [TRACE, ABLATE, REPRODUCE, DEMO], ids=lambda each: each[0])
def test_signals_at_random_moments(tmp_path: Path, arguments: list[str]) -> None:
    """As a terminal sends them: exit 130 or 0, never a traceback; afterwards the command can be run to its end."""
    for number in range(12):
        out = tmp_path / str(number % 3)
        process = subprocess.Popen(
            [sys.executable, "-m", "sinklens.cli.app", *arguments, "--out", str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(1.0 + number * 0.8)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=240)
        assert process.returncode in (0, 130), (process.returncode, err)
        assert "Traceback" not in err, err
        assert not list(tmp_path.glob("*/*.partial"))
    assert command(*arguments, "--out", str(tmp_path / "0"))[0] == 0
