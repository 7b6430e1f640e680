"""Figures of ablations: accuracy by condition, differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import UNMASKED, AblationResult
from sinklens.plots.scored import (
    MARKERS,
    kind_words,
    least_exposed,
    metric_of,
    reached,
    results_of,
    said_of,
    unfinished,
    words,
)
from sinklens.plots.theme import COLORS, safe, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@reads()
def conditions(
    results: AblationResult | Sequence[AblationResult], metric: str | None = None, *, title: str | None = None
) -> Figure:
    """A metric under each condition and its controls with 95 % intervals, one panel per result; dotted: unmasked.

    Unit: that of the metric (`outcomes.METRICS`), on the axis.

    Args:
        results: One ablation or several.
        metric: Which metric; the first when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a metric that was not measured.
    """
    from plotly.subplots import make_subplots

    every = results_of(results)
    metric = metric_of(every, metric)
    names = [f"{safe(result.scores[0]['model'])}: {safe(result.scores[0]['task'])}" for result in every]
    figure = make_subplots(1, len(every), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.04)
    kinds = [kind for result in every for kind in dict.fromkeys(score["kind"] for score in result.scores)]
    kinds = [kind for kind in dict.fromkeys(kinds) if kind != UNMASKED]
    in_legend: set[str] = set()
    partly: list[float] = []
    for column, result in enumerate(every, start=1):
        table: Any = result.summary()
        table = table[table.metric == metric]
        labels = [name for name in dict.fromkeys(table.condition) if name != UNMASKED]
        shares = least_exposed(table)
        partly += shares.values()
        for index, kind in enumerate(kinds):
            part = table[table.kind == kind]
            if part.empty:
                continue
            shift = (index - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
            value = part["value"].to_numpy()
            figure.add_scatter(
                x=[labels.index(name) + shift for name in part.condition], y=value,
                error_y={"type": "data", "symmetric": False, "array": part["high"] - value,
                         "arrayminus": value - part["low"], "thickness": 1.5, "width": 4},
                mode="markers", name=kind_words(kind, part), legendgroup=kind, showlegend=kind not in in_legend,
                cliponaxis=False,
                marker={"symbol": MARKERS[index % len(MARKERS)], "size": 10, "color": COLORS[index % len(COLORS)],
                        "line_width": 2 if index else 0},
                customdata=list(zip(map(safe, part.condition), part.low, part.high, part.edited_keys, part.exposed,
                                    strict=True)),
                hovertemplate="%{customdata[0]}<br>%{y:.3f}, 95 % interval %{customdata[1]:.3f} to %{customdata[2]:.3f}"
                "<br>" + reached(part, "%{customdata[3]:.1f} edited keys per prompt, ")
                + "%{customdata[4]:.2f} of the scored places exposed<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
            in_legend.add(kind)
        bare = table[table.kind == UNMASKED]["value"]
        if len(bare):
            line = {"color": "#111", "width": 1, "dash": "dot"}
            figure.add_hline(y=float(bare.iloc[0]), line=line, row=1, col=column)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(
            tickvals=list(range(len(labels))), row=1, col=column,
            ticktext=[safe(name) + (f"<br>{shares[name]:.2f} exposed" if name in shares else "") for name in labels],
        )  # fmt: skip
    axis, definition = words(metric)
    themed(figure).update_xaxes(showgrid=False)
    figure.update_yaxes(title_text=axis, col=1)
    if metric in METRICS and METRICS[metric].share:
        figure.update_yaxes(range=[0, 1.02])
    figure.update_layout(height=460)
    figure.update_annotations(font_size=13)
    return titled(
        figure,
        title or "What an edit costs, at sinks and at other keys",
        definition,
        "Mean over prompts with its 95 % interval; dotted: nothing edited.",
        *said_of(partly),
        *unfinished(*every),
        panels=460,
    )


@reads()
def effects(
    result: AblationResult, metric: str | None = None, *, margin: float | None = None, title: str | None = None
) -> Figure:
    """Differences with their 95 % intervals: each condition against unmasked, and against each control.

    Unit: that of the metric; left of 0 the condition has less of it. The band is the margin, if one is given: an
    interval that lies within it shows that the difference does not matter; one that merely contains 0 shows nothing.

    Args:
        result: An ablation.
        metric: Which metric; the first when None.
        margin: The largest difference that would not matter.
        title: Replaces the first line of the title.
    """
    import plotly.graph_objects as go

    metric = metric_of([result], metric)
    table: Any = result.effects(metric, margin=margin)
    differences: list[tuple[str, str, float, float, float, float]] = []  # condition, kind, mean, interval, p
    shares = least_exposed(table)
    for condition, part in table.groupby("condition", sort=False):
        first = part.iloc[0]
        against = [first[f"to_unmasked{name}"] for name in ("", "_low", "_high", "_p_holm")]
        differences.append((condition, "- unmasked", *against))
        for _, beside in part[part.control.astype(bool)].iterrows():
            beyond = [beside[f"to_control{name}"] for name in ("", "_low", "_high", "_p_holm")]
            differences.append((condition, f"- {kind_words(beside.control)}", *beyond))
    kinds = list(dict.fromkeys(kind for _, kind, *_ in differences))
    figure = go.Figure()
    for index, kind in enumerate(kinds):
        lines = [line for line, difference in enumerate(differences) if difference[1] == kind]
        names, _, mean, low, high, p = zip(*(differences[line] for line in lines), strict=True)
        figure.add_scatter(
            x=mean, y=lines, mode="markers", name=safe(kind),
            error_x={"type": "data", "symmetric": False, "array": np.subtract(high, mean),
                     "arrayminus": np.subtract(mean, low), "thickness": 1.5, "width": 4},
            marker={"symbol": MARKERS[index % len(MARKERS)], "size": 10, "color": COLORS[index % len(COLORS)],
                    "line_width": 2 if index else 0},
            customdata=list(zip(map(safe, names), low, high, p, strict=True)),
            hovertemplate="%{customdata[0]}<br>%{x:.4f}, 95 % interval %{customdata[1]:.4f} to %{customdata[2]:.4f}"
            "<br>p after Holm %{customdata[3]:.4f}<extra></extra>",
        )  # fmt: skip
    line = {"color": "#111", "width": 1}
    figure.add_vline(x=0, line=line)
    if margin is not None:
        figure.add_vrect(x0=-margin, x1=margin, fillcolor="#bbb", opacity=0.35, line_width=0, layer="below")
    axis, definition = words(metric)
    themed(figure).update_yaxes(
        tickvals=list(range(len(differences))),
        ticktext=[
            f"{safe(condition)} {safe(kind)}" + (f" ({shares[condition]:.2f} exposed)" if condition in shares else "")
            for condition, kind, *_ in differences
        ],
        range=[len(differences) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    figure.update_xaxes(title_text=f"difference in {axis}")
    figure.update_layout(height=200 + 26 * len(differences), showlegend=True)
    said = [definition, "Paired by prompt, mean difference with its 95 % bootstrap interval."]
    said += [] if margin is None else [f"Band: differences below {margin:g}, which would not matter."]
    said += [*said_of(list(shares.values())), *unfinished(result)]
    titled(figure, title or f"Effects on {safe(result.scores[0]['model'])}", *said)
    higher = 20 * max(0, len({kind for _, kind, *_ in differences}) - 2)  # the legend's lines are one above the other
    top = int(figure.layout.margin.t or 0)  # pyright: ignore[reportAttributeAccessIssue]
    figure.update_layout(margin_t=top + higher, height=200 + 26 * len(differences) + higher)
    return figure
