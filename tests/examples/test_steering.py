"""examples/05_steering.py: the direction that it finds in tiny-dlm does what it says, and random ones do not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "05_steering.py"


def test_the_direction_switches_the_rule(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--prompts=16"])
    found = runpy.run_path(str(SCRIPT))
    effects = found["switched"].effects("accuracy").set_index(["condition", "control"])
    assert (effects["unmasked"] < 0.05).all()
    assert effects.loc["scale=2"]["value"].iloc[0] > 0.3
    assert (effects.loc["scale=2"]["to_control_low"] > 0.1).all()
    assert list(effects.loc["scale=2"].index) == ["random_direction", "orthogonal_direction"]
    likely = found["switched"].effects("log_likelihood").set_index("condition")
    assert (likely.loc["scale=1"]["to_control_low"] > 3).all()
    for text, last, before in found["held_out"]:  # what is asked is what the language says
        words = [word for word in text.split() if word in found["grammar"].words]
        assert (last, before) == (words[-1], words[-2])
        assert text.split()[-1][0] == "x"
        assert text not in [said for said, *_ in (*found["repeats"], *found["skips"])]
    assert "steered to the rule of w" in capsys.readouterr().out
