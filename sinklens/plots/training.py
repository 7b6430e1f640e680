"""How sinks emerge while a model is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklens.plots.theme import COLORS, SYMBOLS, headings, themed, titled
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DASHES = ("solid", "6px,2px", "2px,2px", "8px,2px,2px,2px")
Line = tuple[str, list[float], dict[str, Any]]  # name, values, look
DOTTED = {"color": "black", "width": 2, "dash": "4px,3px"}


@reads()
def emergence(log: str | Path | Sequence[dict[str, Any]], *, title: str | None = None) -> Figure:
    """How sinks emerge in training: BOS, number of sinks, and accuracy over updates (x, log scale; 0 at its left end).

    First panel, range [0, 1]: the attention that queries give to BOS, one line per layer and head, if the log has it
    ("bos_share": mean over queries that have nothing to copy); else the share of all sinks that stand on BOS, one line
    per share of masked positions. Second panel: sinks per head (`SinkRule()`), one line per layer, mean over texts and
    heads, range [0, number of keys]. Third: accuracy at the positions that the language decides, range [0, 1]. Dashed:
    uniform attention. Source: sinklens; emergence of sinks in training is the subject of arXiv 2410.10781.

    Args:
        log: The `training.jsonl` of a bundled model (`sinklens/twins/*/training.jsonl`), its folder, or its rows.

    Raises:
        ValueError: no file, no rows, or a field is missing.
    """
    rows = _rows(log)
    ratios = [name for name in rows[0] if name.startswith("mask_")]
    shares = "bos_share" in rows[0]
    figure = over_updates(
        [int(row["step"]) for row in rows],
        {
            "attention to BOS (0 to 1)" if shares else "share of sinks on BOS (0 to 1)": _bos(rows, ratios),
            "sinks per head (mean)": _counts(rows, ratios),
            "accuracy (0 to 1)": _accuracy(rows, ratios),
        },
        title or "How sinks emerge in training",
        "Sink: received attention above the mean of the other positions by more than 3 (column sum), on 64 held-out "
        "texts. Dashed: uniform attention.",
        "BOS: attention that queries with nothing to copy give the first token."
        if shares
        else "BOS: of all sinks, the share that stands on the first token.",
    )
    for panel in (1, 3):
        figure.update_yaxes(range=[0, 1.02], col=panel)
    return figure


def over_updates(updates: Sequence[int], panels: dict[str, list[Line]], title: str, *lines: str) -> Figure:
    """Three panels of lines over updates (log scale), each with its heading and its legend below.

    Args:
        updates: Of every point; 0 is drawn at the left end, and left of it the causal original (-1).
        panels: Lines by heading.
        title: Of the figure.
        lines: What the numbers are.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 3, subplot_titles=headings(list(panels)), horizontal_spacing=0.06)
    first = min([update for update in updates if update > 0], default=1)
    ends = {-1: first / 9, 0: first / 3}  # a log scale has no 0
    for panel, drawn in enumerate(panels.values(), 1):
        for name, y, style in drawn:
            said = {"customdata": updates, "hovertemplate": f"{name}<br>update %{{customdata}}: %{{y:.3f}}"}
            said["hovertemplate"] += "<extra></extra>"
            figure.add_scatter(
                x=[ends.get(update, update) for update in updates], y=y, name=name, row=1, col=panel,
                legend=f"legend{panel}".replace("1", ""), **said | style,
            )  # fmt: skip
    said = ((-1, "<br>causal"), (0, "0"))  # in a row below: beside the 0 there is no room for it
    ticks = {ends[update]: text for update, text in said if update in updates}
    powers = [10**n for n in range(1, 9) if first <= 10**n <= max(updates)]
    marked = powers if len(powers) > 1 else sorted({first, max(updates)} - {0})
    ticks |= {place: f"{place:,}" for place in marked}
    themed(figure).update_xaxes(
        type="log", title_text="updates (log scale)", tickvals=list(ticks), ticktext=list(ticks.values()),
        showgrid=False, tickangle=0,
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    entries = max(sum(style.get("showlegend", True) for *_, style in drawn) for drawn in panels.values())
    height = 470 + 19 * entries
    below = {
        "orientation": "v",
        "xanchor": "left",
        "yanchor": "top",
        "yref": "container",
        "font_size": 11,
        "y": (12 + 19 * entries) / height,
    }
    titled(figure, title, *lines, panels=height)
    top = int(figure.layout.margin.t or 0) - 34  # pyright: ignore[reportAttributeAccessIssue]  # the legends are below
    figure.update_layout(
        height=height, margin_t=top, margin_b=75 + 19 * entries, showlegend=True, legend={**below, "x": 0},
        legend2={**below, "x": 0.355}, legend3={**below, "x": 0.71},
    )  # fmt: skip
    figure.update_annotations(font_size=13)
    return figure


def _rows(log: str | Path | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(log, str | Path):
        path = Path(log)
        path = path / "training.jsonl" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"there is no training log {path}; give a training.jsonl or the folder that holds it")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        rows = list(log)
    if not rows:
        raise ValueError("the training log has no rows, so there is nothing to draw")
    for row in rows:
        ratios = [name for name in row if name.startswith("mask_")]
        if "step" not in row or not ratios:
            raise ValueError(f"a row of a training log needs step and mask_<ratio>; this one has {', '.join(row)}")
        for name in ratios:
            for field in ("accuracy", "sinks_per_layer", "sinks_on"):
                if field not in row[name]:
                    raise ValueError(f"{name} of step {row['step']} has no {field!r}; it has {', '.join(row[name])}")
    return rows


def look(color: int, dash: int, symbol: int) -> dict[str, Any]:
    marker = {"symbol": SYMBOLS[symbol % len(SYMBOLS)], "size": 7}
    line = {"color": COLORS[color % len(COLORS)], "width": 1.8, "dash": DASHES[dash % len(DASHES)]}
    return {"mode": "lines+markers", "line": line, "marker": marker}


def _said(name: str) -> str:
    share = float(name.removeprefix("mask_"))
    return f"{share:.0%} masked" if share else "nothing masked"


def _bos(rows: list[dict[str, Any]], ratios: list[str]) -> list[Line]:
    if "bos_share" not in rows[0]:
        return [(_said(r), [row[r]["sinks_on"]["bos"] for row in rows], look(n, 0, n)) for n, r in enumerate(ratios)]
    shares = rows[0]["bos_share"]
    lines = [
        (f"layer {i}, head {j}", [row["bos_share"][i][j] for row in rows], look(i, i, j))
        for i, layer in enumerate(shares)
        for j, _ in enumerate(layer)
    ]
    if "bos_null" in rows[0]:
        lines.append(("uniform", [row["bos_null"] for row in rows], {"mode": "lines", "line": DOTTED}))
    return lines


def _counts(rows: list[dict[str, Any]], ratios: list[str]) -> list[Line]:
    lines = []
    for n, ratio in enumerate(ratios):
        for layer, _ in enumerate(rows[0][ratio]["sinks_per_layer"]):
            values = [row[ratio]["sinks_per_layer"][layer] for row in rows]
            of = f", {_said(ratio)}" if len(ratios) > 1 else ""
            style = look(n, layer, layer) if len(ratios) > 1 else look(layer, layer, layer)
            lines.append((f"layer {layer}{of}", values, style))
    if "null_sinks" in rows[0]:
        lines.append(("uniform", [row["null_sinks"] for row in rows], {"mode": "lines", "line": DOTTED}))
    return lines


def _accuracy(rows: list[dict[str, Any]], ratios: list[str]) -> list[Line]:
    return [(_said(r), [row[r]["accuracy"] for row in rows], look(n, 0, n)) for n, r in enumerate(ratios)]
