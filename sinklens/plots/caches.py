"""Figures of caches that are cut: what is still found and predicted, where, and what key norms say of attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinklens.errors import ContentError
from sinklens.experiments.l2_result import WHOLE, L2Result
from sinklens.plots.theme import COLORS, SCALE, SYMBOLS, decades, headings, safe, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AXES = {"perplexity": "perplexity"}
ANSWERS = "share of right answers"
WAYS = ("received", "per query", "without the first", "beyond position")
WORDS = {
    "low_norm": "lowest norm", "high_norm": "highest norm", "attended": "most attended, sum",
    "attended_mean": "most attended, mean", "recent": "most recent", "random": "random",
}  # fmt: skip


def worded(ranking: str) -> str:
    """A ranking in words: "lowest norm, never the first"."""
    by, plus, _ = ranking.partition(" + first")
    by, minus, _ = by.partition(" - first")
    return WORDS.get(by, by) + (", always the first" if plus else ", never the first" if minus else "")


@reads("result")
def cache_curve(result: L2Result, outcome: str, semantics: str = "cache", title: str | None = None) -> Figure:
    """An outcome against the share of keys that a cache keeps, a line per ranking, with 95 % intervals.

    Unit: share of right answers, or perplexity (log scale); x: share of keys kept. Dotted: the whole cache.

    Args:
        result: From `l2`.
        outcome: "perplexity", "passkey" or "needle".
        semantics: "cache", or "recomputed".
        title: Replaces the first line of the title.

    Raises:
        ContentError: the result has no such outcome.
    """
    import plotly.graph_objects as go

    summary: Any = result.summary()
    part = summary[(summary.outcome == outcome) & (summary.semantics == semantics)] if len(summary) else summary
    if not len(part):
        raise ContentError(f"this result has no {outcome!r} with semantics {semantics!r}; it has {result.has()}")
    figure, shares = go.Figure(), sorted(result.protocol.shares)
    cut = part[part.ranking != WHOLE].sort_values("share")
    shown = [ranking for ranking in result.protocol.rankings if ranking in set(cut.ranking)]
    bases = list(dict.fromkeys(ranking.split()[0] for ranking in shown))
    for number, ranking in enumerate(shown):
        line, base = cut[cut.ranking == ranking], bases.index(ranking.split()[0])
        aside = 1 + 0.012 * (number - len(shown) / 2)  # side by side, so that intervals are seen
        figure.add_scatter(
            x=[share * aside for share in line.share], y=line["value"], mode="lines+markers", name=worded(ranking),
            error_y={"type": "data", "symmetric": False, "array": line.high - line.value,
                     "arrayminus": line.value - line.low, "thickness": 0.7, "width": 2},
            line={"color": COLORS[base % len(COLORS)], "width": 1.8, "dash": "dot" if " " in ranking else "solid"},
            marker={"symbol": SYMBOLS[base % len(SYMBOLS)] + ("-open" if " " in ranking else ""), "size": 9},
            customdata=line[["share", "trials", "low", "high", "minus_random", "minus_random_p_holm"]].to_numpy(),
            hovertemplate="%{customdata[0]} of the keys kept: %{y:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}], "
            "%{customdata[1]} texts<br>minus random %{customdata[4]:.3f}, p (Holm) %{customdata[5]:.3f}<extra></extra>",
        )  # fmt: skip
    whole = part[part.ranking == WHOLE]
    if len(whole):
        figure.add_hline(y=float(whole["value"].iloc[0]), line={"color": "#222", "width": 1, "dash": "dot"})
    themed(figure).update_xaxes(
        title_text="share of keys kept in each key head", type="log", tickvals=shares,
        ticktext=[f"{share:g}" for share in shares],
    )  # fmt: skip
    figure.update_yaxes(title_text=AXES.get(outcome, ANSWERS))
    if outcome == "perplexity":
        decades(figure, list(part["value"]))
    else:
        figure.update_yaxes(range=[-0.02, 1.05])
    figure.update_layout(
        height=520, legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"}
    )
    skipped = ", ".join(map(str, result.protocol.skip_layers)) or "none"
    how = {
        "cache": "What is dropped from the cache stays dropped.",
        "recomputed": "Nothing is cached: at every step the dropped keys are chosen anew and hidden from all queries.",
    }
    return titled(
        figure,
        title or f"{outcome.capitalize()} when a cache keeps only some keys ({safe(result.model)})",
        f"{how[semantics]} Layers that keep everything: {skipped}. {_number(whole, part)}.",
        "Dotted line: the whole cache." if len(whole) else "",
        result.unfinished,
    )


@reads("result")
def retrieval_grid(
    result: L2Result, outcome: str, rankings: Sequence[str] = ("low_norm", "high_norm", "random", "recent")
) -> Figure:
    """Where something is found: depth by length, a panel for each ranking and share.

    Unit: share of right answers, 0 to 1, over the cache that was cut; white: not asked.

    Args:
        result: From `l2`.
        outcome: "passkey" or "needle".
        rankings: The rows of panels.

    Raises:
        ContentError: the result has no such outcome.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shares = sorted(result.protocol.shares, reverse=True)
    shown = [ranking for ranking in rankings if ranking in result.protocol.rankings]
    grids = {(r, s): result.grid(outcome, s, r) for r in shown for s in shares}
    if not grids or all(grid.empty for grid in grids.values()):
        raise ContentError(f"this result has no {outcome!r} of {list(rankings)}; it has {result.has()}")
    figure = make_subplots(
        len(shown), len(shares), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.02, vertical_spacing=0.05,
        column_titles=[f"{share:.0%} kept" for share in shares], row_titles=[worded(ranking) for ranking in shown],
    )  # fmt: skip
    for (ranking, share), grid in grids.items():
        row, column = shown.index(ranking) + 1, shares.index(share) + 1
        figure.add_trace(
            go.Heatmap(
                z=grid.to_numpy(), x=[str(length) for length in grid.columns],
                y=[f"{depth:.0%}" for depth in grid.index],
                zmin=0, zmax=1, colorscale=SCALE, xgap=1, ygap=1, showscale=(row, column) == (1, 1),
                text=[["" if math.isnan(value) else f"{value:.0%}" for value in line] for line in grid.to_numpy()],
                texttemplate="%{text}", textfont={"size": 12},
                colorbar={"title": {"text": ANSWERS, "side": "right"}, "thickness": 12, "x": 1.06},
                hovertemplate=f"{worded(ranking)}, {share:.0%} kept<br>%{{x}} tokens, depth %{{y}}: %{{z:.2f}}"
                "<extra></extra>",
            ), row=row, col=column,
        )  # fmt: skip
    height = 150 * len(shown) + 160
    themed(figure).update_layout(height=height, margin_r=110)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text="depth", col=1)
    figure.update_xaxes(title_text="tokens", row=len(shown))
    return titled(
        figure,
        f"Where a {outcome} is found again ({safe(result.model)})",
        "Depth 0 % is the beginning. The cache is cut behind the context, and the question is asked over what is left.",
        result.unfinished,
        panels=height,
    )


@reads("result")
def norm_correlation(result: L2Result) -> Figure:
    """Does a small key receive more attention? Rank correlation by layer and key head, in four ways.

    Unit: Spearman's correlation of -norm and received attention, -1 to 1, mean over windows.

    Raises:
        ContentError: the result has no correlation.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    table: Any = result.correlation()
    if table.empty:
        raise ContentError(f"this result has no correlation; it has {result.has()}")
    titles = [f"{way} (mean {table[table.way == way].correlation.mean():.2f})" for way in WAYS]
    figure = make_subplots(1, len(WAYS), subplot_titles=headings(titles), shared_yaxes=True, horizontal_spacing=0.03)
    for column, way in enumerate(WAYS, 1):
        grid = table[table.way == way].pivot_table(
            index="layer", columns="key_head", values="correlation", dropna=False
        )
        figure.add_trace(
            go.Heatmap(
                z=grid.to_numpy(), x=[str(head) for head in grid.columns], y=list(grid.index), zmin=-1, zmax=1,
                colorscale="RdBu_r", showscale=column == 1, xgap=1, ygap=1,
                colorbar={"title": {"text": "rank correlation", "side": "right"}, "thickness": 12},
                hovertemplate="layer %{y}, key head %{x}: %{z:.2f}<extra></extra>",
            ), row=1, col=column,
        )  # fmt: skip
    height = 560
    themed(figure).update_layout(height=height)
    figure.update_xaxes(title_text="key head")
    figure.update_yaxes(title_text="layer", col=1)
    figure.update_annotations(font_size=13)
    return titled(
        figure,
        f"Do small keys receive more attention? ({safe(result.model)})",
        "Spearman's correlation of -norm and what a key received, mean over windows of text; 1: the smaller, the more.",
        "per query: divided by the queries that can see the key; beyond position: what the position does not explain.",
        result.unfinished,
        panels=height,
    )


def _number(whole: Any, part: Any) -> str:
    """Of how many texts the numbers are, and what is drawn around them."""
    counts = sorted(set((whole if len(whole) else part)["trials"]))
    if counts[-1] == 1:
        return "1 text, so there is no interval"
    return "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))) + " texts, 95 % intervals"


@reads("table")
def norms_over_steps(table: Any, model: str = "") -> Figure:
    """The rank correlation of -norm and received attention over denoising steps, a line per type of key.

    Unit: Spearman's correlation, -1 to 1; 1: the smaller the key, the more attention.

    Args:
        table: `NormsInDiffusion.correlation`.
        model: For the title.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, (kind, line) in enumerate(table.dropna().groupby("key_type", sort=False)):
        figure.add_scatter(
            x=line.step, y=line.correlation, mode="lines+markers", name=f"{kind} keys",
            line={"color": COLORS[number % len(COLORS)]},
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
            hovertemplate=f"{kind} keys, step %{{x}}: %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#222", "width": 1, "dash": "dot"})
    themed(figure).update_xaxes(title_text="denoising step")
    figure.update_yaxes(title_text="rank correlation", range=[-1.05, 1.05])
    figure.update_layout(height=420, showlegend=True)
    return titled(
        figure,
        f"Do small keys receive more attention, step by step? ({safe(model)})",
        "Spearman's correlation of -norm and received attention within each type of key, mean over layers and heads.",
    )
