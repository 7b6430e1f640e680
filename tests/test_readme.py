"""The README's code runs as it stands."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def test_the_readme_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks).replace(".show()", "").replace("n=64", "n=4")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert {"unmasked", "sinks", "random"} <= set(names["result"].to_dataframe()["kind"])
    assert "Effect(condition='top-1'" in capsys.readouterr().out


def test_every_name_that_is_listed_is_there() -> None:
    """Probes, detectors, operators and controls of the site's lists: those of the library, and all of them."""
    from sinklens import interventions, probes

    text = (DOCS / "concepts" / "hooks.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(?:sl\.probes\.)?(\w+)", text))
    assert {name for name in probes.__all__ if name[0].isupper()} - {"Estimate"} <= listed
    text = (DOCS / "concepts" / "edits.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)", text))
    public = {name: getattr(interventions, name) for name in interventions.__all__}
    edits = {name for name, cls in public.items() if hasattr(cls, "fwd_hooks") and not inspect.isabstract(cls)}
    assert edits - {"InOrder", "SideBySide"} <= listed
    assert {*interventions.CONTROLS, "noop"} <= listed
    rows = re.findall(r"^\| (?:who|what).*? \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 7
    for row in rows:
        for name in re.findall(r"`([A-Z]\w+)`", row):
            assert hasattr(interventions, name) or name == "SinkRule"


def test_the_readme_is_short_and_its_links_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        assert (README.parent / link).exists(), link
