"""examples/autoencoder.py trains an autoencoder that explains the stream, saves it, and asks what it says it asks."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import sinklens as sl

EXAMPLE = Path(__file__).parents[2] / "examples" / "autoencoder.py"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its quick form: a hundred updates explain most of the variance, which as many random features do not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--quick"])
    names = runpy.run_path(str(EXAMPLE))
    assert names["log"]["unexplained"].iloc[-1] < 0.2 < names["log"]["unexplained"].iloc[0]
    costs = names["costs"].set_index(["autoencoder", "positions"])
    for positions in ("masked", "unmasked"):
        trained, chance = (costs.loc[(name, positions)] for name in ("trained", "by chance"))
        assert trained.unexplained < chance.unexplained
        assert trained.l0 <= names["K"]
    assert costs.loc[("trained", "masked"), "delta"] < costs.loc[("by chance", "masked"), "delta"]
    folder = tmp_path / "sinklens-autoencoder" / "seed-0"
    assert sl.Autoencoder.load(folder) == names["sae"] == names["trained"]
    assert sorted(path.name for path in folder.iterdir()) == ["ae.safetensors", "config.json"]
    assert len(names["ablated"]) == len(names["conditions"]) >= 4
    assert (tmp_path / "sinklens-autoencoder" / "report.html").is_file()
    assert "Accuracy of the words behind triggers" in capsys.readouterr().out
