"""When sinks are born and when they die."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.analysis import dynamics
from sinklens.analysis.attention import measured, null, received
from sinklens.plots.record_view import on_canvas, place, rule_of, view_of
from sinklens.plots.theme import COLORS, describe, themed, titled
from sinklens.sinks import SinkRule
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@reads()
def sink_lives(
    record: xr.Dataset,
    rule: SinkRule | None = None,
    layer: int = 0,
    head: int = 0,
    prompt: int = 0,
    *,
    title: str | None = None,
) -> Figure:
    """Each sink of one head from birth to death: a bar at its position (x) over the steps (y, step 0 on top).

    Unit: denoising steps. Circle: birth, the first step as a sink; cross: death, the first measured step at which it
    is one no longer; open triangle: still a sink when the run ends. Beside it, per step, the births (right) and deaths
    (left, hatched) of this head, in keys, range [0, number of keys]; at the first step all sinks are births. Grey
    dashed bars: what the rule would call sinks under uniform attention. Source: `dynamics.dwell` (the
    counts are `dynamics.births_deaths` of this head); moving sinks are section 4.2 of arXiv 2510.15731.

    Args:
        record: Needs `received` (`probes.ReceivedAttention`).
        rule: What a sink is; `SinkRule()` when None.
        layer: Which layer, by name.
        head: Which head, by name.
        prompt: Which prompt, counted from 0.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a variable, the prompt, the layer or the head is missing.
    """
    from plotly.subplots import make_subplots

    rule = rule_of(record, rule)
    view = view_of(record, prompt, rule)
    for dim, names, name in (("layer", view.layers, layer), ("head", view.heads, head)):
        place(names, dim, name)
    # The rule may average heads, so flags are made before a head is chosen.
    one = record.isel(prompt=[prompt]).sel(layer=[layer])
    lives = _episodes(one, rule, head)
    even = null(one, rule.queries)
    expected = _episodes(even, rule, int(even["head"][0]))
    figure = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.82, 0.18], horizontal_spacing=0.02)
    for frame, name, line in (
        (lives, "sink", {"color": COLORS[0], "width": 6}),
        (expected, "sink under uniform attention", {"color": "#777", "width": 2.5, "dash": "4px,3px"}),
    ):
        shift = 0.0 if frame is lives else 0.3
        x = [position for key in frame["key"] for position in (key + shift, key + shift, None)]
        y = [step for _, life in frame.iterrows() for step in (life["start"], life["end"], None)]
        if len(frame) or frame is lives:
            figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip", row=1, col=1)
    _marks(figure, lives)
    most = 1
    for name, sign, times, marker in (
        ("births", 1, lives["start"], {"color": COLORS[0]}),
        ("deaths", -1, lives["end"][lives["died"]], {"color": "white", "pattern": {"shape": "/", "fgcolor": "#111"}}),
    ):
        counts = np.array([int((times == step).sum()) for step in view.steps])
        most, some = max(most, int(counts.max())), counts > 0
        figure.add_bar(
            x=sign * counts[some], y=view.steps[some], orientation="h", name=name, customdata=counts[some],
            row=1, col=2,
            marker={**marker, "line": {"color": "black", "width": 0.8}}, showlegend=True,
            hovertemplate=f"step %{{y:d}}: %{{customdata}} {name}<extra></extra>",
        )  # fmt: skip
    themed(figure)
    on_canvas(figure, view, row=1, col=1)
    figure.update_xaxes(showgrid=True, row=1, col=1)
    figure.update_xaxes(
        title_text="deaths | births (keys)", range=[-most - 0.4, most + 0.4], zeroline=True, zerolinecolor="#222",
        tickvals=[-most, 0, most], ticktext=[str(most), "0", str(most)], row=1, col=2,
    )  # fmt: skip
    figure.update_yaxes(range=[view.steps[-1] + 1.2, view.steps[0] - 0.8])
    figure.update_yaxes(showticklabels=False, ticks="", title_text="", row=1, col=2)
    figure.update_layout(barmode="overlay", bargap=0.3)
    if lives.empty:
        figure.add_annotation(text="no sink by this rule", showarrow=False, x=0.4, y=0.5, xref="paper", yref="paper")
    return titled(
        figure,
        title or f"How long sinks live: layer {layer}, head {head} (prompt {prompt})",
        f"Sink: {describe(rule)}, per step. Episodes: {len(lives)}. A bar runs from birth to death (denoising steps).",
        f"Episodes under uniform attention (grey, dashed): {len(expected)}.",
    )


def _marks(figure: Figure, lives: pd.DataFrame) -> None:
    ended = lives[lives["died"]]
    lasting = lives[~lives["died"]]
    for name, frame, step, symbol, color in (
        ("birth", lives, "start", "circle", "white"),
        ("death", ended, "end", "x", "white"),
        ("alive at the end", lasting, "end", "triangle-down", "white"),
    ):
        figure.add_scatter(
            x=frame["key"], y=frame[step], mode="markers", name=name, customdata=frame["length"],
            marker={"symbol": symbol, "size": 8, "color": color, "line": {"color": "black", "width": 1.5}},
            hovertemplate=f"{name}: position %{{x:d}}, step %{{y:d}}<br>sink for %{{customdata}} steps<extra></extra>",
            row=1, col=1,
        )  # fmt: skip


def _episodes(one: xr.Dataset, rule: SinkRule, head: int) -> pd.DataFrame:
    """`dynamics.dwell` of one head, with the step of death ("end") and whether it was seen ("died")."""
    steps = measured(received(one, rule.queries))["step"].to_numpy()
    table = dynamics.dwell(one, rule)
    frame: Any = table[table["head"] == head].reset_index(drop=True)
    after = np.searchsorted(steps, frame["start"].to_numpy()) + frame["length"].to_numpy()
    frame["died"] = after < len(steps)
    frame["end"] = np.where(frame["died"], steps[np.minimum(after, len(steps) - 1)], steps[-1] + 0.5)
    return frame
