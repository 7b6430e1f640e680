"""Dose and response: a metric over the values of what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
def dose_response(
    results: AblationResult | Sequence[AblationResult],
    name: str,
    metric: str | None = None,
    *,
    controls: Sequence[str] | None = None,
    reference: Mapping[str, Mapping[float, float]] | None = None,
    title: str | None = None,
) -> Figure:
    """A metric over the values of what was varied (`experiment.doses`), sinks and controls, with 95 % intervals.

    Unit: that of the metric; x: the value (numbers to scale, else one after the other). Dotted: unmasked.

    Args:
        results: One ablation or several, with conditions "name=value".
        name: What was varied.
        metric: Which metric; the first when None.
        controls: Draw these controls only; all when None.
        reference: Curves from elsewhere (published ones, say), by what they are called, each from values to the metric;
            thin and grey, for other tasks than these.
        title: Replaces the first line of the title.

    Raises:
        ValueError: no condition of that name, or a control that was not run.
    """
    import plotly.graph_objects as go

    every = results_of(results)
    metric = metric_of(every, metric)
    figure, number, partly = go.Figure(), 0, list[float]()
    for which, result in enumerate(every):
        table: Any = result.summary()
        table = table[table.metric == metric]
        dosed = table[table.condition.str.startswith(f"{name}=")]
        if dosed.empty:
            raise ValueError(
                f"no condition is named {name!r}=...; there are {', '.join(dict.fromkeys(table.condition))}"
            )
        kinds = ["sinks", *(result.controls(dosed.condition.iloc[0]) if controls is None else controls)]
        if missing := set(kinds) - set(dosed.kind):
            raise ValueError(f"{name!r} was not run with {', '.join(missing)}; there are {', '.join(set(dosed.kind))}")
        partly += least_exposed(dosed).values()
        model = safe(result.scores[0]["model"])
        for kind in kinds:
            part = dosed[dosed.kind == kind]
            x = [_value(text.partition("=")[2]) for text in part.condition]
            value = part["value"].to_numpy()
            figure.add_scatter(
                x=x, y=value, mode="lines+markers", name=f"{model}: {kind_words(kind, part)}",
                error_y={"type": "data", "symmetric": False, "array": part["high"] - value,
                         "arrayminus": value - part["low"], "thickness": 1.2, "width": 4},
                line={"color": COLORS[which % len(COLORS)], "dash": "solid" if kind == "sinks" else "dash"},
                marker={"symbol": MARKERS[number % len(MARKERS)], "size": 9},
                customdata=part[["low", "high", "edited_keys", "edited_mass", "exposed"]].to_numpy(),
                hovertemplate=f"{safe(name)} %{{x}}<br>%{{y:.3f}}, 95 % interval %{{customdata[0]:.3f}} to "
                "%{customdata[1]:.3f}"
                + reached(part, "<br>%{customdata[2]:.1f} edited keys, %{customdata[3]:.1f} of attention per prompt")
                + "<br>%{customdata[4]:.2f} of the scored places exposed<extra></extra>",
            )  # fmt: skip
            number += 1
        bare = float(table[table.kind == UNMASKED]["value"].iloc[0])
        figure.add_hline(y=bare, line={"color": COLORS[which % len(COLORS)], "width": 1, "dash": "dot"})
    for which, (label, curve) in enumerate((reference or {}).items()):
        figure.add_scatter(
            x=list(curve), y=list(curve.values()), mode="lines+markers", name=safe(label),
            line={"color": "#777777", "width": 1, "dash": ("solid", "dash", "dot", "dashdot")[which % 4]},
            marker={"symbol": MARKERS[which % len(MARKERS)], "size": 6, "color": "#777777"},
            hovertemplate=f"{safe(label)}<br>{safe(name)} %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    axis, definition = words(metric)
    themed(figure).update_xaxes(title_text=safe(name))
    figure.update_yaxes(title_text=axis)
    if metric in METRICS and METRICS[metric].share:
        figure.update_yaxes(range=[-0.02, 1.05])
    figure.update_layout(height=440, showlegend=True)
    return titled(
        figure,
        title or f"Dose and response: {safe(name)}",
        definition,
        "Mean over prompts with its 95 % interval. Solid: sinks; dashed: controls; dotted: nothing edited."
        + (" Grey: published, of other models on other tasks." if reference else ""),
        *said_of(partly),
        *unfinished(*every),
    )


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
