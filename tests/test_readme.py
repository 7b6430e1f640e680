"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks).replace(".show()", "").replace("n=64", "n=4")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["run"].record["entropy"].dims == ("prompt", "step", "layer", "head", "key")
    assert {"unmasked", "sinks", "random"} <= set(names["result"].to_dataframe()["kind"])
    assert "Effect(condition='top-1'" in capsys.readouterr().out
