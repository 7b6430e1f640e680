"""Figures of one prompt, positions by steps: its timeline, and where its sinks are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinklens.plots.record_view import (
    CELLS,
    PromptView,
    largest,
    null_counts,
    null_words,
    on_canvas,
    rule_of,
    spread,
    view_of,
)
from sinklens.plots.theme import COLORS, SCALE, SYMBOLS, describe, themed, titled
from sinklens.sinks import SinkRule
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@reads()
def timeline(record: xr.Dataset, *, prompt: int = 0, rule: SinkRule | None = None, title: str | None = None) -> Figure:
    """Heat map of the received attention of every position (x) at every step (y, step 0 on top).

    Unit: attention (column sum), range [0, number of queries]. A menu chooses the mean over layers and heads, one
    layer's mean over heads, or one head; each has its own colour range from 0. Circles mark sinks by the rule in at
    least one head of the selection. Blank: the position did not exist at that step. Lines part given positions from
    those that were filled. Hovering shows the token that stood there at that step. Menu entries that would bring
    the figure above `CELLS` cells are left out (first the heads, then the layers), and the title says so.

    Args:
        record: Needs `received` (`probes.ReceivedAttention`).
        prompt: Which prompt, counted from 0.
        rule: What a sink is; `SinkRule()` when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a variable or the prompt is missing.
    """
    import plotly.graph_objects as go

    rule = rule_of(record, rule)
    view = view_of(record, prompt, rule)
    views, left_out = selections(view, CELLS)
    size = float(np.clip(600 / max(len(view.steps), len(view.keys)), 3, 6))
    figure = go.Figure()
    for index, (label, select, pairs) in enumerate(views):
        mean, counts = view.received[:, *select].mean((1, 2)), view.sinks[:, *select].sum((1, 2))
        figure.add_heatmap(
            x=view.keys, y=view.steps, z=mean, zmin=0, zmax=largest(mean), colorscale=SCALE, hoverongaps=False,
            text=view.shown, customdata=counts, name=label, visible=index == 0,
            colorbar={"title": {"text": "received attention (column sum)", "side": "right", "font_size": 13}},
            hovertemplate="position %{x:d}, step %{y:d}<br>token <b>%{text}</b><br>received attention %{z:.3f}<br>"
            f"sink in %{{customdata}} of {pairs}<extra></extra>",
        )  # fmt: skip
        marked = np.argwhere(counts > 0)
        figure.add_scatter(
            x=view.keys[marked[:, 1]], y=view.steps[marked[:, 0]], mode="markers", hoverinfo="skip", visible=index == 0,
            name="sink in at least one of these heads", showlegend=True,
            marker={"size": size, "color": "white", "line": {"color": "black", "width": 1.2}},
        )  # fmt: skip
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": [n // 2 == i for n in range(2 * len(views))]}]}
        for i, (label, _, _) in enumerate(views)
    ]
    menu = {
        "buttons": buttons, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 6},
        "bgcolor": "white", "bordercolor": "#222", "font": {"size": 12},
    }  # fmt: skip
    figure.update_layout(updatemenus=[menu])
    average = "; 1 = the average over positions" if rule.queries == "all" else ""
    lines = [
        f"Received attention: sum over {rule.queries} valid queries of the attention that the position receives "
        f"(column sum{average}). Left to right: positions; down: denoising steps; blank: not on the canvas.",
        f"Sink: {describe(rule)}, per step, layer and head.",
    ]
    if left_out:
        lines.append(f"Left out for size: {left_out}; plot fewer layers or steps to see them.")
    lines.insert(1, null_words(record, rule))
    on_canvas(themed(figure), view)
    return titled(figure, title or f"Who is attended to, step by step (prompt {prompt})", *lines)


@reads()
def sink_positions(
    record: xr.Dataset, *, prompt: int = 0, rule: SinkRule | None = None, title: str | None = None
) -> Figure:
    """Every sink as a marker at its position (x) and step (y): one colour and symbol per layer.

    Unit: the marker's area grows with the number of heads, range [1, heads], in which the position is a sink of that
    layer. Layers stand side by side inside a position.

    Args:
        record: Needs `received` (`probes.ReceivedAttention`).
        prompt: Which prompt, counted from 0.
        rule: What a sink is; `SinkRule()` when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a variable or the prompt is missing.
    """
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    rule = rule_of(record, rule)
    view = view_of(record, prompt, rule)
    layers, heads = view.sinks.shape[1:3]
    colors = COLORS if layers <= len(COLORS) else sample_colorscale(SCALE, np.linspace(0, 0.95, layers).tolist())
    shift = (np.arange(layers) - (layers - 1) / 2) * 0.7 / layers
    figure = go.Figure()
    for index, layer in enumerate(view.layers):
        counts = view.sinks[:, index].sum(1)
        marked = np.argwhere(counts > 0)
        heads_of = counts[marked[:, 0], marked[:, 1]]
        figure.add_scatter(
            x=view.keys[marked[:, 1]] + shift[index], y=view.steps[marked[:, 0]], mode="markers",
            name=f"layer {layer}", showlegend=True,
            text=[view.shown[step][key] for step, key in marked],
            customdata=np.stack([view.keys[marked[:, 1]], heads_of], -1),
            hovertemplate="position %{customdata[0]}, step %{y:d}<br>token <b>%{text}</b><br>"
            f"sink in %{{customdata[1]}} of {heads} heads of layer {layer}<extra></extra>",
            marker={"size": 11 * np.sqrt(heads_of / heads), "sizemin": 3, "opacity": 1, "color": colors[index],
                    "symbol": SYMBOLS[index % len(SYMBOLS)], "line": {"color": "black", "width": 0.6}},
        )  # fmt: skip
    if not view.sinks.any():
        figure.add_annotation(text="no sink by this rule", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    on_canvas(themed(figure), view)
    figure.update_layout(legend_itemsizing="constant")
    if layers > len(COLORS):
        figure.update_layout(legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"})
    figure.update_xaxes(showgrid=True)
    return titled(
        figure,
        title or f"Where the sinks are (prompt {prompt})",
        f"Sink: {describe(rule)}, per step, layer and head.",
        f"Area of a marker: in how many of the {heads} heads of the layer. Layers stand side by side.",
        f"Uniform attention would give {spread(null_counts(record, rule))} sinks per head and step.",
    )


def selections(view: PromptView, cells: int) -> tuple[list[tuple[str, tuple[Any, Any], str]], str]:
    """What a menu offers: label, index of (layer, head), what the sinks are counted over; and what was left out.

    Args:
        view: Whose layers and heads.
        cells: More than this many are too many for one figure.
    """
    steps, layers, heads, keys = view.received.shape
    everything = (slice(None), slice(None))
    views: list[tuple[str, tuple[Any, Any], str]] = [
        ("mean over layers and heads", everything, f"{layers * heads} (layer, head) pairs")
    ]
    if (1 + layers) * steps * keys > cells:
        return views, "single layers and heads"
    for i, layer in enumerate(view.layers):
        views.append((f"layer {layer}, mean over heads", (slice(i, i + 1), slice(None)), f"{heads} heads"))
    if (1 + layers + layers * heads) * steps * keys > cells:
        return views, "single heads"
    for i, layer in enumerate(view.layers):
        for j, head in enumerate(view.heads):
            views.append((f"layer {layer}, head {head}", (slice(i, i + 1), slice(j, j + 1)), "1 head"))
    return views, ""
