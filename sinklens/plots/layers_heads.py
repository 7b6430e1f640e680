"""Figures of all layers and heads: layers over steps, and every head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinklens.analysis.attention import null
from sinklens.analysis.rates import sinks
from sinklens.plots.record_view import (
    CELLS,
    PromptView,
    attention_of,
    largest,
    null_counts,
    null_words,
    place,
    rule_of,
    spread,
    view_of,
)
from sinklens.plots.theme import SCALE, describe, themed, titled
from sinklens.sinks import SinkRule
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PANELS = 64  # of `heads`; more of them are too small to read


@reads()
def layer_steps(record: xr.Dataset, rule: SinkRule | None = None, *, title: str | None = None) -> Figure:
    """Heat map of how many sinks a head has, by layer (y, layer 0 on top) and denoising step (x).

    Unit: sinks per head, mean over prompts and heads, range [0, number of keys]. 0: no head has a sink; 1: one sink
    per head on average. Blank: not measured at that step, or all prompts are done. The title says what the same rule
    counts under uniform attention. Source: sinklens; fewer sinks in deeper layers is a finding of arXiv 2510.15731,
    section 4.2.

    Args:
        record: Needs `received` (`probes.ReceivedAttention`).
        rule: What a sink is; `SinkRule()` when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: the variable is missing.
    """
    import plotly.graph_objects as go

    rule = rule_of(record, rule)
    values, flags = attention_of(record, rule)
    counts = flags.sum("key").where(values.notnull().any("key"))
    z = counts.mean(["prompt", "head"]).transpose("layer", "step").to_numpy()
    layers, steps = values["layer"].to_numpy(), values["step"].to_numpy()
    figure = go.Figure()
    figure.add_heatmap(
        x=steps, y=layers, z=z, zmin=0, zmax=max(largest(z), 1e-9), colorscale=SCALE, hoverongaps=False,
        colorbar={"title": {"text": "sinks per head (mean)", "side": "right", "font_size": 13}},
        hovertemplate="layer %{y:d}, step %{x:d}<br>%{z:.3f} sinks per head<extra></extra>",
    )  # fmt: skip
    themed(figure).update_xaxes(title_text="denoising step", showgrid=False, range=[steps[0] - 0.5, steps[-1] + 0.5])
    figure.update_yaxes(
        title_text="layer", range=[layers[-1] + 0.5, layers[0] - 0.5], showgrid=False,
        dtick=1 if len(layers) <= 40 else None,
    )  # fmt: skip
    figure.update_layout(height=int(np.clip(220 + 28 * len(layers), 300, 900)))
    return titled(
        figure,
        title or "How many sinks, layer by layer and step by step",
        f"Sink: {describe(rule)}, per step, layer and head.",
        f"Colour: sinks per head, mean over {values.sizes['prompt']} prompts and {values.sizes['head']} heads. "
        f"Uniform attention would count {spread(null_counts(record, rule))}.",
    )


@reads()
def heads(
    record: xr.Dataset,
    prompt: int = 0,
    rule: SinkRule | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    title: str | None = None,
) -> Figure:
    """Every head's timeline in small: a row of panels per layer, a column per head, position (x) and step (y, down).

    Unit: attention (column sum), range [0, number of queries]; 1 is the average over positions if all queries count.
    All panels have one colour range, from 0 to the largest value shown, so that they can be compared; where few cells
    are far above the others it ends at the 99.5th percentile, and the title says so. Circles are sinks by the rule.
    The last panel of the first row is uniform attention. At most `PANELS` panels and `CELLS` cells are drawn; unless
    you choose, layers are then evenly spaced and heads the first ones, and the title says so.

    Args:
        record: Needs `received` (`probes.ReceivedAttention`).
        prompt: Which prompt, counted from 0.
        rule: What a sink is; `SinkRule()` when None.
        layers: Which layers, by name; None: all that fit.
        heads: Which heads, by name; None: all that fit.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a variable, the prompt, a layer or a head is missing, or what was chosen does not fit.
    """
    from plotly.subplots import make_subplots

    rule = rule_of(record, rule)
    view = view_of(record, prompt, rule)
    at_layers, at_heads, left_out = _fitting(view, layers, heads)
    shown = view.received[:, at_layers][:, :, at_heads]
    even = null(record.isel(prompt=[prompt], key=slice(0, len(view.keys))), rule.queries)
    of = view.layers[at_layers[0]] if even.sizes["layer"] > 1 else even["layer"][0]  # beside whose row it stands
    parts = (even["received"], sinks(even, rule))
    expected, at_null = (array.isel(prompt=0, head=0).sel(layer=of) for array in parts)
    rows, columns = len(at_layers), len(at_heads) + 1
    names = [
        f"layer {view.layers[i]}, head {view.heads[j]}" if j >= 0 else "" for i in at_layers for j in [*at_heads, -1]
    ]
    names[columns - 1] = "uniform attention"
    figure = make_subplots(
        rows, columns, shared_xaxes=True, shared_yaxes=True, subplot_titles=names,
        horizontal_spacing=0.12 / columns, vertical_spacing=0.22 / rows,
    )  # fmt: skip
    panels = [(i, j, shown[:, i, j], view.sinks[:, layer, head])
              for i, layer in enumerate(at_layers) for j, head in enumerate(at_heads)]  # fmt: skip
    size = float(np.clip(450 / columns / len(view.keys), 1.8, 4))
    for i, j, z, flags in [*panels, (0, columns - 1, expected.to_numpy(), at_null.to_numpy())]:
        name = names[i * columns + j]
        figure.add_heatmap(
            x=view.keys, y=view.steps, z=z, coloraxis="coloraxis", hoverongaps=False, name=name,
            hovertemplate="position %{x:d}, step %{y:d}<br>received attention %{z:.3f}<extra>%{fullData.name}</extra>",
            row=i + 1, col=j + 1,
        )  # fmt: skip
        marked = np.argwhere(flags)
        figure.add_scatter(
            x=view.keys[marked[:, 1]], y=view.steps[marked[:, 0]], mode="markers", hoverinfo="skip", name="sink",
            showlegend=i == j == 0, row=i + 1, col=j + 1, legendgroup="sink",
            marker={"size": size, "color": "white", "line": {"color": "black", "width": 0.7}},
        )  # fmt: skip
    height = 170 + rows * int(np.clip(60 + 3 * len(view.steps), 110, 220))
    themed(figure).update_xaxes(showgrid=False, range=[view.keys[0] - 0.6, view.keys[-1] + 0.6])
    figure.update_yaxes(showgrid=False, range=[view.steps[-1] + 0.6, view.steps[0] - 0.6])
    figure.update_xaxes(title_text="position", row=rows)
    figure.update_xaxes(showticklabels=True, title_text="position", row=1, col=columns)
    figure.update_yaxes(title_text="step", col=1)
    figure.update_annotations(font_size=11)
    highest = max(largest(shown), largest(expected.to_numpy()))
    common = float(np.nanpercentile(shown, 99.5)) if np.isfinite(shown).any() else highest
    top = common if common < highest / 2 else highest
    clipped = f"; values up to {highest:.3g} (at most 0.5 % of the cells) look like {top:.3g}" if top < highest else ""
    bar = {"title": {"text": "received attention (column sum)", "side": "right", "font_size": 13}}
    figure.update_layout(
        height=height,
        showlegend=True,
        legend_itemsizing="constant",
        coloraxis={"cmin": 0, "cmax": top, "colorscale": SCALE, "colorbar": bar},
    )
    lines = [
        f"Received attention (column sum) by position and denoising step; one colour range for all panels, "
        f"0 to {top:.3g}{clipped}.",
        f"{null_words(record, rule)} Sink (circle): {describe(rule)}, per step, layer and head.",
        *([f"Left out for size: {left_out}; choose with layers=[...] and heads=[...]."] if left_out else []),
    ]
    return titled(figure, title or f"Every head, step by step (prompt {prompt})", *lines, panels=height)


def _fitting(
    view: PromptView, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> tuple[list[int], list[int], str]:
    """Places of the layers and heads to draw, and what is left out, in words."""
    rows = [place(view.layers, "layer", one) for one in layers] if layers is not None else list(range(len(view.layers)))
    columns = [place(view.heads, "head", one) for one in heads] if heads is not None else list(range(len(view.heads)))
    if not rows or not columns:
        raise ValueError("layers and heads must each name at least one")
    room = max(min(PANELS, CELLS // (len(view.steps) * len(view.keys)) - 1), 1)
    if len(rows) * len(columns) <= room:
        return rows, columns, ""
    if layers is not None and heads is not None:
        raise ValueError(
            f"{len(rows)} layers x {len(columns)} heads of {len(view.steps)} steps x {len(view.keys)} positions do not "
            f"fit; at most {room} panels do; name fewer layers or heads"
        )
    side = max(int(room**0.5), 1)
    if heads is None:
        columns = columns[: min(max(side, room // len(rows)), len(columns))]
    if layers is None:
        keep = max(room // len(columns), 1)
        rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(keep, len(rows))).round().astype(int))]
    if len(rows) * len(columns) > room:
        if heads is None:
            columns = columns[: max(room // len(rows), 1)]
        else:
            rows = rows[: max(room // len(columns), 1)]
    if len(rows) * len(columns) > room:
        raise ValueError(f"{len(rows)} layers x {len(columns)} heads do not fit; at most {room} panels do; name fewer")
    gone = [(len(view.layers) - len(rows), len(view.layers), "layers")] * (layers is None)
    gone += [(len(view.heads) - len(columns), len(view.heads), "heads")] * (heads is None)
    return rows, columns, " and ".join(f"{n} of {total} {what}" for n, total, what in gone if n)
