"""Figures and the page of caches that are cut, from a result whose numbers are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.caches.retrieval import Retrieval
from sinklens.errors import ContentError
from sinklens.experiments.l2 import L2, Window
from sinklens.experiments.l2_result import WHOLE, L2Result
from sinklens.plots.theme import decades, headings
from sinklens.report.l2 import FILES, write_l2

RANKINGS = ("low_norm", "random", "random + first")
PROTOCOL = L2(shares=(0.9, 0.5), rankings=RANKINGS, lengths=(256, 1024), depths=(0.0, 1.0))


@pytest.fixture
def result() -> L2Result:
    """Right with low norms; with random keys only at 90 %, and at 50 % at the end of short texts."""
    made = L2Result("planted", PROTOCOL, 6, done=5)
    for number, (tokens, depth) in enumerate([(256, 0.0), (256, 1.0), (1024, 0.0), (1024, 1.0)]):
        lucky = float((tokens, depth) == (256, 1.0))
        found = {WHOLE: 1.0, "0.9": {"low_norm": 1.0, "random": 1.0, "random + first": 1.0}}
        found["0.5"] = {"low_norm": 1.0, "random": lucky, "random + first": lucky}
        made.add(Retrieval("passkey", tokens, depth, number), "cache", found)
    for index in range(2):
        nats = {"low_norm": 1.0, "random": 2.0, "random + first": 1.0}
        made.add(Window(index), "perplexity", {WHOLE: 0.5, "0.9": nats, "0.5": nats})
        table = [[0.5, -0.5], [None, 1.0]]
        ways = ("received", "per query", "without the first", "beyond position")
        made.add(Window(index), "correlation", dict.fromkeys(ways, table))
    return made


def test_a_curve_shows_every_ranking_at_every_share(result: L2Result) -> None:
    figure = plots.cache_curve(result, "passkey")
    found = {trace.name: list(trace.y) for trace in figure.data}
    assert found == {"lowest norm": [1, 1], "random": [0.25, 1], "random, always the first": [0.25, 1]}
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 3
    assert all(
        abs(math.log(x / share)) < 0.02 for trace in figure.data for x, share in zip(trace.x, (0.5, 0.9), strict=True)
    )
    assert "unfinished: 5 of 6" in figure.layout.title.text
    logs = plots.cache_curve(result, "perplexity")
    assert logs.layout.yaxis.type == "log"
    assert logs.data[1].y[0] == pytest.approx(math.exp(2))


def test_one_text_has_no_interval_and_is_said_to_have_none(result: L2Result) -> None:
    assert "2 texts, 95 % intervals." in plots.cache_curve(result, "perplexity").layout.title.text.replace("<br>", " ")
    alone = L2Result("planted", PROTOCOL, 1, done=1)
    alone.add(Window(0), "perplexity", {WHOLE: 0.5} | {share: dict.fromkeys(RANKINGS, 1.0) for share in ("0.9", "0.5")})
    said = plots.cache_curve(alone, "perplexity").layout.title.text.replace("<br>", " ")
    assert "1 text, so there is no interval." in said
    assert "95 %" not in said


@pytest.mark.parametrize(("high", "ticks"), [(120.0, "D2"), (20.0, None)])
def test_ticks_of_a_log_axis_are_whole_numbers(high: float, ticks: str | None) -> None:
    figure = decades(go.Figure(), [10.0, high])
    assert (figure.layout.yaxis.type, figure.layout.yaxis.tickformat, figure.layout.yaxis.dtick) == (
        "log",
        ",~r",
        ticks,
    )


def test_headings_break_before_they_meet() -> None:
    assert headings(["short", "what stands in a line (0 to 1)"], 2) == [
        "short",
        "what stands in a line (0\u00a0to\u00a01)",
    ]
    assert headings(["what stands in a line (0 to 1)"], 3) == ["what stands in a line<br>(0\u00a0to\u00a01)"]


def test_a_grid_has_depth_by_length(result: L2Result) -> None:
    figure = plots.retrieval_grid(result, "passkey", ("low_norm", "random"))
    panels = [np.array(trace.z).tolist() for trace in figure.data]
    assert panels == [[[1, 1], [1, 1]], [[1, 1], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [1, 0]]]
    assert list(figure.data[0].x) == ["256", "1024"]
    assert figure.layout.xaxis.type == "category"  # and not a number, with room in between


def test_what_was_not_asked_has_no_number() -> None:
    """An unfinished result: white cells, and no "nan%" in them."""
    made = L2Result("planted", PROTOCOL, 4, done=2)
    for number, (tokens, depth) in enumerate([(256, 0.0), (1024, 1.0)]):
        found = {WHOLE: 1.0, "0.9": {"low_norm": 1.0, "random": 0.0}, "0.5": {"low_norm": 1.0, "random": 0.0}}
        made.add(Retrieval("passkey", tokens, depth, number), "cache", found)
    figure = plots.retrieval_grid(made, "passkey", ("low_norm", "random"))
    assert [list(line) for line in figure.data[0].text] == [["100%", ""], ["", "100%"]]


def test_correlations_by_layer_and_head(result: L2Result) -> None:
    figure = plots.norm_correlation(result)
    grid = np.array(figure.data[0].z, dtype=float)
    assert grid[0].tolist() == [0.5, -0.5]
    assert math.isnan(grid[1, 0])
    assert grid[1, 1] == 1


def test_over_steps() -> None:
    table = pd.DataFrame({"step": [0, 1, 0, 1], "key_type": ["mask", "mask", "prompt", "prompt"],
                          "correlation": [0.1, math.nan, 0.5, 0.6]})  # fmt: skip
    figure = plots.norms_over_steps(table, "tiny")
    assert {trace.name: list(trace.y) for trace in figure.data} == {"mask keys": [0.1], "prompt keys": [0.5, 0.6]}


def test_what_was_not_measured_is_said(result: L2Result) -> None:
    with pytest.raises(ContentError, match=r"no 'needle'.*passkey \(cache\)"):
        plots.cache_curve(result, "needle")
    with pytest.raises(ContentError, match="no 'needle'"):
        plots.retrieval_grid(result, "needle")
    with pytest.raises(ContentError, match="no correlation"):
        plots.norm_correlation(L2Result("planted", PROTOCOL, 1))


def test_the_page_says_that_it_is_unfinished(result: L2Result, tmp_path: Path) -> None:
    text = write_l2(result, tmp_path).read_text()
    assert "Unfinished: 5 of 6 trials" in text
    assert set(FILES) == {path.name for path in tmp_path.iterdir()}
    table = pd.read_csv(tmp_path / "l2.csv")
    assert len(table) == (1 + 6) * 2
