"""`sinklens patch`: what it writes, and that it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

import sinklens as sl
from sinklens.cli.app import app

PAIR = ["--clean", "pante dolko xy", "--corrupt", "pante talma xy", "--new-tokens", "4"]


def test_patch_writes_record_and_page_and_goes_on(tmp_path: Path) -> None:
    arguments = ["patch", "tiny-dlm", *PAIR, "--site", "values", "--by", "head", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "at most 32 patches in 8 forwards" in result.output
    record = sl.open(tmp_path / "patches.nc")
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    plan = sl.Plan(new_tokens=4)
    same = sl.patch(dlm, PAIR[1], PAIR[3], plan, sl.Patches("values", "head"), progress=False)
    np.testing.assert_array_equal(record["effect"], same["effect"])
    assert "Patching values" in (tmp_path / "patches.html").read_text(encoding="utf-8")
    forwards = (tmp_path / "forwards.jsonl").read_text()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "forwards.jsonl").read_text() == forwards  # nothing was computed again
    assert sl.open(tmp_path / "patches.nc").identical(record)


def test_prompts_of_other_lengths_are_refused_before_weights(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["patch", "tiny-dlm", *PAIR[:3], "pante xy", "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "as many tokens" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_the_steps_that_an_error_asks_for_can_be_said(tmp_path: Path) -> None:
    arguments = ["patch", "tiny-dlm", *PAIR, "--site", "values", "--by", "head", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--at", "0,2"])
    assert result.exit_code == 0, result.output
    assert sl.open(tmp_path / "patches.nc")["step"].to_numpy().tolist() == [0, 2]
    result = CliRunner().invoke(app, [*arguments, "--at", "2-0"])
    assert "the range '2-0' holds nothing" in str(result.exception)
