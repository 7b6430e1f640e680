"""Every figure is in the gallery, made by the lines that are shown; titles fit, colours are those of the theme."""

from __future__ import annotations

import re
from typing import Any

import pytest
from site_parts import part

from sinklens import plots

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
