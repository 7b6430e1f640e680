"""Attention beside what may explain it: key norms, and the pattern itself in CircuitsVis."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from einops import repeat

from sinklens.analysis import norms
from sinklens.analysis.attention import flags, null, texts_at
from sinklens.plots.record_view import check_prompt, need, null_words, place, rule_of
from sinklens.plots.theme import COLORS, describe, themed, titled, visible
from sinklens.sinks import SinkRule
from sinklens.values.kinds import Count, reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 4000  # of a scatter; more of them cover each other
_LOOKS = {
    "prompt": (COLORS[0], "circle"),
    "committed": (COLORS[5], "square"),
    "mask": (COLORS[1], "triangle-up"),
    "eos": (COLORS[4], "x"),
}


@reads()
def key_norms(
    record: xr.Dataset,
    layer: int | None = None,
    rule: SinkRule | None = None,
    *,
    points: Count = POINTS,
    title: str | None = None,
) -> Figure:
    """Scatter of key norm (x) against received attention (y), one panel per layer; do small keys attract attention?

    Unit: x: Euclidean norm, at least 0; y: attention (column sum), range [0, number of queries]. A point is a key of
    one prompt, step, layer and query head; colour and symbol are its type (`norms.KEY_TYPES`), a black outline marks
    sinks. Panel titles give the Spearman correlation of -norm and attention (`norms.key_norm_correlation`, over all
    keys, range [-1, 1]; 1: the smaller the key, the more attention). At most `points` points are drawn, equally many
    per panel, drawn at random but always the same ones. Dashed: uniform attention. Source: arXiv 2406.11430 (there
    for autoregressive models: low norm, high attention).

    Args:
        record: Needs `received` (`probes.ReceivedAttention`) and `key_norm` (`probes.KeyNorm`).
        layer: One layer, by name; None: all, in panels.
        rule: What a sink is; `SinkRule()` when None.
        points: How many points at most.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a variable or the layer is missing; `points` is below the number of panels.
    """
    from plotly.subplots import make_subplots

    need(record, "received", "key_norm", "masked", "given", "text")
    rule = rule_of(record, rule)
    values, lengths = norms.beside(record, "key_norm", rule.queries)
    correlation = norms.key_norm_correlation(record, queries=rule.queries)
    sinks = flags(values, record, rule).to_numpy()
    types = norms.key_types(record).sel(step=values["step"]).to_numpy()
    labels = values["layer"].to_numpy()
    chosen = list(range(len(labels))) if layer is None else [place(labels, "layer", layer)]
    each = points // len(chosen)
    if each < 1:
        raise ValueError(f"points={points} is less than one for each of {len(chosen)} layers; name a layer")
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    names = [f"layer {labels[i]}: Spearman {float(correlation[i]):.2f}".replace("nan", "undefined") for i in chosen]
    figure = make_subplots(
        rows, columns, shared_yaxes=True, subplot_titles=names,
        horizontal_spacing=0.03, vertical_spacing=0.28 / rows,
    )  # fmt: skip
    even = null(record, rule.queries)["received"]
    every = 0
    for panel, index in enumerate(chosen):
        x, y = lengths.to_numpy()[:, :, index], values.to_numpy()[:, :, index]
        kinds = repeat(types, "prompt step key -> prompt step head key", head=y.shape[2])
        there = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & (kinds >= 0))
        every += len(there)
        if len(there) > each:
            there = np.sort(np.random.default_rng(0).choice(there, each, replace=False))
        where: dict[str, Any] = {"row": panel // columns + 1, "col": panel % columns + 1}
        marked = sinks[:, :, index].ravel()[there]
        _points(figure, x.ravel()[there], y.ravel()[there], kinds.ravel()[there], marked, where)
        here = (even.sel(layer=labels[index]) if even.sizes["layer"] > 1 else even).to_numpy()
        _null_band(figure, float(np.nanmin(here)), float(np.nanmax(here)), where)
    _legend(figure, [name for index, name in enumerate(norms.KEY_TYPES) if (types == index).any()])
    themed(figure).update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="received attention (column sum)", col=1)
    figure.update_xaxes(title_text="key norm", row=rows)
    figure.update_annotations(font_size=13)
    height = 170 + 300 * rows
    figure.update_layout(height=height, showlegend=True)
    drawn = min(each * len(chosen), every)
    sample = f"{drawn:,} of {every:,} points, a fixed random sample" if drawn < every else f"All {every:,} points"
    return titled(
        figure,
        title or "Key norm and received attention",
        "A point is a key of one prompt, step, layer and query head. Spearman: rank correlation of -norm and received "
        f"attention over all keys, mean over prompts, steps and heads. {sample}.",
        f"Outlined: sink, {describe(rule)}. Dashed: {null_words(record, rule).replace('Uniform', 'uniform', 1)}",
        panels=height,
    )


def _points(
    figure: Figure, x: np.ndarray, y: np.ndarray, kinds: np.ndarray, sinks: np.ndarray, where: dict[str, Any]
) -> None:
    for index, name in enumerate(norms.KEY_TYPES):
        here = kinds == index
        color, symbol = _LOOKS[name]
        figure.add_scatter(
            x=x[here], y=y[here], mode="markers", name=name, legendgroup=name, showlegend=False,
            customdata=sinks[here].astype(np.int8), **where,
            marker={"symbol": symbol, "size": 6, "color": color, "opacity": 0.75,
                    "line": {"color": "black", "width": np.where(sinks[here], 1.8, 0).tolist()}},
            hovertemplate=f"{name} key<br>norm %{{x:.3f}}, received %{{y:.3f}}<extra></extra>",
        )  # fmt: skip


def _legend(figure: Figure, types: Sequence[str]) -> None:
    """Entries of their own: those of the points would show the outline of whichever point comes first."""
    entries = [(name, _LOOKS[name][0], _LOOKS[name][1], 0.0) for name in types] + [("sink", "white", "circle", 1.8)]
    for name, color, symbol, width in entries:
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, legendgroup=name, hoverinfo="skip", row=1, col=1,
            marker={"symbol": symbol, "size": 9, "color": color, "line": {"color": "black", "width": width}},
        )  # fmt: skip


def _null_band(figure: Figure, low: float, high: float, where: dict[str, Any]) -> None:
    for level in sorted({low, high}):
        figure.add_hline(y=level, line={"color": "black", "width": 1.5, "dash": "4px,3px"}, **where)


@reads()
def circuitsvis(
    attention: Any,
    tokens: Sequence[str] | None = None,
    *,
    prompt: int = 0,
    step: int | None = None,
    layer: int | None = None,
    heads: Sequence[int] | None = None,
) -> Any:
    """A CircuitsVis view of one attention pattern, both triangles of it (`mask_upper_tri=False`).

    Unit: attention, range [0, 1]; rows are queries and sum to 1. Needs the package circuitsvis (the extra
    `circuitsvis`). In a notebook the view shows itself; `str(view)` is HTML that loads CircuitsVis from unpkg.com,
    `view.local_src` HTML with everything inside.

    Args:
        attention: A record with `pattern` (`probes.Pattern`), or a pattern [head, query, key] or [query, key]
            (numpy array or tensor).
        tokens: One text per position. Needed for a bare pattern; of a record, what stood there at the step.
        prompt: Which prompt of a record, counted from 0.
        step: Which step of a record, by name; the first measured one when None.
        layer: Which layer of a record, by name; the first when None.
        heads: Which heads, by name; all when None.

    Raises:
        ImportError: circuitsvis is not installed.
        ValueError: no pattern, an unknown prompt, step, layer or head, queries that were not measured, or tokens that
            do not fit.
    """
    if isinstance(attention, xr.Dataset):
        pattern, tokens, names = _of_record(attention, tokens, prompt, step, layer, heads)
    else:
        pattern = np.asarray(attention.detach().cpu().float() if hasattr(attention, "detach") else attention)
        pattern = pattern[None] if pattern.ndim == 2 else pattern
        if pattern.ndim != 3 or pattern.shape[-1] != pattern.shape[-2]:
            raise ValueError(f"a pattern is [head, query, key] or [query, key], not {list(pattern.shape)}")
        chosen = list(range(len(pattern))) if heads is None else list(heads)
        if not set(chosen) <= set(range(len(pattern))):
            raise ValueError(f"heads {chosen} do not exist; the pattern has head 0 to {len(pattern) - 1}")
        pattern, names = pattern[chosen], [f"head {one}" for one in chosen]
    if tokens is None or len(tokens) != pattern.shape[-1]:
        given = "none" if tokens is None else str(len(tokens))
        raise ValueError(f"give one token text per position: {pattern.shape[-1]} positions, {given} tokens")
    if np.isnan(pattern).any():
        raise ValueError("some queries of this pattern were not measured; use probes.Pattern() for all queries")
    try:
        draw = importlib.import_module("circuitsvis.attention").attention_heads
    except ImportError as error:
        raise ImportError("this view needs circuitsvis: pip install 'sinklens[circuitsvis]'") from error
    return draw(
        attention=pattern, tokens=list(tokens), attention_head_names=names, max_value=1.0, min_value=0.0,
        mask_upper_tri=False,
    )  # fmt: skip


def _of_record(
    record: xr.Dataset,
    tokens: Sequence[str] | None,
    prompt: int,
    step: int | None,
    layer: int | None,
    heads: Sequence[int] | None,
) -> tuple[np.ndarray, Sequence[str], list[str]]:
    need(record, "pattern")
    check_prompt(record, prompt)
    values = record["pattern"].isel(prompt=prompt).transpose("step", "layer", "head", "query", "key")
    measured = values.notnull().any(["layer", "head", "query", "key"]).to_numpy()
    if not measured.any():
        raise ValueError(f"no step of prompt {prompt} has a measured pattern")
    values = values.isel(step=measured)
    steps, layers, known = (values[dim].to_numpy() for dim in ("step", "layer", "head"))
    step_index = 0 if step is None else place(steps, "step", step)
    layer_index = 0 if layer is None else place(layers, "layer", layer)
    chosen = [place(known, "head", one) for one in (heads if heads is not None else known)]
    cut = values.isel(step=step_index, layer=layer_index, head=chosen)
    exists = cut.notnull().any(["head", "query"]).to_numpy()
    names = [f"layer {int(layers[layer_index])}, head {int(one)}" for one in cut["head"]]
    if tokens is None:
        need(record, "text", "masked")
        at = int(np.flatnonzero(measured)[step_index])
        texts = texts_at(record.isel(prompt=[prompt], step=[at])).to_numpy()[0, 0, exists]
        masked = record["masked"].isel(prompt=prompt, step=at).to_numpy()[exists]
        tokens = ["[MASK]" if hidden == 1 else visible(str(text)) for text, hidden in zip(texts, masked, strict=True)]
    return cut.to_numpy()[:, exists][:, :, exists], tokens, names
