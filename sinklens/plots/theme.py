"""One theme for every figure: readable in black and white, titles that state definition and unit."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinklens.sinks import SinkRule

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


COLORS = ("#0b3c6f", "#e69f00", "#00876c", "#c4a3d6", "#a63603", "#56b4e9", "#595959", "#d6c94a")


SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")


SCALE = "Viridis"


FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"


def visible(text: str) -> str:
    """A token's text on one line: control characters as escapes, blanks alone in quotes."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{shown}'" if shown.isspace() else shown


def themed(figure: Figure) -> Figure:
    """The look of every figure: white, one font, `SCALE` for colour, thin axes. Changes the figure and returns it."""
    axis = {
        "showline": True, "linecolor": "#222", "ticks": "outside", "tickcolor": "#222", "ticklen": 4,
        "zeroline": False, "gridcolor": "#e3e3e3", "automargin": True, "title_standoff": 10, "title_font_size": 13,
    }  # fmt: skip
    figure.update_layout(
        template="none",
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": FONT, "size": 13, "color": "#111"},
        colorscale={"sequential": SCALE},
        hoverlabel={"bgcolor": "white", "bordercolor": "#222", "font": {"family": FONT, "color": "#111"}},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom", "font_size": 12},
        margin={"l": 60, "r": 20, "b": 50},
        # plotly.js would offer to upload the figure to a public service.
        modebar={"remove": ["sendChartToCloud", "select2d", "lasso2d"], "orientation": "h"},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def describe(rule: SinkRule) -> str:
    """A rule in words."""
    return rule.words()


def titled(figure: Figure, title: str, *lines: str, panels: int = 0) -> Figure:
    """Title and what the numbers are, above a row for the menu and the legend.

    `panels`: height of a figure of panels; their titles get a row of their own.
    """
    small = [part for line in lines for part in textwrap.wrap(line, 100)]
    text = "<br>".join(html.escape(line, quote=False) for line in small)
    heads = [str(note.text).count("<br>") for note in figure.layout.annotations if note.yanchor == "bottom"]  # pyright: ignore[reportAttributeAccessIssue]
    row = 26 + 16 * max(heads, default=0) if panels else 0
    top = 80 + 16 * len(small) + row
    figure.update_layout(
        meta={"title": title, "lines": list(lines)},  # `side_by_side` words them anew
        title={
            "text": f'<b style="font-size:16px">{html.escape(title, quote=False)}</b><br>{text}',
            "font_size": 12, "x": 0.01, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad_t": 20,
        },
        margin_t=top,
    )  # fmt: skip
    if panels:  # the legend would cover them
        figure.update_layout(legend={"yref": "container", "yanchor": "bottom", "y": 1 - (top - row) / panels})
    return figure


def headings(texts: Sequence[str], columns: int | None = None) -> list[str]:
    """Headings of panels beside each other, in lines that do not meet at half of a window; "(0 to 1)" stays whole."""
    letters = 75 // (columns or len(texts))
    whole = [re.sub(r"\([^)]*\)", lambda found: found[0].replace(" ", "\u00a0"), text) for text in texts]
    return ["<br>".join(textwrap.wrap(text, letters)) for text in whole]


def decades(figure: Figure, values: Sequence[float]) -> Figure:
    """The y axis in logarithms, its ticks whole numbers: plotly.js would say 9, 8, 7 for 90, 80, 70."""
    figure.update_yaxes(type="log", tickformat=",~r")
    if max(values) > 5 * min(values):
        figure.update_yaxes(dtick="D2")  # 1, 2, 5 of each decade
    return figure


def filled(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "line": {"color": "black", "width": 0.8}}


def safe(value: object) -> str:
    """Plotly reads texts as HTML and would swallow `<|mask|>`."""
    return html.escape(visible(str(value)), quote=False)
