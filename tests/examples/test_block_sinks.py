"""examples/05_block_sinks.py: what it says of the twins holds, with fewer prompts, and its tables are what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "05_block_sinks.py"


def test_the_study_says_what_its_text_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--prompts=10"])
    found = runpy.run_path(str(SCRIPT))
    where = found["where"].set_index(["model", "key"])
    for name in ("tiny-dlm", "tiny-bdlm", "tiny-arm"):
        assert where.loc[name].sum().tolist() == pytest.approx([1, 1])
    assert where.loc[("tiny-bdlm", "last token before the block"), "of sinks"] > 0.1
    moves = found["moves"].set_index(["model", "queries", "layer"]).jaccard
    assert moves["tiny-bdlm", "block", 0] < 0.5 < moves["tiny-bdlm", "all", 0]
    recall = found["recall"]
    assert (recall.recall > 3 * recall.chance).all()
    assert (recall.mass > 2 * recall.chance_mass).all()
    costs = found["costs"].set_index(["model", "editing", "condition", "kind"]).value
    assert set(costs.index.droplevel([2, 3])) == {
        ("tiny-dlm", "scratch"),
        *((name, editing) for name in ("tiny-bdlm", "tiny-arm") for editing in ("scratch", "local")),
    }
    for editing in ("scratch", "local"):
        assert costs["tiny-bdlm", editing, "top-3", "sinks"] < 0.5 < costs["tiny-bdlm", editing, "top-3", "random"]
        assert costs["tiny-arm", editing, "top-3", "sinks"] < 0.5 < costs["tiny-arm", editing, "top-3", "random"]
    assert costs["tiny-dlm", "scratch", "top-1", "sinks"] > 0.8
    assert (tmp_path / "sinklens-blocks" / "report.html").is_file()
    assert "Sinks when the past is frozen" in (tmp_path / "sinklens-blocks" / "report.html").read_text(encoding="utf-8")
    assert "Recall of the block's first step" in capsys.readouterr().out
