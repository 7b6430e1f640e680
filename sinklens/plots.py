"""Plotly figures of a record (`timeline`, `sink_positions`) and of tables over several runs.

Every function returns a `plotly.graph_objects.Figure`. Figures need no network and stay readable in black and white:
one sequential colour scale, and whatever a colour tells, a symbol, a hatch or a position tells as well.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinklens import metrics
from sinklens.sinks import SinkRule

if TYPE_CHECKING:  # plotly costs half a second to import
    import pandas as pd
    from plotly.graph_objects import Figure

COLORS = ("#0b3c6f", "#e69f00", "#00876c", "#c4a3d6", "#a63603", "#56b4e9", "#595959", "#d6c94a")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
SCALE = "Viridis"
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
LABELLED = 64  # positions; more token texts than this do not fit on an axis
CELLS = 500_000  # cells in one figure; a browser stays quick and a page small


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

    rule = rule or SinkRule()
    row = _row(record, prompt, rule)
    views, left_out = _views(row)
    size = float(np.clip(600 / max(len(row.steps), len(row.keys)), 3, 6))
    figure = go.Figure()
    for index, (label, select, pairs) in enumerate(views):
        mean, counts = row.received[:, *select].mean((1, 2)), row.sinks[:, *select].sum((1, 2))
        figure.add_heatmap(
            x=row.keys, y=row.steps, z=mean, zmin=0, zmax=_largest(mean), colorscale=SCALE, hoverongaps=False,
            text=row.shown, customdata=counts, name=label, visible=index == 0,
            colorbar={"title": {"text": "received attention (column sum)", "side": "right", "font_size": 13}},
            hovertemplate="position %{x:d}, step %{y:d}<br>token <b>%{text}</b><br>received attention %{z:.3f}<br>"
            f"sink in %{{customdata}} of {pairs}<extra></extra>",
        )  # fmt: skip
        at = np.argwhere(counts > 0)
        figure.add_scatter(
            x=row.keys[at[:, 1]], y=row.steps[at[:, 0]], mode="markers", hoverinfo="skip", visible=index == 0,
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
    definition = record["received"].attrs.get("definition", "attention that the position receives, summed over queries")
    average = "; 1 = the average over positions" if definition.startswith("sum over all") else ""
    lines = [
        f"Received attention: {definition} (column sum{average}). "
        "Columns are positions, rows are denoising steps; blank: not on the canvas.",
        f"Sink: {describe(rule)}, per step, layer and head.",
    ]
    if left_out:
        lines.append(f"Left out for size: {left_out}; plot fewer layers or steps to see them.")
    _on_canvas(themed(figure), row)
    return _titled(figure, title or f"Who is attended to, step by step (prompt {prompt})", *lines)


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

    rule = rule or SinkRule()
    row = _row(record, prompt, rule)
    layers, heads = row.sinks.shape[1:3]
    colors = COLORS if layers <= len(COLORS) else sample_colorscale(SCALE, np.linspace(0, 0.95, layers).tolist())
    shift = (np.arange(layers) - (layers - 1) / 2) * 0.7 / layers
    figure = go.Figure()
    for index, layer in enumerate(row.layers):
        counts = row.sinks[:, index].sum(1)
        at = np.argwhere(counts > 0)
        found = counts[at[:, 0], at[:, 1]]
        figure.add_scatter(
            x=row.keys[at[:, 1]] + shift[index], y=row.steps[at[:, 0]], mode="markers",
            name=f"layer {layer}", showlegend=True,
            text=[row.shown[step][key] for step, key in at],
            customdata=np.stack([row.keys[at[:, 1]], found], -1),
            hovertemplate="position %{customdata[0]}, step %{y:d}<br>token <b>%{text}</b><br>"
            f"sink in %{{customdata[1]}} of {heads} heads of layer {layer}<extra></extra>",
            marker={"size": 11 * np.sqrt(found / heads), "sizemin": 3, "opacity": 1, "color": colors[index],
                    "symbol": SYMBOLS[index % len(SYMBOLS)], "line": {"color": "black", "width": 0.6}},
        )  # fmt: skip
    if not row.sinks.any():
        figure.add_annotation(text="no sink by this rule", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    _on_canvas(themed(figure), row)
    figure.update_layout(legend_itemsizing="constant")
    if layers > len(COLORS):
        figure.update_layout(legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"})
    figure.update_xaxes(showgrid=True)
    return _titled(
        figure,
        title or f"Where the sinks are (prompt {prompt})",
        f"Sink: {describe(rule)}, per step, layer and head.",
        f"Area of a marker: in how many of the {heads} heads of the layer. Layers stand side by side.",
    )


def layer_counts(frame: pd.DataFrame, *, unit: str = "sinks per step and head (mean)") -> Figure:
    """Bars of the number of sinks per layer, one colour per model, with the count under uniform attention.

    Unit: `unit`, range [0, number of keys]. The dashed line on a bar is what the rule counts when every query spreads
    its attention evenly (`sinks.uniform_null`): sinks below it say nothing about the model.

    Args:
        frame: Columns model, layer, sinks, null; one row per model and layer.
        unit: What `sinks` and `null` count, for the axis.

    Raises:
        ValueError: a column is missing, or a model has two rows for a layer.
    """
    import plotly.graph_objects as go

    table = _check(frame, ("model", "layer", "sinks", "null"), ("model", "layer"))
    models = list(dict.fromkeys(table["model"]))
    together = 0.8 if table["layer"].nunique() > 4 else 0.5
    width = together / len(models)
    figure = go.Figure()
    edges: list[float | None] = []
    heights: list[float | None] = []
    for index, model in enumerate(models):
        part = table[table["model"] == model]
        start = index * width - together / 2
        figure.add_bar(
            x=part["layer"].to_numpy(), y=part["sinks"].to_numpy(), width=width, offset=start,
            name=_safe(model), marker=_filled(index),
            hovertemplate=f"{_safe(model)}, layer %{{x}}<br>%{{y:.3g}} {_safe(unit)}<extra></extra>",
        )  # fmt: skip
        for layer, null in zip(part["layer"], part["null"], strict=True):
            edges += [layer + start, layer + start + width, None]
            heights += [null, null, None]
    line = {"color": "black", "width": 2.5, "dash": "4px,2px"}
    figure.add_trace(
        go.Scatter(x=edges, y=heights, mode="lines", name="uniform attention", line=line, cliponaxis=False)
    )
    themed(figure).update_xaxes(title_text="layer", showgrid=False, dtick=1 if table["layer"].nunique() <= 40 else None)
    figure.update_yaxes(title_text=unit, rangemode="tozero")
    figure.update_layout(height=420, showlegend=True)
    return _titled(
        figure, "Sinks per layer", f"Unit: {unit}. Dashed: what the same rule counts when attention is spread evenly."
    )


def token_classes(frame: pd.DataFrame) -> Figure:
    """Grouped bars: which share of the sinks each token class holds, beside its share of all keys.

    Unit: share, range [0, 1]; equal bars mean that sinks prefer no class. Classes that no model has are left out.

    Args:
        frame: Columns model, token_class, share_of_sinks, share_of_keys; one row per model and class.

    Raises:
        ValueError: a column is missing, or a model has two rows for a class.
    """
    import plotly.graph_objects as go

    table = _check(frame, ("model", "token_class", "share_of_sinks", "share_of_keys"), ("model", "token_class"))
    common = table.groupby("token_class")[["share_of_sinks", "share_of_keys"]].max().max(axis=1)
    table = table[table["token_class"].map(common) > 0]
    figure = go.Figure()
    for index, model in enumerate(dict.fromkeys(table["model"])):
        part = table[table["model"] == model]
        for column, what in (("share_of_sinks", "sinks"), ("share_of_keys", "all keys")):
            color, marker = COLORS[index % len(COLORS)], _filled(index)
            if column == "share_of_keys":
                marker |= {"color": "white", "pattern": {"shape": "/", "fgcolor": color, "size": 6}}
            figure.add_bar(
                x=[_safe(name) for name in part["token_class"]], y=part[column].to_numpy(),
                name=f"{_safe(model)}: {what}", marker=marker,
                hovertemplate=f"{_safe(model)}<br>%{{x}}: %{{y:.3f}} of {what}<extra></extra>",
            )  # fmt: skip
    themed(figure).update_yaxes(title_text="share (0 to 1)", range=[0, 1])
    figure.update_xaxes(title_text="token class", ticks="", showgrid=False)
    figure.update_layout(height=420, barmode="group", bargap=0.25, showlegend=True)
    return _titled(
        figure,
        "Which tokens are sinks",
        "Solid: share of the sinks that stand on the class. Hatched: share of all keys (steps x positions).",
    )


def ablation(frame: pd.DataFrame) -> Figure:
    """Accuracy under each condition with its 95 % interval: one panel per model, one row of panels per outcome.

    Unit: accuracy, range [0, 1]. At each k the sinks and the same number of random keys stand side by side; the
    dotted line continues the unmasked accuracy.

    Args:
        frame: Columns model, outcome, condition, k, kind ("unmasked", "sinks" or "random"), accuracy, low, high.

    Raises:
        ValueError: a column is missing, a kind is unknown, or a condition has two rows of a kind.
    """
    from plotly.subplots import make_subplots

    table = _check(
        frame,
        ("model", "outcome", "condition", "k", "kind", "accuracy", "low", "high"),
        ("model", "outcome", "condition", "kind"),
    )
    looks = {
        "unmasked": ("diamond", "#111", 0.0),
        "sinks": ("circle", COLORS[0], -0.13),
        "random": ("square-open", "#a63603", 0.13),
    }
    unknown = sorted(set(map(str, table["kind"])) - set(looks))
    if unknown:
        raise ValueError(f"kind {unknown[0]!r} is unknown; the kinds are {', '.join(looks)}")
    models, outcomes = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["outcome"]))
    places = {k: 1 + place for place, k in enumerate(sorted(set(table.loc[table["kind"] != "unmasked", "k"])))}
    height = 140 + 280 * len(outcomes)
    names = [f"{_safe(model)}: {_safe(outcome)}" for outcome in outcomes for model in models]
    figure = make_subplots(
        len(outcomes), len(models), shared_yaxes=True, subplot_titles=names,
        horizontal_spacing=0.04, vertical_spacing=0.2 / len(outcomes),
    )  # fmt: skip
    named = set()
    for (model, outcome, kind), part in table.groupby(["model", "outcome", "kind"], sort=False):
        symbol, color, shift = looks[kind]
        at: dict[str, Any] = {"row": outcomes.index(outcome) + 1, "col": models.index(model) + 1}
        accuracy = part["accuracy"].to_numpy()
        figure.add_scatter(
            x=[0 if kind == "unmasked" else places[k] + shift for k in part["k"]],
            y=accuracy,
            error_y={"type": "data", "symmetric": False, "array": part["high"] - accuracy,
                     "arrayminus": accuracy - part["low"], "thickness": 1.5, "width": 5},
            mode="markers", name={"sinks": "sinks", "random": "random keys"}.get(kind, kind), legendgroup=kind,
            showlegend=kind not in named, cliponaxis=False,
            marker={"symbol": symbol, "size": 10, "color": color, "line_width": 2 if kind == "random" else 0},
            customdata=list(zip(map(_safe, part["condition"]), part["low"], part["high"], strict=True)),
            hovertemplate="%{customdata[0]}<br>accuracy %{y:.3f}, 95 % interval %{customdata[1]:.3f} to "
            "%{customdata[2]:.3f}<extra></extra>",
            **at,
        )  # fmt: skip
        named.add(kind)
        if kind == "unmasked":
            figure.add_hline(y=float(accuracy[0]), line={"color": "#111", "width": 1, "dash": "dot"}, **at)
    themed(figure).update_xaxes(
        tickvals=[0, *places.values()], ticktext=["none", *(f"{k:g}" for k in places)], range=[-0.5, len(places) + 0.5],
        showgrid=False,
    )  # fmt: skip
    figure.update_xaxes(title_text="keys edited in each head (k)", row=len(outcomes))
    figure.update_yaxes(range=[0, 1], dtick=0.2)
    figure.update_yaxes(title_text="accuracy (0 to 1)", col=1)
    figure.update_annotations(font_size=13)
    figure.update_layout(height=height)
    return _titled(
        figure,
        "What masking sinks costs",
        "Accuracy with its 95 % interval. Sinks beside the same number of random keys; dotted: nothing masked.",
        panels=height,
    )


def describe(rule: SinkRule) -> str:
    """A rule in words."""
    if rule.epsilon is None:
        return f"the {rule.top_k} positions with the most received attention"
    if rule.units == "zscore":
        text = f"received attention above the mean of all positions by more than {rule.epsilon:g} standard deviations"
    else:
        unit = {"sum": "column sum", "mean": "column mean", "percent": "percent of the queries"}[rule.units]
        text = f"received attention above the mean of the other positions by more than {rule.epsilon:g} ({unit})"
    return text if rule.top_k is None else f"{text}, at most the {rule.top_k} largest"


@dataclass(frozen=True)
class _Row:
    """One prompt of a record, cut to its own positions."""

    received: np.ndarray  # [step, layer, head, key]
    sinks: np.ndarray  # likewise, bool
    shown: list[list[str]]  # [step][key]: the token standing there at that step
    final: list[str]  # [key]; "" where nothing was ever written
    given: np.ndarray  # [key]
    steps: np.ndarray
    layers: np.ndarray
    heads: np.ndarray
    keys: np.ndarray


def _row(record: xr.Dataset, prompt: int, rule: SinkRule) -> _Row:
    for name in ("received", "token", "text", "given", "masked", "commit_step"):
        if name not in record:
            hint = "; measure with probes=[ReceivedAttention()]" if name == "received" else ""
            raise ValueError(f"the record has no {name!r}; it has {', '.join(map(str, record.data_vars))}{hint}")
    if "prompt" not in record["received"].dims:
        raise ValueError("the record has no dim 'prompt'; choose one with isel(prompt=[0]), which keeps it")
    prompts = record.sizes["prompt"]
    if not 0 <= prompt < prompts:
        raise ValueError(f"prompt {prompt} does not exist; there are {prompts}: 0 to {prompts - 1}")
    row = record.isel(prompt=prompt)
    row = row.isel(key=slice(0, int((row["token"] >= 0).sum())))
    received = row["received"].transpose("step", "layer", "head", "key")
    masked = row["masked"].transpose("step", "key").to_numpy()
    text = [_safe(token) for token in row["text"].to_numpy()]
    written = (row["given"].to_numpy() == 1) | (row["commit_step"].to_numpy() >= 0)
    return _Row(
        received=received.to_numpy(),
        sinks=metrics.sinks(row, rule).transpose(*received.dims).to_numpy(),
        shown=[["[MASK]" if m == 1 else "" if m < 0 else t for m, t in zip(at, text, strict=True)] for at in masked],
        final=[
            token if done else "[MASK]" if ever else ""
            for token, done, ever in zip(text, written, (masked == 1).any(0), strict=True)
        ],
        given=row["given"].to_numpy() == 1,
        # Without coordinates xarray counts from 0.
        **{f"{dim}s": received[dim].to_numpy() for dim in ("step", "layer", "head", "key")},
    )


def _views(row: _Row) -> tuple[list[tuple[str, tuple[Any, Any], str]], str]:
    """What the menu offers: label, index of (layer, head), what the sinks are counted over; and what was left out."""
    steps, layers, heads, keys = row.received.shape
    everything = (slice(None), slice(None))
    views: list[tuple[str, tuple[Any, Any], str]] = [
        ("mean over layers and heads", everything, f"{layers * heads} (layer, head) pairs")
    ]
    if (1 + layers) * steps * keys > CELLS:
        return views, "single layers and heads"
    for at, layer in enumerate(row.layers):
        views.append((f"layer {layer}, mean over heads", (slice(at, at + 1), slice(None)), f"{heads} heads"))
    if (1 + layers + layers * heads) * steps * keys > CELLS:
        return views, "single heads"
    for at, layer in enumerate(row.layers):
        for which, head in enumerate(row.heads):
            views.append((f"layer {layer}, head {head}", (slice(at, at + 1), slice(which, which + 1)), "1 head"))
    return views, ""


def _largest(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.max()) if there.size else 1.0


def _on_canvas(figure: Figure, row: _Row) -> None:
    """Axes of position and step, and a line wherever given and filled positions meet."""
    steps, keys = len(row.steps), len(row.keys)
    figure.update_xaxes(title_text="position", showgrid=False, range=[row.keys[0] - 0.6, row.keys[-1] + 0.6])
    if keys <= LABELLED:
        figure.update_xaxes(
            title_text="position (final token)", tickvals=row.keys, ticktext=row.final, tickangle=-90, tickfont_size=11
        )
    figure.update_yaxes(title_text="denoising step", range=[row.steps[-1] + 0.6, row.steps[0] - 0.6], showgrid=False)
    for key in np.flatnonzero(row.given[1:] != row.given[:-1]):
        for color, width in (("white", 4), ("black", 1.5)):  # seen on dark and on light cells
            figure.add_vline(x=(row.keys[key] + row.keys[key + 1]) / 2, line={"color": color, "width": width})
    figure.update_layout(height=int(np.clip(230 + 15 * steps, 400, 1000)))


def _titled(figure: Figure, title: str, *lines: str, panels: int = 0) -> Figure:
    """Title and what the numbers are, above a row for the menu and the legend.

    `panels`: height of a figure of panels; their titles get a row of their own.
    """
    small = [part for line in lines for part in textwrap.wrap(line, 130)]
    text = "<br>".join(html.escape(line, quote=False) for line in small)
    top = 72 + 16 * len(small) + 26 * bool(panels)
    figure.update_layout(
        title={
            "text": f'<b style="font-size:16px">{html.escape(title, quote=False)}</b><br>{text}',
            "font_size": 12, "x": 0.01, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad_t": 12,
        },
        margin_t=top,
    )  # fmt: skip
    if panels:  # the legend would cover them
        figure.update_layout(legend={"yref": "container", "yanchor": "bottom", "y": 1 - (top - 26) / panels})
    return figure


def _filled(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "line": {"color": "black", "width": 0.8}}


def _safe(value: object) -> str:
    """Plotly reads texts as HTML and would swallow `<|mask|>`."""
    return html.escape(visible(str(value)), quote=False)


def _check(frame: pd.DataFrame, columns: Sequence[str], key: Sequence[str]) -> Any:
    """The table if it can be drawn, loosely typed: pandas' own types do not know what a column holds."""
    for name in columns:
        if name not in frame.columns:
            raise ValueError(
                f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns)) or 'none'}, "
                f"and this figure needs {', '.join(columns)}"
            )
    if frame.empty:
        raise ValueError("the table has no rows, so there is nothing to draw")
    if frame.duplicated(list(key)).any():
        twice = frame.loc[frame.duplicated(list(key)), list(key)].iloc[0].to_dict()
        raise ValueError(f"the table has two rows for {twice}; aggregate it to one row per {' and '.join(key)}")
    return frame
