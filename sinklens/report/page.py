"""One self-contained HTML page: text, tables and interactive figures, with nothing to load from anywhere."""

from __future__ import annotations

import html
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from sinklens import files, plots, records
from sinklens.plots.record_view import rule_of
from sinklens.sinks import SinkRule

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PROMPTS = 4  # of one record on a page; each figure of a long run is megabytes

# The policy makes the browser refuse every request, whatever a figure or a text holds.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
body { font: 16px/1.5 Helvetica, Arial, 'Liberation Sans', sans-serif; color: #111; background: white; margin: 0; }
main { max-width: 1300px; margin: 0 auto; padding: 24px; box-sizing: border-box; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 21px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid #999; }
p { max-width: 75ch; margin: 0 0 12px; }
.warning { border: 3px solid #111; background: #ffe9a8; padding: 10px 14px; font-weight: bold; font-size: 18px; }
nav { margin: 20px 0; } nav ol { margin: 4px 0; padding-left: 24px; } a { color: #0b3c6f; }
.table { overflow-x: auto; margin: 18px 0; }
table { border-collapse: collapse; font-size: 14px; border-bottom: 1.5px solid #111; }
caption { text-align: left; font-weight: bold; padding-bottom: 6px; }
th, td { text-align: left; vertical-align: top; padding: 3px 22px 3px 0; overflow-wrap: anywhere; }
thead th { border-top: 1.5px solid #111; border-bottom: 1px solid #111; overflow-wrap: normal; }
tbody tr + tr td { border-top: 1px solid #ddd; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figure { margin: 28px 0; }
footer { margin-top: 44px; padding-top: 12px; border-top: 1px solid #999; font-size: 14px; }
@media print { nav { display: none; } .table, .figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Heading; also in the table of contents.
        text: Plain paragraphs, parted by blank lines.
        tables: (caption, DataFrame) pairs. An index is shown if it is more than a count of the rows.
        figures: Plotly figures, and text timelines.
    """

    title: str
    text: str = ""
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    figures: Sequence[Figure | plots.TextTimeline] = ()


def write(
    path: str | Path, *, title: str, intro: str, sections: Sequence[Section], footer: str = "", warning: str = ""
) -> Path:
    """Write a page, whole or not at all. Texts are plain: everything is escaped.

    Args:
        path: The HTML file; its folder is made if need be.
        title: Heading of the page.
        intro: Paragraphs before the table of contents.
        sections: What follows, in order.
        footer: Paragraphs at the end.
        warning: What must not be overlooked, such as that a run was interrupted; it stands above everything else.

    Raises:
        ValueError: no section.
        SaveError: the file cannot be written, or is there and no page of sinklens.
    """
    if not sections:
        raise ValueError("sections is empty; give at least one Section")
    return files.write_text(path, _page(title, intro, sections, footer, warning), files.PAGE)


def from_record(path: str | Path, record: xr.Dataset, *, rule: SinkRule | None = None) -> Path:
    """A page for one run: its sinks over layers and steps, those of its first `PROMPTS` prompts, and its provenance.

    Args:
        path: The HTML file.
        record: Needs `received` (`probes.ReceivedAttention`); with `key_norm` (`probes.KeyNorm`) also shows key norms.
        rule: What a sink is; `SinkRule()` when None.

    Raises:
        ValueError: the record lacks a variable, or was measured on other queries than the rule's; nothing is written.
    """
    rule = rule_of(record, rule)
    made = records.made(record)
    rows = [(name, _plain(value)) for name, value in _flat(made)]
    table = pd.DataFrame(rows, columns=["what", "value"])
    provenance = Section("Provenance", tables=[("What made the numbers", table)])
    prompts = record.sizes.get("prompt", 1)
    run = {
        "The first figure counts the sinks of a head in every layer at every step.": plots.layer_steps(record, rule),
        "The histogram shows how much attention all keys receive, where the rule cuts, and what even attention would "
        "give.": plots.histogram(record, rule),
    }
    if rule.epsilon is not None:
        text = "The curve shows how the share of keys that are no sinks depends on the rule's epsilon."
        run[text] = plots.filtered_curve({str(made.get("model", "this record")): record}, rule=rule)
    if "key_norm" in record:
        run["The scatter asks whether keys of small norm receive more attention."] = plots.key_norms(record, rule=rule)
    sections = [Section("The whole run", " ".join(run), figures=list(run.values()))]
    for prompt in range(min(prompts, PROMPTS)):
        figures = [
            plots.text_timeline(record, prompt=prompt, rule=rule),
            plots.timeline(record, prompt=prompt, rule=rule),
            plots.sink_positions(record, prompt=prompt, rule=rule),
            *([plots.heads(record, prompt, rule)] if prompt == 0 else []),
        ]
        one = record.isel(prompt=prompt)
        given = [plots.visible(str(t)) for t, g in zip(one["text"].values, one["given"].values, strict=True) if g == 1]
        text = "\n\nThe last figure shows every head in small, beside even attention." if prompt == 0 else ""
        sections.append(Section(f"Prompt {prompt}", f"Given: {' '.join(given)}{text}", figures=figures))
    intro = (
        f"Received attention is the column sum of an attention pattern: how much attention {rule.queries} queries "
        "together pay to a position. It averages 1 over the positions if all queries count. A sink is a position with "
        f"{plots.describe(rule)}, decided "
        "at each step, in each layer and head.\n\n"
        "Read it against its null: queries that spread their attention evenly give every position of a bidirectional "
        "model exactly 1, but the first position of an autoregressive model the harmonic number of the length (4.74 "
        "for 64 tokens), which passes a threshold of 3 without being a sink."
    )
    if prompts > PROMPTS:
        intro += f"\n\nThis page shows the first {PROMPTS} of {prompts} prompts."
    return write(
        path,
        title=f"Attention sinks of {made.get('model', 'one run')}",
        intro=intro,
        sections=[*sections, provenance],
        footer="Written by sinklens. The page is one file and loads nothing.",
        warning=records.unfinished(record),
    )


def _page(title: str, intro: str, sections: Sequence[Section], footer: str, warning: str) -> str:
    contents = "".join(f'<li><a href="#section-{n}">{_escape(s.title)}</a></li>' for n, s in enumerate(sections, 1))
    body, figures = [], 0
    for number, section in enumerate(sections, 1):
        body += [f'<section id="section-{number}"><h2>{_escape(section.title)}</h2>', _paragraphs(section.text)]
        body += [_table(caption, frame) for caption, frame in section.tables]
        for figure in section.figures:
            figures += 1
            body.append(_figure(figure, f"figure-{figures}"))
        body.append("</section>")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="generator" content="sinklens">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escape(title)}</title><style>{STYLE}</style>",
            _library() if figures else "",
            f"</head><body><main><h1>{_escape(title)}</h1>",
            f'<p class="warning" role="alert">{_escape(warning[:1].upper() + warning[1:])}.</p>' if warning else "",
            _paragraphs(intro),
            f"<nav><b>Contents</b><ol>{contents}</ol></nav>",
            *body,
            f"<footer>{_paragraphs(footer)}</footer>" if footer else "",
            "</main></body></html>\n",
        ]
    )


def _library() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _figure(figure: Figure | plots.TextTimeline, name: str) -> str:
    if isinstance(figure, plots.TextTimeline):
        return f'<div class="figure">{figure.fragment()}</div>'
    # The logo would be a link to a web site, and plotly.js's own default offers to upload the figure.
    config = {"responsive": True, "displaylogo": False, "showSendToCloud": False}
    inner = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return f'<div class="figure">{inner}</div>'


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _table(caption: str, frame: pd.DataFrame) -> str:
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    columns = [frame.iloc[:, at].tolist() for at in range(frame.shape[1])]
    sides = [' class="number"' if values and all(map(_is_number, values)) else "" for values in columns]
    names = [" / ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
    head = "".join(f"<th{side}>{_escape(name)}</th>" for name, side in zip(names, sides, strict=True))
    rows = [
        "".join(f"<td{side}>{_escape(number(value))}</td>" for value, side in zip(row, sides, strict=True))
        for row in zip(*columns, strict=True)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="table"><table><caption>{_escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def number(value: Any) -> str:
    """A table cell: 3 significant digits for fractions, whole numbers whole, a dash for what is missing."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, numbers.Real) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return plots.visible(str(value))
    if isinstance(value, numbers.Integral) or value == 0 or not math.isfinite(value):
        return str(value) if isinstance(value, numbers.Integral) else f"{value:g}"
    # "#" keeps trailing zeros, so that 0.5 among 0.512 reads as measured; whole digits are never rounded away.
    return f"{value:.0f}" if 100 <= abs(float(value)) < 1e7 else f"{value:#.3g}".rstrip(".")


def _is_number(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _flat(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested provenance as dotted names."""
    if not isinstance(tree, dict) or not tree:
        return [(name, tree)] if name else []
    return [leaf for key, value in tree.items() for leaf in _flat(value, f"{name}.{key}" if name else key)]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, {}) else str(value)


def _escape(text: str) -> str:
    return html.escape(str(text))
