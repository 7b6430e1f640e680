"""Figures of budgets: a metric against the share of keys that is kept, what was reached, and whether sinks are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sinklens.experiments.budget_table import COLUMNS
from sinklens.experiments.budgets import BY_CHANCE, RANDOM, WITHOUT_OTHERS, WITHOUT_SINKS
from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import UNMASKED
from sinklens.plots.scored import least_exposed, said_of, words
from sinklens.plots.theme import COLORS, SYMBOLS, safe, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

Tables = Mapping[str, "pd.DataFrame"]
HEIGHT = 520
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1)
NAMES = {
    "received": "most attended",
    "key_norm": "lowest key norm",
    "hidden_norm": "largest hidden norm",
    "recency": "last positions",
    "learned": "learned gate",
    "random": "random, by head",
    "random_tokens": "random tokens",
}


@reads()
def budget_curves(
    tables: Tables, x: Literal["kept", "rate"] = "kept", *, log: bool = True, title: str | None = None
) -> Figure:
    """A metric against the share of keys that is kept: one line per selector with 95 % intervals, one panel per model.

    Unit: that of the metric; x: share of keys, in (0, 1]. Dotted: unmasked, where every curve ends. Dashed: chosen by
    chance. The two open symbols are the sinks alone: what is left without them, and without as many other keys, at the
    share of keys that these leave.

    Args:
        tables: What `budget_table` returned, by the name of the model; all of one metric.
        x: "kept": the share that was kept in truth, mean over prompts, which makes gates comparable with rankings.
            "rate": the share that was asked for.
        log: Whether shares are laid out by their logarithm, which parts the small ones.
        title: Replaces the first line of the title.

    Raises:
        ValueError: no table, one that is no budget table, or tables of several metrics.
    """
    metric = _checked(tables)
    figure = _panels(tables)
    selectors = _selectors(tables)
    partly, alone = list[float](), False
    for column, table in enumerate(map(_loose, tables.values()), start=1):
        bare = table[table.selector == UNMASKED].iloc[0]
        partly += least_exposed(table.rename(columns={"selector": "condition"})).values()
        for index, selector in enumerate(selectors):
            part = table[(table.selector == selector) & table.rate.notna() & table.value.notna()].sort_values("rate")
            if part.empty:
                continue
            value = part["value"].to_numpy()
            figure.add_scatter(
                x=[*part[x], 1.0], y=[*value, bare["value"]], mode="lines+markers", name=_named(selector),
                legendgroup=selector, showlegend=column == 1,
                error_y={"type": "data", "symmetric": False, "array": [*(part["high"] - value), 0],
                         "arrayminus": [*(value - part["low"]), 0], "thickness": 1, "width": 3},
                line={"color": COLORS[index % len(COLORS)], "dash": _dash(selector)},
                marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
                customdata=[*part[["kept", "low", "high", "rate"]].to_numpy().tolist(),
                            [1.0, bare["low"], bare["high"], 1.0]],
                hovertemplate=f"{_named(selector)}, rate %{{customdata[3]}} (kept %{{customdata[0]:.3f}})<br>"
                "%{y:.3f}, 95 % interval %{customdata[1]:.3f} to %{customdata[2]:.3f}<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
        for index, name in enumerate((WITHOUT_SINKS, WITHOUT_OTHERS)):
            part = table[(table.selector == name) & table.value.notna()]
            if part.empty:
                continue
            alone, value = True, part["value"].to_numpy()
            figure.add_scatter(
                x=part["kept"], y=value, mode="markers", name=name, legendgroup=name, showlegend=column == 1,
                error_y={"type": "data", "symmetric": False, "array": part["high"] - value,
                         "arrayminus": value - part["low"], "thickness": 1, "width": 3},
                marker={"symbol": ("circle-open", "square-open")[index], "size": 14, "color": "#111",
                        "line_width": 2},
                hovertemplate=f"{name}: %{{x:.3f}} of the keys are left<br>%{{y:.3f}}<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
        line = {"color": "#111", "width": 1, "dash": "dot"}
        figure.add_hline(y=float(bare["value"]), line=line, row=1, col=column)  # pyright: ignore[reportArgumentType]
    axis, definition = words(metric)
    _rate_axes(themed(figure), tables, x, log=log)
    figure.update_yaxes(title_text=axis, col=1)
    if metric in METRICS and METRICS[metric].share:
        figure.update_yaxes(range=[-0.02, 1.05])
    return _finished(
        figure,
        title or "How few keys are enough, by how they are chosen",
        definition,
        "Mean over prompts with its 95 % interval, against the share of keys that is "
        f"{'kept in truth' if x == 'kept' else 'asked for'}. Dashed: chosen by chance. Dotted: nothing dropped."
        + (" Open symbols: all keys but the sinks, and all but as many others." if alone else ""),
        *said_of(partly),
    )


@reads()
def reached_shares(tables: Tables, *, title: str | None = None) -> Figure:
    """The share of keys that was kept in truth against the one asked for, one panel per model.

    Unit: share, 0 to 1, mean over prompts, with the lowest and highest prompt as a bar. The dotted line is what was
    asked. Rankings round up to whole keys; a gate decides by itself how many it keeps of which text.

    Args:
        tables: As in `budget_curves`.
        title: Replaces the first line of the title.

    Raises:
        ValueError: as in `budget_curves`.
    """
    _checked(tables)
    figure = _panels(tables)
    for column, table in enumerate(map(_loose, tables.values()), start=1):
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="asked", line={"color": "#111", "width": 1, "dash": "dot"},
            legendgroup="asked", showlegend=column == 1, hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        for index, selector in enumerate(_selectors(tables)):
            part = table[(table.selector == selector) & table.rate.notna() & table.kept.notna()].sort_values("rate")
            if part.empty:
                continue
            kept = part["kept"].to_numpy()
            figure.add_scatter(
                x=part["rate"], y=kept, mode="lines+markers", name=_named(selector), legendgroup=selector,
                showlegend=column == 1,
                error_y={"type": "data", "symmetric": False, "array": part["kept_high"] - kept,
                         "arrayminus": kept - part["kept_low"], "thickness": 1, "width": 3},
                line={"color": COLORS[index % len(COLORS)], "dash": _dash(selector)},
                marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
                customdata=part[["kept_low", "kept_high"]].to_numpy(),
                hovertemplate=f"{_named(selector)}: asked %{{x}}, kept %{{y:.3f}} (prompts from %{{customdata[0]:.3f}} "
                "to %{customdata[1]:.3f})<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
    _rate_axes(themed(figure), tables, "rate", log=False)
    figure.update_yaxes(range=[-0.02, 1.05])
    figure.update_yaxes(title_text="share of keys kept (0 to 1)", col=1)
    return _finished(
        figure,
        title or "How many keys are kept in truth",
        "Share of the keys that were kept, over all steps, layers and heads, against the share asked for (dotted). "
        "Mean over prompts; bars reach from the prompt with the lowest share to that with the highest.",
    )


@reads()
def sinks_kept(
    tables: Tables,
    x: Literal["rate", "layer", "step"] = "layer",
    *,
    rates: Sequence[float] | None = None,
    title: str | None = None,
) -> Figure:
    """Whether a gate keeps the sinks: the share of them that it keeps, beside the share that chance would.

    Unit: share of the sinks, 0 to 1. Solid: kept; dashed, in the same colour: as many keys drawn by chance. One panel
    per model; over layers or steps one pair of lines per rate.

    Args:
        tables: What `analysis.kept.sinks_kept` returned, by the name of the model, with `x` in its `by`, and nothing
            else.
        x: What lies along the axis.
        rates: For layers and steps: which rates to draw; at most four, spread over those that there are, when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: no table, one without these columns, or with several lines for a place; a rate that is not there.
    """
    _need(tables, ("rate", x, "kept", "chance", "sinks", "of_keys"))
    figure = _panels(tables)
    for column, (model, frame) in enumerate(tables.items(), start=1):
        table = _loose(frame)
        if table.duplicated(["rate", x]).any():
            raise ValueError(f"the table of {model!r} has several lines for one rate and {x}; give by=({x!r},)")
        every = sorted(set(table.rate))
        asked = [every[i] for i in sorted({*np.linspace(0, len(every) - 1, 4).astype(int)})] if rates is None else rates
        if missing := [rate for rate in asked if rate not in every]:
            raise ValueError(f"rate {missing[0]!r} is not in the table of {model!r}; there are {every}")
        lines = [("all rates", table)] if x == "rate" else [(f"rate {r:g}", table[table.rate == r]) for r in asked]
        for index, (name, part) in enumerate(lines):
            color, symbol = COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)]
            for what, dash in (("kept", "solid"), ("chance", "dash")):
                figure.add_scatter(
                    x=part[x], y=part[what], mode="lines+markers", name=f"{name}: {what}", legendgroup=f"{name} {what}",
                    showlegend=column == 1, line={"color": color, "dash": dash},
                    marker={"symbol": symbol if what == "kept" else f"{symbol}-open", "size": 7},
                    customdata=part[["sinks", "of_keys"]].to_numpy(),
                    hovertemplate=f"{name}, {x} %{{x}}<br>%{{y:.3f}} of %{{customdata[0]}} sinks "
                    f"({what})<br>%{{customdata[1]:.3f}} of all keys are kept<extra></extra>",
                    row=1, col=column,
                )  # fmt: skip
    themed(figure).update_xaxes(title_text={"rate": "rate asked for", "step": "denoising step"}.get(x, x))
    places = sorted({float(place) for table in map(_loose, tables.values()) for place in table[x]})
    if x != "rate" and len(places) <= 12:  # ticks at what was measured, and nowhere else
        figure.update_xaxes(tickvals=places, range=[places[0] - 0.5, places[-1] + 0.5])
    figure.update_yaxes(range=[-0.02, 1.05])
    figure.update_yaxes(title_text="share of the sinks (0 to 1)", col=1)
    return _finished(
        figure,
        title or "Does the gate keep the sinks?",
        "Solid: the share of the sinks (per step, layer and head) among the tokens that the gate keeps. Dashed: what "
        "as many keys drawn by chance would hold.",
    )


def _checked(tables: Tables) -> str:
    """The one metric of budget tables."""
    _need(tables, COLUMNS)
    metrics = dict.fromkeys(str(metric) for table in tables.values() for metric in _loose(table).metric)
    if len(metrics) != 1:
        raise ValueError(f"the tables are of several metrics, {', '.join(metrics)}; draw one after the other")
    return next(iter(metrics))


def _need(tables: Tables, columns: Sequence[str]) -> None:
    if not tables:
        raise ValueError("there are no tables, so there is nothing to draw")
    for model, table in tables.items():
        lacking = [name for name in columns if name not in table.columns]
        if lacking or table.empty:
            what = (
                f"has no column {lacking[0]!r}; it has {', '.join(map(str, table.columns))}" if lacking else "is empty"
            )
            raise ValueError(f"the table of {model!r} {what}")


def _dash(selector: str) -> str:
    return "dash" if selector.startswith(RANDOM) or selector.endswith(BY_CHANCE) else "solid"


def _loose(table: pd.DataFrame) -> Any:
    """The table, loosely typed: pandas' own types do not know what a column holds."""
    return table


def _panels(tables: Tables) -> Figure:
    from plotly.subplots import make_subplots

    names = [safe(model) for model in tables]
    return make_subplots(1, len(names), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.04)


def _selectors(tables: Tables) -> list[str]:
    """All that choose by a rate, in the order in which they come."""
    found = dict.fromkeys(name for table in map(_loose, tables.values()) for name in table[table.rate.notna()].selector)
    return [name for name in found if name != UNMASKED]


def _named(selector: str) -> str:
    return safe(NAMES.get(selector, selector.replace("_", " ")))


def _rate_axes(figure: Figure, tables: Tables, x: str, *, log: bool) -> None:
    title = "share of keys kept in truth" if x == "kept" else "rate: share of keys asked for"
    figure.update_xaxes(title_text=title, range=[0, 1.03])
    if log:
        low = np.log10(min(table[x][table.rate.notna()].min() for table in map(_loose, tables.values())))
        figure.update_xaxes(
            type="log", range=[1.05 * low, -0.04 * low], tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS]
        )


def _finished(figure: Figure, title: str, *lines: str) -> Figure:
    figure.update_layout(height=HEIGHT, showlegend=True)
    figure.update_annotations(font_size=13)
    return titled(figure, title, *lines, panels=HEIGHT)
