"""The README's code runs as it stands."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks).replace(".show()", "").replace("n=64", "n=4")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["run"].record["entropy"].dims == ("prompt", "step", "layer", "head", "query")
    assert {"unmasked", "sinks", "random"} <= set(names["result"].to_dataframe()["kind"])
    assert "Effect(condition='top-1'" in capsys.readouterr().out
    assert set(names["found"].effects(margin=0.02)["control"]) == {"random", "same_mass"}


def test_every_name_that_the_readme_lists_is_there() -> None:
    """Probes, detectors, operators and figures: those of the library, and all of them."""
    from sinklens import interventions, plots, probes

    text = README.read_text(encoding="utf-8")
    listed = set(re.findall(r"`(?:sl\.probes\.)?(\w+)", text))
    assert {name for name in probes.__all__ if name[0].isupper()} - {"Estimate"} <= listed
    public = {name: getattr(interventions, name) for name in interventions.__all__}
    edits = {name for name, cls in public.items() if hasattr(cls, "fwd_hooks") and not inspect.isabstract(cls)}
    assert edits - {"InOrder", "SideBySide"} <= listed
    assert {*interventions.CONTROLS, "noop"} <= listed
    for row in re.findall(r"^\| (?:who|what).*? \| (.*) \|$", text, re.MULTILINE):
        for name in re.findall(r"`([A-Z]\w+)`", row):
            assert hasattr(interventions, name) or name == "SinkRule"
    (figures,) = re.findall(r"^Figures: (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`(\w+)`", figures):
        assert callable(getattr(plots, name))
