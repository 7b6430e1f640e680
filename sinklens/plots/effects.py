"""Figures of ablations: accuracy by condition, differences with their intervals, dose-response curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import UNMASKED, AblationResult
from sinklens.plots.theme import COLORS, safe, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MARKERS = ("circle", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open", "star-open")


def _words(metric: str) -> tuple[str, str]:
    """Axis title and definition."""
    known = METRICS.get(metric)
    name = metric.replace("_", " ")
    return (f"{name} ({known.unit})", f"{name}: {known.meaning} ({known.unit}).") if known else (name, name)


def _results(results: AblationResult | Sequence[AblationResult]) -> list[AblationResult]:
    return [results] if isinstance(results, AblationResult) else list(results)


def _metric(results: Sequence[AblationResult], metric: str | None) -> str:
    known = list(dict.fromkeys(score["metric"] for result in results for score in result.scores))
    if not known:
        raise ValueError("the results have no scores, so there is nothing to draw")
    if metric is not None and metric not in known:
        raise ValueError(f"metric {metric!r} was not measured; there are {', '.join(known)}")
    return metric or known[0]


def _exposed(table: Any) -> dict[str, float]:
    """The conditions of which some scored places met no edit, with the share that did (the least of their arms)."""
    least = table.groupby("condition", sort=False)["exposed"].min()
    return {name: float(share) for name, share in least.items() if share < 1}


def _unfinished(*results: AblationResult) -> list[str]:
    """A line of the title for each result that was interrupted."""
    return [f"{result.scores[0]['model']} is {result.unfinished}." for result in results if result.unfinished]


def _said_of(shares: Sequence[float]) -> list[str]:
    """A line of the title, if there is anything to say."""
    if not shares:
        return []
    few, most = (f"{each:.2f}" for each in (min(shares), max(shares)))
    return [
        f"Of some conditions only {few if few == most else f'{few} to {most}'} of the scored places were exposed to "
        "the edit: the rest was decided by forwards that edited no key."
    ]


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

    every = _results(results)
    metric = _metric(every, metric)
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
        shares = _exposed(table)
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
                mode="markers", name=_kind(kind), legendgroup=kind, showlegend=kind not in in_legend,
                cliponaxis=False,
                marker={"symbol": MARKERS[index % len(MARKERS)], "size": 10, "color": COLORS[index % len(COLORS)],
                        "line_width": 2 if index else 0},
                customdata=list(zip(map(safe, part.condition), part.low, part.high, part.edited_keys, part.exposed,
                                    strict=True)),
                hovertemplate="%{customdata[0]}<br>%{y:.3f}, 95 % interval %{customdata[1]:.3f} to %{customdata[2]:.3f}"
                "<br>%{customdata[3]:.1f} edited keys per prompt, %{customdata[4]:.2f} of the scored places exposed"
                "<extra></extra>",
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
    axis, definition = _words(metric)
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
        *_said_of(partly),
        *_unfinished(*every),
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

    metric = _metric([result], metric)
    table: Any = result.effects(metric, margin=margin)
    differences: list[tuple[str, str, float, float, float, float]] = []  # condition, kind, mean, interval, p
    shares = _exposed(table)
    for condition, part in table.groupby("condition", sort=False):
        first = part.iloc[0]
        against = [first[f"to_unmasked{name}"] for name in ("", "_low", "_high", "_p_holm")]
        differences.append((condition, "- unmasked", *against))
        for _, beside in part[part.control.astype(bool)].iterrows():
            beyond = [beside[f"to_control{name}"] for name in ("", "_low", "_high", "_p_holm")]
            differences.append((condition, f"- {_kind(beside.control)}", *beyond))
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
    axis, definition = _words(metric)
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
    said += [*_said_of(list(shares.values())), *_unfinished(result)]
    return titled(figure, title or f"Effects on {safe(result.scores[0]['model'])}", *said)


@reads()
def dose_response(
    results: AblationResult | Sequence[AblationResult],
    name: str,
    metric: str | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """A metric over the values of what was varied (`experiment.doses`), sinks and controls, with 95 % intervals.

    Unit: that of the metric; x: the value (numbers to scale, else one after the other). Dotted: unmasked.

    Args:
        results: One ablation or several, with conditions "name=value".
        name: What was varied.
        metric: Which metric; the first when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: no condition of that name.
    """
    import plotly.graph_objects as go

    every = _results(results)
    metric = _metric(every, metric)
    figure, number, partly = go.Figure(), 0, list[float]()
    for which, result in enumerate(every):
        table: Any = result.summary()
        table = table[table.metric == metric]
        dosed = table[table.condition.str.startswith(f"{name}=")]
        if dosed.empty:
            raise ValueError(
                f"no condition is named {name!r}=...; there are {', '.join(dict.fromkeys(table.condition))}"
            )
        partly += _exposed(dosed).values()
        model = safe(result.scores[0]["model"])
        for kind in dict.fromkeys(dosed.kind):
            part = dosed[dosed.kind == kind]
            x = [_value(text.partition("=")[2]) for text in part.condition]
            value = part["value"].to_numpy()
            figure.add_scatter(
                x=x, y=value, mode="lines+markers", name=f"{model}: {_kind(kind)}",
                error_y={"type": "data", "symmetric": False, "array": part["high"] - value,
                         "arrayminus": value - part["low"], "thickness": 1.2, "width": 4},
                line={"color": COLORS[which % len(COLORS)], "dash": "solid" if kind == "sinks" else "dash"},
                marker={"symbol": MARKERS[number % len(MARKERS)], "size": 9},
                customdata=part[["low", "high", "edited_keys", "edited_mass", "exposed"]].to_numpy(),
                hovertemplate=f"{safe(name)} %{{x}}<br>%{{y:.3f}}, 95 % interval %{{customdata[0]:.3f}} to "
                "%{customdata[1]:.3f}<br>%{customdata[2]:.1f} edited keys, %{customdata[3]:.1f} of attention per prompt"
                "<br>%{customdata[4]:.2f} of the scored places exposed<extra></extra>",
            )  # fmt: skip
            number += 1
        bare = float(table[table.kind == UNMASKED]["value"].iloc[0])
        figure.add_hline(y=bare, line={"color": COLORS[which % len(COLORS)], "width": 1, "dash": "dot"})
    axis, definition = _words(metric)
    themed(figure).update_xaxes(title_text=safe(name))
    figure.update_yaxes(title_text=axis)
    figure.update_layout(height=440, showlegend=True)
    return titled(
        figure,
        title or f"Dose and response: {safe(name)}",
        definition,
        "Mean over prompts with its 95 % interval. Solid: sinks; dashed: controls; dotted: nothing edited.",
        *_said_of(partly),
        *_unfinished(*every),
    )


def _kind(kind: str) -> str:
    return {"sinks": "sinks", "random": "random keys", "same_mass": "random keys of the same mass"}.get(kind, kind)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
