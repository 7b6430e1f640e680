"""A text that fills in as one drags the step, with the attention that every token receives: one page of its own."""

from __future__ import annotations

import html
import json
import sys
import tempfile
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinklens import files
from sinklens.analysis.attention import is_autoregressive, null, positions, texts, texts_at
from sinklens.plots.canvas import selections
from sinklens.plots.record_view import PromptView, alone, null_words, rule_of, view_of
from sinklens.plots.theme import describe, visible
from sinklens.records import made, unfinished
from sinklens.sinks import SinkRule
from sinklens.values.kinds import reads

CELLS = 200_000  # of all records, layers and heads together; the page stays near 1 MB

# The policy makes the browser refuse every request, whatever a token holds.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class TextTimeline:
    """An interactive picture in HTML; it loads nothing. A notebook shows it by itself.

    Attributes:
        data: What it shows: title, start, captions, notes, legend, records. Each record has its name, tokens, steps,
            keys, one string of states per step, views (label, received, sinks) and uniform. Numbers have 4 significant
            digits.
    """

    data: Mapping[str, Any]

    def fragment(self) -> str:
        """A piece of HTML for a larger page, any number on one; its styles and the page's do not touch."""
        here = resources.files("sinklens.plots")
        style, script = (here.joinpath(f"filling.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
        held = json.dumps(self.data, separators=(",", ":"), allow_nan=False)
        for sign in "<>&":
            held = held.replace(sign, f"\\u{ord(sign):04x}")  # no token can end the script
        names = ", ".join(record["name"] for record in self.data["records"])
        said = html.escape(f"{self.data['title']} ({names}): this picture needs JavaScript.")
        return (
            f'<div class="sinklens-timeline"><script type="application/json">{held}</script>'
            f"<template><style>{style}</style></template><noscript><p>{said}</p></noscript>"
            f"<script>{script}</script></div>"
        )

    def page(self) -> str:
        """A whole page."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n<meta name="generator" content="sinklens">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.data['title'])}</title>"
            "<style>body { margin: 0; } .sinklens-timeline { max-width: 1400px; margin: 0 auto; }</style></head>"
            f"<body>{self.fragment()}</body></html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write one HTML file, whole or not at all.

        Raises:
            SaveError: the file cannot be written, or is there and no page of sinklens.
        """
        return files.write_text(path, self.page(), files.PAGE)

    def show(self) -> None:
        """Show it in the notebook, or else in a browser."""
        shell = sys.modules.get("IPython")
        if shell is not None and shell.get_ipython() is not None:
            shell.display.display(self)
            return
        path = self.save(Path(tempfile.mkdtemp(prefix="sinklens-")) / "timeline.html")
        webbrowser.open(path.as_uri())

    def _repr_html_(self) -> str:
        rows = sum(150 + 42 * max(1, len(record["tokens"]) // 12) + 150 for record in self.data["records"])
        return (
            f'<iframe data-sinklens="timeline" title="{html.escape(self.data["title"])}" '
            f'srcdoc="{html.escape(self.page())}" style="width: 100%; height: {min(200 + rows, 1100)}px; border: 0">'
            "</iframe>"
        )


@reads()
def text_timeline(
    records: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    prompt: int = 0,
    rule: SinkRule | None = None,
    title: str | None = None,
    step: int | None = None,
) -> TextTimeline:
    """The text of a run, filling in as a slider is dragged, above its heat map of received attention.

    At each step: given tokens, tokens written before, masks as empty boxes, and in reverse what is written at this
    step. Attention is measured before it is written. A bar under each token, and a cell of the heat map (x: position,
    y: step, step 0 on top), is received attention over what uniform attention gives at that step (`analysis.null`), on
    one logarithmic scale from 1/4 to 4 for all records; beyond it colours and bars stay, and numbers do not. Unit of
    the numbers: attention (column sum), range [0, number of queries]. A badge counts the heads in which the position
    is a sink by the rule. A menu chooses layer and head; entries above `CELLS` cells in all are left out, and if the
    mean alone is above, only every n-th step is shown; the notes below the picture say so.

    Args:
        records: A record, or records by name, side by side where there is room, with one slider. They need `received`.
        prompt: Which prompt, counted from 0; of every record.
        rule: What a sink is; `SinkRule()` when None.
        title: Replaces the title.
        step: Which step is shown first, counted from 0; the middle one when None.

    Raises:
        ValueError: no record, a missing variable, a prompt or a step that does not exist.
    """
    if isinstance(records, xr.Dataset):
        records = {str(made(records).get("model", "this record")): records}
    if not records:
        raise ValueError("records is empty; give a record, or records by name")
    told = [_told(name, record, prompt, rule, CELLS // len(records)) for name, record in records.items()]
    longest = max(len(each["steps"]) for each in told)
    start = (longest - 1) // 2 if step is None else step
    if not 0 <= start < longest:
        raise ValueError(f"step {step} does not exist; there are {longest}: 0 to {longest - 1}")
    notes = list(dict.fromkeys(note for each in told for note in each.pop("notes")))
    captions = list(dict.fromkeys(each.pop("caption") for each in told))
    return TextTimeline(
        {
            "title": title or "Who is attended to while the text fills in",
            "start": start,
            "records": told,
            "captions": captions,
            "notes": notes,
            "hint": "Point at a token or a cell, or focus the map and use the arrow keys, to read its numbers.",
            "legend": _legend(told),
        }
    )


def _legend(told: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """State, sample, words: of the states that occur."""
    states = {state for each in told for row in each["state"] for state in row}
    number = max((view["count"] for each in told for view in each["views"]), default=1)
    entries = [
        ("p", "word", "given"),
        ("c", "word", "written before"),
        ("n" if "n" in states else "a", "word", "written at this step"),
        ("m", "", "still masked"),
        ("o", "", "not there yet"),
        ("x", "word", "taken back at this step"),
    ]
    found = [entry for entry in entries if entry[0] in states]
    return [*found, ("s", "2" if number > 1 else "", "a sink in so many heads" if number > 1 else "a sink")]


def _told(name: str, record: xr.Dataset, prompt: int, rule: SinkRule | None, cells: int) -> dict[str, Any]:
    """One record as the picture needs it."""
    rule, one = rule_of(record, rule), alone(record, prompt)
    there = positions(one, "all").isel(prompt=0)
    one = one.isel(step=np.flatnonzero(there.any("key").to_numpy()))  # a row of a batch may be finished before others
    if not one.sizes["step"] or not one.sizes["key"]:
        raise ValueError(f"nothing was measured of prompt {prompt} of {name!r}: the record has no step, or no position")
    thinned = -(-one.sizes["step"] * one.sizes["key"] // cells)
    one = one.isel(step=slice(None, None, thinned))
    view = view_of(one, 0, rule)
    entries, left_out = selections(view, cells)
    even = null(one, rule.queries)["received"].isel(prompt=0, head=0).transpose("step", "layer", "key")
    even = even.sel(layer=view.layers) if even.sizes["layer"] > 1 else even
    uniform: list[list[list[float | None]]] = []
    views = []
    for label, select, pairs in entries:
        layers = select[0] if even.sizes["layer"] > 1 else slice(None)
        null_here = _rounded(even.to_numpy()[:, layers].mean(1))
        if null_here not in uniform:
            uniform.append(null_here)
        counts = view.sinks[:, *select].sum((1, 2))
        shape = view.sinks[:, *select].shape
        views.append(
            {
                "label": label,
                "pairs": pairs,
                "count": shape[1] * shape[2],
                "received": _rounded(view.received[:, *select].mean((1, 2))),
                "sinks": [[int(at), int(key), int(counts[at, key])] for at, key in np.argwhere(counts > 0)],
                "uniform": uniform.index(null_here),
            }
        )
    tokens = [visible(str(token)) for token in texts(one).to_numpy()[0]]
    states, other = _states(one, view, tokens)
    said = unfinished(one)
    notes = [
        f"{name}: received attention is the sum over {rule.queries} valid queries of the attention that a position "
        f"receives (column sum). {null_words(one, rule)} Sink: {describe(rule)}, per step, layer and head.",
        "Attention of a step is measured on the text as it stands before the step; what is written at the step is seen "
        "by the next one. Bars go up above uniform attention and down below it, on a logarithmic scale. Whether a "
        "position is a sink is decided by the rule, in each head by itself, and not by the colour.",
    ]
    if left_out:
        notes.append(f"{name}: left out of the menu for size: {left_out}; select fewer layers or steps to see them.")
    if thinned > 1:
        notes.append(f"{name}: for size only one of {thinned} steps is shown; what is written or taken back at a step "
                     "includes the steps up to the next one shown.")  # fmt: skip
    return {
        "name": f"{name} ({said})" if said else name,
        "masks": not is_autoregressive(one),
        "tokens": tokens,
        "other": other,
        "steps": view.steps.tolist(),
        "keys": view.keys.tolist(),
        "state": states,
        "views": views,
        "uniform": uniform,
        "caption": f"A sink: {describe(rule)}, decided in each head at each step.",
        "notes": notes,
    }


def _states(one: xr.Dataset, view: PromptView, tokens: list[str]) -> tuple[list[str], list[list[Any]]]:
    """One letter per step and key, and where another token than the final one stands: [step, key, text].

    p: given; c: written before; m: masked, and so it stays; n: masked, and written at this step; a: not there, and
    written at this step; x: written before, and taken back at this step (masked again, or another token instead); o:
    not there.
    """
    masked = one["masked"].isel(prompt=0).transpose("step", "key").to_numpy()
    commit = one["commit_step"].isel(prompt=0).to_numpy()
    texts_there = np.broadcast_to(texts_at(one).isel(prompt=0).to_numpy(), masked.shape)
    states, other = [], []
    for step, now in enumerate(masked):
        last = step + 1 == len(masked)
        after = None if last else masked[step + 1]
        upto = np.inf if last else view.steps[step + 1]
        row = ""
        for key, given in enumerate(view.given):
            then = -1 if after is None else after[key]
            written = not given and (then == 0 or (then < 0 and view.steps[step] <= commit[key] < upto))
            if now[key] == 0:
                next_text = texts_there[step + 1][key] if then == 0 else texts_there[step][key]
                row += "p" if given else "x" if then == 1 or next_text != texts_there[step][key] else "c"
            else:
                row += ("n" if now[key] == 1 else "a") if written else "m" if now[key] == 1 else "o"
            source = step if now[key] == 0 else step + 1
            shown = tokens[key]
            if row[-1] in "cnax" and source < len(masked) and masked[source][key] == 0:
                shown = visible(str(texts_there[source][key]))
            if shown != tokens[key]:
                other.append([step, key, shown])
        states.append(row)
    return states, other


def _rounded(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(f"{value:.4g}") for value in row] for row in values]
