"""How the sink of an autoregressive model dissolves while it is made a diffusion model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklens.plots.theme import SCALE
from sinklens.plots.training import DOTTED, Line, look, over_updates
from sinklens.sinks import uniform_null
from sinklens.values.kinds import reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Row = dict[str, Any]


@reads()
def adaptation(log: str | Path | Sequence[Row], *, title: str | None = None) -> Figure:
    """How an autoregressive sink dissolves: first token, what sinks stand on, and accuracy over updates (x, log scale).

    At the left end of x: "causal" (the original, which sees the past only, where the log has it), then update 0 (the
    same weights, which see both ways). First panel, range [0, 1]: share of all attention that the first token gets,
    one thin line per layer (mean over texts and heads), and their mean. Dashed: uniform attention, if a recipe.json
    with the rows' length lies beside the log. Second, range [0, 1]: of all sinks (`SinkRule()`), the share that stands
    on the first token, newlines, punctuation, separators, and the rest; under the cursor also sinks per head. Third,
    range [0, 1]: share of masked tokens that are predicted right, and of facts. Source: sinklens.

    Args:
        log: The log.jsonl of `examples/adapt_smollm2.py`, its folder, or its rows.

    Raises:
        ValueError: no file, no rows, a field is missing, or lines of two trainings.
    """
    rows, length = _read(log)
    updates = [_place(row) for row in rows]
    when = ["the causal original" if update < 0 else f"update {update:,}" for update in updates]
    figure = over_updates(
        updates,
        {
            "first token gets (0 to 1)": _first(rows, when, length),
            "sinks stand on (0 to 1)": _kinds(rows, when),
            "accuracy (0 to 1)": _accuracy(rows, when),
        },
        title or "What becomes of the first-token sink",
        "First token: its share of the attention of all queries, mean over texts and heads, on texts that are not "
        "learned from; the mean over layers is " + _course(rows, when) + ".",
        "Sink: received attention above the mean of the other positions by more than 3 (column sum)."
        + (" Dashed: uniform attention." if length else ""),
    )
    figure.update_yaxes(range=[-0.02, 1.02])  # lines at 0 stay visible
    return figure


def _read(log: str | Path | Sequence[Row]) -> tuple[list[Row], int | None]:
    """The rows in order, each once, and how many tokens a text has, where that is known."""
    length = None
    if isinstance(log, str | Path):
        path = Path(log)
        path = path / "log.jsonl" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"there is no log {path}; give the log.jsonl of an adaptation or the folder that holds it")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        recipe = path.parent / "recipe.json"
        length = json.loads(recipe.read_text(encoding="utf-8")).get("length") if recipe.is_file() else None
    else:
        rows = list(log)
    if not rows:
        raise ValueError("the log of the adaptation has no rows, so there is nothing to draw")
    found: dict[int, Row] = {}
    for row in rows:
        _check(row, rows[0])
        first = found.setdefault(_place(row), row)
        if first["sinks"] != row["sinks"]:
            raise ValueError(f"the log has two different rows of update {row['update']}; it mixes two trainings")
    return [found[place] for place in sorted(found)], length


def _check(row: Row, first: Row) -> None:
    """Raise for what a row lacks, by itself or beside the first one."""
    needed = ["update", "sinks", *(name for name in first if name.startswith(("t=", "facts,")))]
    missing = [name for name in needed if name not in row]
    if missing or len(needed) == 2:
        wanted = ", ".join(missing) or "t=<share of masked tokens> or facts, <n> masks"
        raise ValueError(f"a row of an adaptation's log needs {wanted}; this one has {', '.join(row)}")
    parts = {"sinks": ("first_token", "per_head", "on")} | {n: ("accuracy",) for n in needed if n.startswith("t=")}
    for name, fields in parts.items():
        for field in fields:
            if field not in row[name]:
                raise ValueError(f"{name} of update {row['update']} has no {field!r}; it has {', '.join(row[name])}")
    if "first" not in row["sinks"]["on"]:
        raise ValueError(f"'on' of update {row['update']} has no 'first'; it has {', '.join(row['sinks']['on'])}")
    shapes = [(len(each["sinks"]["first_token"]), set(each["sinks"]["on"])) for each in (first, row)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"update {row['update']} has other layers or kinds of sinks than the first row of the log")


def _place(row: Row) -> int:
    return -1 if row.get("causal") else int(row["update"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _course(rows: Sequence[Row], when: Sequence[str]) -> str:
    """What becomes of the mean over layers, in words: at the first two places and at the last."""
    places = sorted({0, min(1, len(rows) - 1), len(rows) - 1})
    text = ", ".join(f"{_mean(rows[at]['sinks']['first_token']):.3f} at {when[at]}" for at in places)
    text = text.replace("at the causal original", "in the causal original")
    return text if _place(rows[0]) < 0 else f"{text} (the causal original is not in this log)"


def _hover(name: str, said: Sequence[str]) -> dict[str, Any]:
    return {"customdata": said, "hovertemplate": f"{name}<br>%{{customdata}}: %{{y:.3f}}<extra></extra>"}


def _first(rows: Sequence[Row], when: Sequence[str], length: int | None) -> list[Line]:
    """A line per layer, their mean above them, and uniform attention."""
    from plotly.colors import sample_colorscale

    count = len(rows[0]["sinks"]["first_token"])
    shown = {0: "solid", count // 2: "6px,2px", count - 1: "2px,2px"}
    lines: list[Line] = []
    for layer, color in enumerate(sample_colorscale(SCALE, [0.92 * n / max(1, count - 1) for n in range(count)])):
        line = {"color": color, "width": 2 if layer in shown else 0.8, "dash": shown.get(layer, "solid")}
        style = {"mode": "lines", "line": line, "showlegend": layer in shown}
        values = [row["sinks"]["first_token"][layer] for row in rows]
        lines.append((f"layer {layer}", values, style | _hover(f"layer {layer}", when)))
    mean = {
        "mode": "lines+markers",
        "line": {"color": "black", "width": 3.5},
        "marker": {"size": 7, "symbol": "circle"},
    }
    values = [_mean(row["sinks"]["first_token"]) for row in rows]
    lines.append(("mean over layers", values, mean | _hover("mean over layers", when)))
    if length:
        null = {True: float(uniform_null(length, "causal")[0]) / length, False: 1 / length}
        values = [null[_place(row) < 0] for row in rows]
        lines.append(("uniform", values, {"mode": "lines", "line": DOTTED} | _hover("uniform", when)))
    return lines


def _kinds(rows: Sequence[Row], when: Sequence[str]) -> list[Line]:
    """A line per kind of token, and the rest."""
    said = [
        f"{place}, {_mean(row['sinks']['per_head']):.2f} sinks per head" for place, row in zip(when, rows, strict=True)
    ]
    shares = {name: [row["sinks"]["on"][name] for row in rows] for name in rows[0]["sinks"]["on"]}
    shares["other"] = [max(0.0, 1 - sum(row["sinks"]["on"].values())) for row in rows]
    shares = {"first token" if name == "first" else name: values for name, values in shares.items()}
    return [(name, values, look(n, n, n) | _hover(name, said)) for n, (name, values) in enumerate(shares.items())]


def _accuracy(rows: Sequence[Row], when: Sequence[str]) -> list[Line]:
    """A line per share of masked tokens, and per number of masks behind a fact."""
    lines: list[Line] = []
    for n, field in enumerate(name for name in rows[0] if name.startswith(("t=", "facts,"))):
        if field.startswith("t="):
            name, values = f"{float(field[2:]):.0%} of tokens masked", [row[field]["accuracy"] for row in rows]
        else:
            name, values = field.replace(" 1 masks", " 1 mask"), [row[field] for row in rows]
        lines.append((name, values, look(n, n, n) | _hover(name, when)))
    return lines
