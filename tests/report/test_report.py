"""A report is one file that asks the network for nothing, with every text escaped."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from plotly.offline import get_plotlyjs

from sinklens import report
from sinklens.report import Section


def sections() -> list[Section]:
    figure = go.Figure(go.Scatter(x=[1], y=[2], text=["</script><|mask|>"]))
    frame = pd.DataFrame({"token": ["<|mask|>", "\n"], "share": [0.5, 1234.5], "n": [3, 20000]})
    return [
        Section("First <|bos|>", "One <|mask|>.\n\nTwo.", tables=[("Shares", frame)], figures=[figure, figure]),
        Section("Second", figures=[figure]),
    ]


def written(tmp_path, **more) -> str:
    path = report.write(
        tmp_path / "new" / "page.html", title="<|mask|>", intro="In & out.", sections=sections(), **more
    )
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def test_page_loads_nothing_and_holds_plotly_once(tmp_path):
    page = written(tmp_path)
    library = get_plotlyjs()
    assert page.count(library) == 1
    rest = page.replace(library, "")
    assert "http:" not in rest
    assert "https:" not in rest
    assert not re.search(r"<(link|img|iframe|object|embed)\b|\ssrc=|@import|url\(", rest)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', rest))
    assert "default-src 'none'" in rest
    assert rest.count("Plotly.newPlot(") == 3


def test_no_figure_needs_no_library(tmp_path):
    page = report.write(tmp_path / "a.html", title="a", intro="", sections=[Section("b", "c")]).read_text()
    assert "<script" not in page


def test_everything_is_escaped(tmp_path):
    page = written(tmp_path, footer="The <|end|>").replace(get_plotlyjs(), "")
    assert "<|" not in page
    assert "<title>&lt;|mask|&gt;</title>" in page
    assert "<p>One &lt;|mask|&gt;.</p><p>Two.</p>" in page
    assert "<td>\\n</td>" in page
    assert page.count("<script") == page.count("</script>")


def test_contents_lead_to_the_sections(tmp_path):
    page = written(tmp_path)
    assert '<a href="#section-1">First &lt;|bos|&gt;</a>' in page
    assert '<section id="section-2"><h2>Second</h2>' in page


def test_numbers_are_right_aligned_with_3_digits(tmp_path):
    page = written(tmp_path)
    assert '<th class="number">share</th>' in page
    assert "<th>token</th>" in page
    assert '<td class="number">0.500</td><td class="number">3</td>' in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"), (1.0, "1.00"), (12.345, "12.3"), (123.4, "123"), (1234.5, "1234"), (0.0, "0"),
        (1.5e-5, "1.50e-05"), (float("nan"), "–"), (np.float32("nan"), "–"), (None, "–"), (float("inf"), "inf"),
        (7, "7"), (np.int64(20000), "20000"), (True, "True"), ("a\nb", "a\\nb"), (-0.5, "-0.500"), (99.96, "100"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert report.number(value) == text


def test_named_index_is_shown(tmp_path):
    frame = pd.DataFrame({"x": [1.5]}, index=pd.Index(["tiny"], name="model"))
    section = Section("a", tables=[("t", frame)])
    page = report.write(tmp_path / "a.html", title="a", intro="", sections=[section]).read_text()
    assert "<th>model</th>" in page
    assert "<td>tiny</td>" in page


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = report.write(tmp_path / "page.html", title="old", intro="", sections=[Section("b")])
    old = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(path, title="a", intro="", sections=[Section("b")])
    assert path.read_text() == old
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_no_section_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="sections is empty"):
        report.write(tmp_path / "a.html", title="a", intro="", sections=[])


def one_run(prompts: int) -> xr.Dataset:
    received = np.ones((prompts, 2, 1, 1, 3), np.float32)
    received[..., 0] = 9.0
    made = {"model": "tiny", "plan": {"steps": 2}, "versions": {}, "interventions": [], "probes": ["Seen('<|x|>')"]}
    made |= {"causal": False}
    return xr.Dataset(
        {
            "received": (("prompt", "step", "layer", "head", "key"), received, {"queries": "all"}),
            "masked": (("prompt", "step", "key"), np.tile([[0, 1, 1], [0, 0, 1]], (prompts, 1, 1))),
            "token": (("prompt", "key"), np.tile([0, 5, 6], (prompts, 1))),
            "text": (("prompt", "key"), np.tile(np.array(["<|bos|>", "\n", "b"], dtype=object), (prompts, 1))),
            "given": (("prompt", "key"), np.tile([1, 0, 0], (prompts, 1))),
            "commit_step": (("prompt", "key"), np.tile([-1, 0, 1], (prompts, 1))),
        },
        attrs={"provenance": json.dumps(made)},
    )


def test_page_of_a_record(tmp_path):
    page = report.from_record(tmp_path / "run.html", one_run(1)).read_text(encoding="utf-8")
    rest = page.replace(get_plotlyjs(), "")
    assert "Attention sinks of tiny" in rest
    assert "<td>plan.steps</td><td>2</td>" in rest
    assert "<td>interventions</td><td>none</td>" in rest
    assert "Given: &lt;|bos|&gt;" in rest
    assert "<|" not in rest
    assert rest.count("Plotly.newPlot(") == 6


def test_page_of_many_prompts_says_what_it_shows(tmp_path):
    page = report.from_record(tmp_path / "run.html", one_run(6)).read_text(encoding="utf-8")
    assert "first 4 of 6 prompts" in page
    assert page.count("Plotly.newPlot(") - get_plotlyjs().count("Plotly.newPlot(") == 12


def test_a_record_without_provenance_is_an_error(tmp_path):
    record = one_run(1)
    del record.attrs["provenance"]
    with pytest.raises(ValueError, match="does not say whether its model is causal"):
        report.from_record(tmp_path / "run.html", record)
    assert not list(tmp_path.iterdir())


def test_a_record_without_received_attention_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no 'received'"):
        report.from_record(tmp_path / "run.html", one_run(1).drop_vars("received"))
    assert not list(tmp_path.iterdir())
