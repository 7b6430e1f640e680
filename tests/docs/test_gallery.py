"""Every figure is in the gallery, made by the lines that are shown; titles fit, colours are those of the theme."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from site_parts import part

from sinklens import HookedDLM, Plan, denoise, plots
from sinklens.caches.retrieval import Retrieval
from sinklens.experiments.l2 import L2, Window
from sinklens.experiments.l2_result import WHOLE, L2Result
from sinklens.plots.side_by_side import HALF
from sinklens.probes import ReceivedAttention

GALLERY = part("gallery")
NAMES = [shown.name for shown in GALLERY.GALLERY]
REAL = {shown.name for shown in GALLERY.GALLERY if shown.before == GALLERY.NORMS}
NOT_FIGURES = {"circuitsvis", "describe", "themed", "visible"}
PLOTLY = [shown.name for shown in GALLERY.GALLERY if shown.name not in REAL | {"text_timeline"}]
WIDTH, GLYPH = 700, 6.9  # pixels: half of a wide window; a generous mean over the font's glyphs at 12 px


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return GALLERY.figures(real=False)


def test_every_figure_is_there() -> None:
    assert set(NAMES) == {name for name in plots.__all__ if name[0].islower()} - NOT_FIGURES
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("shown", GALLERY.GALLERY, ids=lambda shown: shown.name)
def test_a_figure_has_a_question_and_a_text(shown: Any) -> None:
    assert shown.asks.endswith("?")
    assert 40 < len(shown.alt) < 200
    assert f"sl.plots.{shown.name}(" in shown.code


@pytest.mark.parametrize("name", PLOTLY)
def test_titles_fit_half_a_window(figures: dict[str, Any], name: str) -> None:
    title = figures[name].layout.title.text
    first, *lines = re.sub(r"<br>", "\n", title).split("\n")
    for line in lines:
        assert len(re.sub(r"<[^>]*>", "", line)) * GLYPH < WIDTH, line
    assert len(re.sub(r"<[^>]*>", "", first)) * GLYPH * 16 / 12 < WIDTH, first


@pytest.mark.skipif(part("look").CHROMIUM is None, reason="needs chromium")
def test_in_a_browser_nothing_lies_over_anything_else(figures: dict[str, Any], tmp_path: Path) -> None:
    """All texts, legends, menus, bars and data: at full width, at half of it, and at the least that the site gives."""
    drawn = {name: figures[name] for name in PLOTLY} | _planted_norms()
    assert set(drawn) == set(NAMES) - {"text_timeline"}
    assert _seen(drawn, tmp_path, 1400, 700, 660) == []


@pytest.mark.skipif(part("look").CHROMIUM is None, reason="needs chromium")
def test_tokens_on_the_axes_of_two_panels_do_not_lie_over_each_other(tmp_path: Path) -> None:
    """As many as there may be, and one more, which are not named; chapter 2 has 32 of them."""
    drawn = {}
    for name in ("tiny-dlm", "tiny-arm"):
        dlm = HookedDLM.from_pretrained(name)
        for size in (HALF, HALF + 1, 32):
            ids = dlm.encode("molma telme talko xa nusmo tinto")
            run = denoise(dlm, [ids], Plan(new_tokens=size - len(ids)), probes=[ReceivedAttention()], progress=False)
            drawn[f"{name}-{size}"] = plots.side_by_side(run.record, run.record, plots.timeline, ("one", "two"))
    assert [len(figure.layout.xaxis.ticktext or ()) for figure in drawn.values()] == [HALF, 0, 0] * 2
    assert _seen(drawn, tmp_path, 700, 660) == []


@pytest.mark.skipif(part("look").CHROMIUM is None, reason="needs chromium")
def test_a_browser_finds_what_is_wrong(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing: it did not, for a while, since no element was data to it."""
    right = plots.norms_over_steps(pd.DataFrame({"step": [0, 1], "key_type": "mask", "correlation": [0.1, 0.2]}))
    faults = {
        "legend": {"legend": {"y": 0.5, "yanchor": "top"}},
        "title over data": {"margin_t": 20},
        "title cut": {"title_pad_t": 0},
        "bare": {"title_text": ""},
        "small": {"font_size": 8},
        "notes": {"annotations": [{"text": text, "x": 1, "y": 0, "showarrow": False} for text in ("one", "two")]},
        "ticks": {"xaxis": {"tickvals": [0, 0.01], "ticktext": ["first", "second"], "tickangle": 0}},
        "turned": {"xaxis": {"tickvals": [0, 0.03], "ticktext": ["first", "second"], "tickangle": -60}},
    }
    drawn = {name: go.Figure(right).update_layout(wrong) for name, wrong in faults.items()}
    found = _seen(drawn | {"right": right}, tmp_path, 700)
    said = {name: [each for each in found if each.startswith(f"{name}:")] for name in drawn}
    assert any("legend" in each and "data" in each for each in said["legend"])
    assert any("title" in each and "data" in each for each in said["title over data"])
    assert any("title" in each and "sticks out" in each for each in said["title cut"])
    assert any("no title or no data" in each for each in said["bare"])
    assert any("too small" in each for each in said["small"])
    assert any("note (one) lies over its note (two)" in each for each in said["notes"])
    assert any("tick (first) lies over its tick (second)" in each for each in said["ticks"])
    assert said["turned"] == []  # the boxes around them meet, they do not
    assert not [each for each in found if each.startswith("right:")]


def _seen(drawn: dict[str, Any], folder: Path, *widths: int) -> list[str]:
    """What a browser finds wrong with figures below each other, at these widths."""
    texts = [figure.to_html(full_html=False, include_plotlyjs=False, div_id=name) for name, figure in drawn.items()]
    plotly = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    page = folder / "page.html"
    page.write_text(f"<meta charset='utf-8'><script>{plotly}</script>{''.join(texts)}", encoding="utf-8")

    async def seen() -> list[str]:
        found = []
        async with part("look").browsing() as browser:
            for width in widths:
                found += (await browser.show(page.as_uri(), width, "light"))["out"] + browser.errors
        return found

    return asyncio.run(seen())


def _planted_norms() -> dict[str, Any]:
    """The figures that the gallery makes of a real model, of numbers that are made up."""
    rankings = ("low_norm", "high_norm", "random")
    made = L2Result("smollm2-135m", L2(shares=(0.75, 0.5), rankings=rankings, lengths=(96, 192)), 8, done=8)
    found = {WHOLE: 1.0} | {share: dict.fromkeys(rankings, 1.0) for share in ("0.75", "0.5")}
    for number, (tokens, depth) in enumerate([(t, d) for t in (96, 192) for d in (0.0, 0.5, 1.0)]):
        made.add(Retrieval("passkey", tokens, depth, number), "cache", found)
    nats = {WHOLE: 2.5} | {share: {"low_norm": 3.2, "high_norm": 6.6, "random": 4.3} for share in ("0.75", "0.5")}
    ways = ("received", "per query", "without the first", "beyond position")
    for index in range(2):
        made.add(Window(index), "perplexity", nats)
        made.add(Window(index), "correlation", dict.fromkeys(ways, [[0.5, -0.5, 0.1]] * 30))
    return {
        "cache_curve": plots.cache_curve(made, "perplexity"),
        "retrieval_grid": plots.retrieval_grid(made, "passkey", rankings),
        "norm_correlation": plots.norm_correlation(made),
    }


@pytest.mark.parametrize("name", PLOTLY)
def test_the_title_has_room_above_the_data(figures: dict[str, Any], name: str) -> None:
    layout = figures[name].layout
    assert layout.margin.t >= 40 + 15 * layout.title.text.count("<br>")


@pytest.mark.parametrize("name", PLOTLY)
def test_colours_are_those_of_the_theme(figures: dict[str, Any], name: str) -> None:
    """What is no colour of the theme is black, white, grey, or out of its one scale."""
    from plotly.colors import sample_colorscale, unlabel_rgb

    scale = [unlabel_rgb(each) for each in sample_colorscale(plots.SCALE, [i / 200 for i in range(201)])]
    for found in set(re.findall(r"#[0-9a-fA-F]{6}\b", figures[name].to_json())):
        if found.lower() in plots.COLORS:
            continue
        rgb = [int(found[i : i + 2], 16) for i in (1, 3, 5)]
        grey = max(rgb) - min(rgb) <= 12
        near = min(max(abs(a - b) for a, b in zip(rgb, each, strict=True)) for each in scale)
        assert grey or near <= 6, found
