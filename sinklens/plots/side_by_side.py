"""Two models beside each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinklens.plots.layers_heads import layer_steps
from sinklens.plots.theme import safe, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HALF = 18  # token texts that fit on the axis of a panel of half the width, at the least that the site gives


@reads()
def side_by_side(
    left: xr.Dataset,
    right: xr.Dataset,
    figure: Callable[..., Figure] = layer_steps,
    names: tuple[str, str] = ("left", "right"),
    *,
    title: str | None = None,
    **options: Any,
) -> Figure:
    """The same figure of two records beside each other, for two models: heat maps get one colour range for both.

    Unit and range: those of the figure. Menus are dropped; of `timeline` the mean over layers and heads is shown.

    Args:
        left: A record.
        right: Another.
        figure: A figure of one panel: `layer_steps`, `timeline`, `sink_positions` or `histogram`. The panels of
            `histogram` share their axes.
        names: Headings of the two.
        title: Replaces the first line of the title.
        **options: For `figure`, the same for both.

    Raises:
        ValueError: the figure has several panels of its own; whatever `figure` raises.
    """
    from plotly.subplots import make_subplots

    made: list[Any] = [figure(record, **options) for record in (left, right)]
    if any(len(list(one.select_xaxes())) > 1 for one in made):
        raise ValueError("this figure has several panels; side_by_side takes figures of one, for example layer_steps")
    both = make_subplots(1, 2, subplot_titles=[safe(name) for name in names], horizontal_spacing=0.1)
    themed(both)
    for column, one in enumerate(made, 1):
        _copy(one, both, column)
    _same_ranges(both, made)
    height = max(one.layout.height or 450 for one in made) + 30
    both.update_layout(height=height, showlegend=made[0].layout.showlegend)
    lines = _merged([one.layout.meta["lines"] for one in made], names)
    return titled(both, title or made[0].layout.meta["title"], *lines, panels=height)


def _copy(one: Any, both: Any, column: int) -> None:
    """Traces, axes, lines and notes of one figure into a column; what a menu hides stays behind."""
    for trace in one.data:
        if trace.visible is not False:
            repeated = any(trace.name == other.name for other in both.data)
            trace.update(legendgroup=trace.name, showlegend=False if repeated else trace.showlegend)
            both.add_trace(trace, row=1, col=column)
    for kind, update in (("xaxis", both.update_xaxes), ("yaxis", both.update_yaxes)):
        look = one.layout[kind].to_plotly_json()
        for name in ("domain", "anchor", "matches"):
            look.pop(name, None)
        if len(look.get("ticktext") or ()) > HALF:
            look |= {"tickvals": None, "ticktext": None, "tickangle": 0, "title": {**look["title"], "text": "position"}}
        update(**look, row=1, col=column)
    suffix = "" if column == 1 else str(column)
    for shape in one.layout.shapes:
        where = {"xref": f"x{suffix}", "yref": shape.yref.replace("y", f"y{suffix}", 1)}
        both.add_shape(shape.to_plotly_json() | where)
    for note in one.layout.annotations:
        refs = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain"} if note.xref == "paper" else {}
        both.add_annotation(note.to_plotly_json() | refs)


def _same_ranges(both: Any, made: Sequence[Any]) -> None:
    """One colour range for heat maps, one pair of axes for bars."""
    maps = [trace for trace in both.data if trace.type == "heatmap"]
    for trace in maps:
        trace.update(zmax=max(other.zmax for other in maps), showscale=trace is maps[-1])
    if made[0].data and made[0].data[0].type == "bar":
        both.update_layout(barmode=made[0].layout.barmode, bargap=made[0].layout.bargap)
        both.update_xaxes(range=_union([one.layout.xaxis.range for one in made]), matches="x")
        both.update_yaxes(range=_union([one.layout.yaxis.range for one in made]), matches="y")


def _merged(lines: list[list[str]], names: tuple[str, str]) -> list[str]:
    """Sentences that both say once, the others with the name before them."""
    first, second = ([one for line in part for one in re.split(r"(?<=\.) (?=[A-Z])", line)] for part in lines)
    said = [one for one in first if one in second]
    own = [[one for one in part if one not in said] for part in (first, second)]
    return [" ".join(said), *(f"{name}: {' '.join(part)}" for name, part in zip(names, own, strict=True) if part)]


def _union(ranges: list[Sequence[float]]) -> list[float]:
    return [min(low for low, _ in ranges), max(high for _, high in ranges)]
