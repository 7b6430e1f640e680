"""How the numbers are distributed: received attention, and what each epsilon filters out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinklens.analysis import dynamics
from sinklens.analysis.attention import is_autoregressive, null
from sinklens.plots.record_view import attention_of, null_words, place, rule_of
from sinklens.plots.theme import COLORS, SYMBOLS, describe, filled, safe, themed, titled
from sinklens.sinks import SinkRule
from sinklens.values.kinds import Count, Finite, reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NULL = {"color": "black", "width": 1.8, "dash": "4px,3px"}
ASKED = 0.96  # of all keys are no sinks at epsilon = 3, for all three models (arXiv 2510.15731, section 4.1)


@reads()
def histogram(
    record: xr.Dataset,
    rule: SinkRule | None = None,
    layer: int | None = None,
    *,
    bins: Count = 60,
    title: str | None = None,
) -> Figure:
    """Histogram of the received attention of every measured key, with the rule's cut.

    Unit: attention (column sum), range [0, number of queries]; y: number of (prompt, step, layer, head, key), on a log
    axis. Hatched: keys that the rule flags. The cut is one line if the rule has one threshold for all rows; a shaded
    range if it depends on the number of keys and rows differ in length; and, for rules whose cut depends on the data,
    the range between the smallest flagged and the largest other value. Dashed: the same keys under uniform attention.
    Source: the histograms of arXiv 2510.15731, figures 3 and 9.

    Args:
        record: Needs `received` (`probes.ReceivedAttention`).
        rule: What a sink is; `SinkRule()` when None.
        layer: One layer, by name; None: all.
        bins: About how many bins.
        title: Replaces the first line of the title.

    Raises:
        ValueError: the variable or the layer is missing.
    """
    import plotly.graph_objects as go

    rule = rule_of(record, rule)
    values, flags = attention_of(record, rule)
    even = null(record, rule.queries)["received"]
    if layer is not None:
        index = place(values["layer"].to_numpy(), "layer", layer)
        values, flags = values.isel(layer=[index]), flags.isel(layer=[index])
        even = even.sel(layer=[layer]) if even.sizes["layer"] > 1 else even
    expected = even.to_numpy()
    there = values.notnull().to_numpy()
    keys = np.broadcast_to(there.sum(-1, keepdims=True, dtype=np.int32), there.shape)[there]
    numbers, flagged = values.to_numpy()[there], flags.to_numpy()[there]
    single = _has_cut(record, rule)
    low, high, name, words = _cut(rule if single else None, numbers, flagged, keys)
    edges = _edges(max(float(numbers.max()), high or 0, 1.0), bins, low if low == high else None)
    centers, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    figure = go.Figure()
    hatch = {"color": "rgba(255,255,255,0)", "pattern": {"shape": "/", "fgcolor": "#111", "size": 6}}
    for what, part, marker in (
        ("not flagged", numbers[~flagged], {**filled(5), "line": {"color": "#222", "width": 0.5}}),
        ("sinks", numbers[flagged], {**hatch, "line": {"color": "black", "width": 1.2}}),
    ):
        counts = np.histogram(part, edges)[0]
        some = counts > 0
        figure.add_bar(
            x=centers[some], y=counts[some], width=width, name=f"{what} ({len(part):,} keys)", marker=marker,
            hovertemplate=f"%{{y}} keys ({what}) at %{{x:.2f}} ± {width / 2:.2f}<extra></extra>",
        )  # fmt: skip
    top = float(np.histogram(numbers, edges)[0].max()) * 2
    _draw_null(
        figure, expected[np.isfinite(expected)], edges, top, cells=there.shape[2] // expected.shape[2] * there.shape[3]
    )
    if low is not None and high is not None:
        _draw_cut(figure, low, high, top, name)
    themed(figure).update_xaxes(title_text="received attention (column sum)", range=[0, edges[-1]], showgrid=False)
    figure.update_yaxes(
        title_text="keys (log scale)", type="log", range=[np.log10(0.6), np.log10(top)], dtick=1, exponentformat="power"
    )
    figure.update_layout(height=440, barmode="overlay", bargap=0, showlegend=True)
    which = "all layers" if layer is None else f"layer {layer}"
    return titled(
        figure,
        title or "How much attention keys receive",
        f"Every measured key ({which}): prompts x steps x layers x heads x positions; log count. "
        f"{null_words(record, rule)}",
        f"Sink: {describe(rule)}, per step, layer and head. {words}",
    )


def _has_cut(record: xr.Dataset, rule: SinkRule) -> bool:
    """Whether `rule.cut` speaks of this record: of all queries, all keys, and who sees whom."""
    whole = rule.queries == "all" and rule.keys == "all"
    return whole and not (rule.units == "share" and is_autoregressive(record))


def _cut(
    rule: SinkRule | None, numbers: np.ndarray, flagged: np.ndarray, keys: np.ndarray
) -> tuple[float | None, float | None, str, str]:
    """Range of the cut, what to call it, and how to say it; the rule's own number only if it agrees with the flags."""
    lengths = np.unique(keys)
    cuts = [None if rule is None else rule.cut(int(n)) for n in lengths]
    known = [cut for cut in cuts if cut is not None]
    if len(known) == len(lengths):
        own = np.asarray(known)[np.searchsorted(lengths, keys)]
        sure = np.abs(numbers - own) > 1e-4 * own
        if ((numbers > own) == flagged)[sure].all():
            low, high = min(known), max(known)
            if low == high:
                return low, high, f"cut: {low:.3f}", f"Cut: {low:.3f} for {lengths[-1]} keys."
            name = f"cut: {low:.3f} to {high:.3f}"
            return low, high, name, f"The cut depends on the number of keys ({lengths[0]} to {lengths[-1]})."
    if not flagged.any() or flagged.all():
        return None, None, "", f"This rule has no single cut; it flags {'every' if flagged.any() else 'no'} key."
    least, most = float(numbers[flagged].min()), float(numbers[~flagged].max())
    words = f"This rule has no single cut: the smallest flagged value is {least:.3f}, the largest other {most:.3f}."
    overlap = least <= most
    name = f"{least:.3f} to {most:.3f}: sink in some rows" if overlap else f"cut within {most:.3f} to {least:.3f}"
    return min(least, most), max(least, most), name, words


def _edges(top: float, bins: int, cut: float | None) -> np.ndarray:
    """Bin edges from 0; the cut, if there is one, is an edge, so that no bin holds both sides of it."""
    width = top / bins
    if cut is not None and cut > 0:
        width = cut / max(round(cut / width), 1)
    return np.arange(int(np.ceil(top / width + 1e-9)) + 1) * width


def _draw_null(figure: Figure, expected: np.ndarray, edges: np.ndarray, top: float, cells: int) -> None:
    """The null is the same in all `cells`, the pairs of layer and head."""
    if not expected.size:
        return
    if np.ptp(expected) < 1e-3:  # every key the same: a line, because a bar of all keys would hide the rest
        mean = float(expected.mean())
        figure.add_scatter(x=[mean, mean], y=[0.6, top], mode="lines", line=NULL, name=f"uniform attention: {mean:.3g}")
        return
    counts = np.histogram(expected, edges)[0] * cells
    last = int(np.flatnonzero(counts)[-1]) + 1
    figure.add_scatter(
        x=edges[: last + 1], y=[*np.maximum(counts[:last], 0.6), 0.6], mode="lines", line={**NULL, "shape": "hv"},
        name="uniform attention",
        hovertemplate="%{y} keys under uniform attention<extra></extra>",
    )  # fmt: skip


def _draw_cut(figure: Figure, low: float, high: float, top: float, name: str) -> None:
    red = "#a63603"
    if low == high:
        line = {"color": red, "width": 2.5}
        figure.add_scatter(x=[low, low], y=[0.6, top], mode="lines", line=line, name=name)
        return
    figure.add_scatter(
        x=[low, high, high, low, low], y=[0.6, 0.6, top, top, 0.6], mode="lines", fill="toself", hoverinfo="skip",
        fillcolor="rgba(166,54,3,0.25)", line={"color": red, "width": 1.5}, name=name,
    )  # fmt: skip


@reads()
def filtered_curve(
    records: xr.Dataset | Mapping[str, xr.Dataset],
    epsilons: Sequence[Finite] | None = None,
    rule: SinkRule | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Share of keys that are NOT sinks (y) against epsilon (x): one line per model.

    Unit: share of all measured keys (`dynamics.filtered_share`), range [0, 1], never falling. Dashed: the same curve
    under uniform attention. The vertical line is the rule's own epsilon; the horizontal one, for the unit "sum", the
    0.96 that the paper asks for at epsilon = 3. Source: arXiv 2510.15731, figure 10 (64 tokens, epsilon 0 to 10).

    Args:
        records: A record, or records by the name of their model. They need `received` (`probes.ReceivedAttention`).
        epsilons: Where to evaluate; 41 values from 0 to 10/3 of the rule's epsilon (below the unit's limit) when None.
        rule: What a sink is; `SinkRule()` when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: no record, a missing variable, or a rule without an epsilon.
    """
    import plotly.graph_objects as go

    rule = rule or SinkRule()
    if rule.epsilon is None:
        raise ValueError("this rule ranks keys and has no epsilon to vary; give a rule with a threshold")
    named: dict[str, xr.Dataset] = {"this record": records} if isinstance(records, xr.Dataset) else dict(records)
    if not named:
        raise ValueError("records is empty; give a record, or records by name")
    x = np.asarray(_epsilons(rule) if epsilons is None else epsilons, float)
    figure, nulls = go.Figure(), []
    least = 0.95
    for index, (name, record) in enumerate(named.items()):
        attention_of(record, rule_of(record, rule))  # says what is missing
        y = dynamics.filtered_share(record, x.tolist(), rule).to_numpy()
        nulls.append((name, dynamics.filtered_share(null(record, rule.queries), x.tolist(), rule).to_numpy()))
        color, symbol = COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)]
        marks = {"symbol": symbol, "size": 7, "color": color, "maxdisplayed": 12}
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", name=safe(name), line={"color": color, "width": 2}, marker=marks,
            hovertemplate=f"{safe(name)}<br>epsilon %{{x:.3g}}: %{{y:.4f}} are no sinks<extra></extra>",
        )  # fmt: skip
        least = min(least, float(y.min()))
    least = _draw_nulls(figure, x, nulls, least, together=len(named))
    asked = rule.units == "sum" and type(rule) is SinkRule and rule.top_k is None
    note: dict[str, Any] = {"font_size": 12, "bgcolor": "rgba(255,255,255,0.85)"}
    dots = {"color": "#555", "width": 1.5, "dash": "dot"}
    words = f"epsilon = {rule.epsilon:g}"
    figure.add_vline(x=rule.epsilon, line=dots, annotation={"text": words, **note}, annotation_position="bottom right")
    if asked:
        text = f"{ASKED}, asked for at epsilon = 3 (arXiv 2510.15731)"
        figure.add_hline(y=ASKED, line=dots, annotation={"text": text, **note}, annotation_position="bottom right")
    themed(figure).update_xaxes(title_text=f"epsilon ({rule.units})", range=[float(x.min()), float(x.max())])
    room = 0.04 * (1 - least)
    figure.update_yaxes(title_text="share of keys that are no sinks", range=[max(least - room, -0.02), 1 + room])
    figure.update_layout(height=440, showlegend=True)
    return titled(
        figure,
        title or "How many keys each epsilon filters out",
        f"Share (0 to 1) of measured keys that are no sinks. Sink: {describe(rule)}; epsilon as on the x-axis.",
        "Dashed: the same under uniform attention. Dotted: the rule's own epsilon"
        + (" and the share that arXiv 2510.15731 asks for." if asked else ".")
        + f" The y-axis begins at {max(least - room, 0):.2f}." * (least > 0.02),
    )


def _epsilons(rule: SinkRule) -> np.ndarray:
    limit = {"mean": 1.0, "share": 1.0, "percent": 100.0}.get(rule.units, np.inf)
    return np.linspace(0, min((rule.epsilon or 3.0) * 10 / 3, 0.999 * limit), 41)


def _draw_nulls(
    figure: Figure, x: np.ndarray, nulls: list[tuple[str, np.ndarray]], least: float, together: int
) -> float:
    """Equal null curves are drawn once, under the names of all models they stand for."""
    groups: list[tuple[list[str], np.ndarray]] = []
    for name, y in nulls:
        same = next((group for group in groups if np.allclose(group[1], y)), None)
        if same is None:
            groups.append(([name], y))
        else:
            same[0].append(name)
    for index, (members, y) in enumerate(groups):
        of = "" if together == 1 or len(groups) == 1 else f" ({safe(', '.join(members))})"
        line = {**NULL, "dash": ("4px,3px", "8px,3px", "2px,2px")[index % 3]}
        figure.add_scatter(x=x, y=y, mode="lines", name=f"uniform attention{of}", line=line)
        least = min(least, float(y.min()))
    return least
