"""Figures of tables: sinks per layer, token classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinklens.plots.theme import COLORS, filled, safe, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


@reads()
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
            name=safe(model), marker=filled(index),
            hovertemplate=f"{safe(model)}, layer %{{x}}<br>%{{y:.3g}} {safe(unit)}<extra></extra>",
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
    return titled(
        figure, "Sinks per layer", f"Unit: {unit}. Dashed: what the same rule counts when attention is spread evenly."
    )


@reads()
def token_classes(frame: pd.DataFrame) -> Figure:
    """Grouped bars: which share of the sinks each class of tokens (or of places) holds, beside its share of all keys.

    Unit: share, range [0, 1]; equal bars mean that sinks prefer no class. Classes that no model has are left out.

    Args:
        frame: Columns model, token_class (`metrics.token_classes`) or place (`metrics.place_classes`),
            share_of_sinks, share_of_keys; one row per model and class.

    Raises:
        ValueError: a column is missing, or a model has two rows for a class.
    """
    import plotly.graph_objects as go

    kind = "place" if "place" in frame.columns else "token_class"
    table = _check(frame, ("model", kind, "share_of_sinks", "share_of_keys"), ("model", kind))
    common = table.groupby(kind)[["share_of_sinks", "share_of_keys"]].max().max(axis=1)
    table = table[table[kind].map(common) > 0]
    figure = go.Figure()
    for index, model in enumerate(dict.fromkeys(table["model"])):
        part = table[table["model"] == model]
        for column, what in (("share_of_sinks", "sinks"), ("share_of_keys", "all keys")):
            color, marker = COLORS[index % len(COLORS)], filled(index)
            if column == "share_of_keys":
                marker |= {"color": "white", "pattern": {"shape": "/", "fgcolor": color, "size": 6}}
            figure.add_bar(
                x=[safe(name) for name in part[kind]], y=part[column].to_numpy(),
                name=f"{safe(model)}: {what}", marker=marker,
                hovertemplate=f"{safe(model)}<br>%{{x}}: %{{y:.3f}} of {what}<extra></extra>",
            )  # fmt: skip
    themed(figure).update_yaxes(title_text="share (0 to 1)", range=[0, 1])
    figure.update_xaxes(title_text=kind.replace("_", " "), ticks="", showgrid=False)
    figure.update_layout(height=420, barmode="group", bargap=0.25, showlegend=True)
    return titled(
        figure,
        "Which tokens are sinks" if kind == "token_class" else "At which places sinks stand",
        "Solid: share of the sinks that stand on the class. Hatched: share of all keys (steps x positions).",
    )


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
