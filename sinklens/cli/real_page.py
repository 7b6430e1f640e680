"""What `sinklens demo --real` shows: tables in the terminal, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import typer

from sinklens import plots, report
from sinklens.cli.real_job import DETECTORS, KS, RATES, Found, Table, table1
from sinklens.experiments.budget_table import budget_table
from sinklens.experiments.published import PUBLISHED, published, wide
from sinklens.experiments.results import UNMASKED

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TASK = "GSM8K"  # of the published curves in our figure


def write_report(found: Found, out: Path) -> Path:
    """Write `report.html` into `out`."""
    table = table1(found.results)
    against = table[table.minus_control.notna()]
    differences = ["minus_control", "minus_control_low", "minus_control_high", "p_holm"]
    same, before = (name.partition(",")[0] for name in DETECTORS)
    sections = [
        report.Section(
            "The models",
            "Every model is asked what it can do: facts behind four others of their kind, the residues of antibodies "
            "of which half are masked.",
            [("Models, and what their sinks are like in one sentence", _models(found))],
            [],
        ),
        report.Section(
            "What removing sinks does",
            "The keys that are sinks of a layer and head get -inf before the softmax, in every layer and head: the top "
            "1, 5 and 10 by the very forward that is edited (same step), or by the one before it (previous step: the "
            "published protocol, which cannot edit the first step). In an autoregressive model they are those that the "
            "last query attends to most. Controls: as many random keys (in an autoregressive model from the "
            "neighbourhood of each sink), random keys with the same attention together, and keys shifted by the same "
            "distance from the sinks, which keeps their positions alike.\n\n"
            "Exposed: the share of the scored places that were decided by a forward which the edit changed. Where it "
            "is below 1, part of the accuracy says nothing about the edit. The grey curves are the paper's "
            f"({TASK}, arXiv 2510.15731, table 1): compare the direction, not the size.",
            [
                ("Accuracy, by detector and number of keys (95 % intervals)", shown(table)),
                ("Published (arXiv 2510.15731, table 1)", wide(published())),
            ],
            [
                _curve(found, same),
                *(plots.adaptation(subject.log) for subject in found.subjects if subject.log),
                _curve(found, before),
            ],
        ),
        report.Section(
            "Sinks against their controls",
            "minus_control: (sinks - unmasked) - (control - unmasked), paired by prompt, with its 95 % interval; "
            "p_holm: permutation test, corrected over the model's lines. Where one key holds most of the attention, "
            "keys of the same mass are nearly all the others: such a control may destroy the model, too.",
            [("Sinks against each control", _joined(against, differences))],
            [],
        ),
        report.Section(
            "Which keys are enough",
            "Every layer and head sees only a share of its keys: the most attended of this very forward, those of the "
            "lowest norm (arXiv 2406.11430), random ones, or the tokens that a trained gate keeps (arXiv 2405.02330; "
            "sinklens select train), beside as many tokens by chance. A key that is dropped at one step may be back at "
            "the next. Without sinks: all keys but those that the rule calls sinks; without as many others: the same "
            "number of other keys. "
            f"{_few(found)} prompts of each model: the intervals are wide; sinklens select curve asks more of them.",
            [("Accuracy by the share of keys that is asked for (95 % intervals)", _rates(found))],
            [plots.budget_curves({name: budget_table(result) for name, result in found.budgets.items()})],
        ),
        report.Section(
            "Where the sinks are",
            "A key is a sink of a head at a step if it receives more than 3 units of attention (column sum; the "
            "average key receives 1) beyond the mean of the other keys (arXiv 2510.15731, epsilon = 3). 'null' is what "
            "uniform attention would give: in a causal model the first key passes without being a sink.",
            [
                ("Places of sinks, beside how common each place is", found.places),
                ("Token classes of sinks, beside how common each class is", found.tokens),
            ],
            [plots.token_classes(found.places), plots.token_classes(found.tokens), plots.layer_counts(found.layers)],
        ),
        report.Section(
            "How they move",
            "The first prompt of each model while it is answered. Jaccard is the overlap of a head's sinks at "
            "consecutive steps (1 = the same keys); 'ever' and 'always' count keys per head and run.",
            [("Movement of sinks, mean over layers", _moves(found))],
            [plots.timeline(record, title=f"{name}, step by step") for name, record in found.records.items()],
        ),
    ]
    return report.write(
        out / "report.html",
        title="sinklens demo --real: attention sinks of real models, and what removing them does",
        intro="Every number on this page was computed by `sinklens demo --real` on this machine, and is shown "
        "whichever way it came out.",
        sections=sections,
        footer=f"computed in {found.seconds:.0f} s",
    )


def tell(found: Found) -> None:
    """Print the tables."""
    for caption, table in (
        ("Where sinks stand: share of all sinks, and of all keys", _side_by_side(found.places, "place")),
        ("What they are", _side_by_side(found.tokens, "token_class")),
        (
            "How they move: Jaccard of consecutive steps, keys that are ever / always a sink (mean over layers)",
            _moves(found),
        ),
        (
            "Accuracy with sinks or other keys masked (95 % intervals); exposed where it is below 1",
            shown(table1(found.results)),
        ),
        ("Fewer keys: accuracy by the share that is asked for (95 % intervals)", _rates(found)),
    ):
        typer.echo(f"\n{caption}\n{table.to_string(index=False, float_format=lambda x: f'{x:.3f}', na_rep='')}")


def shown(table: Table) -> Table:
    """Models and settings as lines, kinds of keys as columns; exposure where it is below 1."""
    out: Table = table.copy()
    out["figure"] = [
        f"{a:.2f} [{low:.2f}, {high:.2f}]" + (f" ({met:.2f} exposed)" if met < 1 else "")
        for a, low, high, met in zip(out.accuracy, out.low, out.high, out.exposed, strict=True)
    ]
    out["kind"] = out["kind"].replace("unmasked", "sinks")
    out["setting"] = [
        f"{detector}, top {k}" if k else "unmasked" for detector, k in zip(out.detector, out.k, strict=True)
    ]
    lines = out.pivot_table(index=["model", "setting"], columns="kind", values="figure", aggfunc="first", sort=False)
    return lines.fillna("").rename(columns={"sinks": "sinks masked"}).reset_index()


def _models(found: Found) -> Table:
    return pd.DataFrame(
        [
            {"model": each.model, "what it is": each.about, "its sinks": found.headlines[each.model]}
            for each in found.subjects
        ]
    )


def _few(found: Found) -> str:
    counts = sorted({len(subject.few) for subject in found.subjects})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _rates(found: Found) -> Table:
    """Accuracy by selector (lines) and rate (columns), with its interval, and the share of keys that was kept."""
    parts = []
    for name, result in found.budgets.items():
        table: Table = budget_table(result)
        table["rate"] = ["all" if selector == UNMASKED else "" if pd.isna(rate) else f"{rate:g}"
                         for selector, rate in zip(table.selector, table.rate, strict=True)]  # fmt: skip
        table["figure"] = [
            f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}], kept {line.kept:.2f}" for line in table.itertuples()
        ]
        table["rate"] = table["rate"].where(table["rate"] != "", "by number")
        parts.append(table.assign(model=name)[["model", "selector", "rate", "figure"]])
    whole: Table = pd.concat(parts, ignore_index=True)
    columns = [rate for rate in ("all", *map(str, sorted(RATES, reverse=True)), "by number") if rate in set(whole.rate)]
    lines = whole.pivot_table(index=["model", "selector"], columns="rate", values="figure", aggfunc="first", sort=False)
    return lines[columns].fillna("").rename_axis(columns=None).reset_index()


def _moves(found: Found) -> Table:
    return found.movement.groupby("model", sort=False)[["jaccard", "ever", "always"]].mean().reset_index()


def _side_by_side(table: Table, kind: str) -> Table:
    """Classes as lines; by model the share of sinks, and that of keys behind it."""
    out: Table = table.copy()
    out["figure"] = [f"{a:.2f} ({b:.2f})" for a, b in zip(out.share_of_sinks, out.share_of_keys, strict=True)]
    return out.pivot_table(index=kind, columns="model", values="figure", aggfunc="first", sort=False).reset_index()


def _joined(table: Table, columns: list[str]) -> Table:
    return (
        table[["model", "detector", "k", "kind", *columns]].rename(columns={"kind": "control"}).reset_index(drop=True)
    )


def _curve(found: Found, detector: str) -> Figure:
    return plots.dose_response(
        list(found.results.values()),
        f"{detector}, k",
        "accuracy",
        controls=["random"],
        reference=_published(),
        title=f"Accuracy without its top sinks, by the attention of the {detector}",
    )


def _published() -> dict[str, dict[float, float]]:
    """The paper's curves, without their unmasked point."""
    return {
        f"{model} ({TASK}, published)": dict(zip(map(float, KS), values[1:], strict=True))
        for model, values in PUBLISHED[TASK].items()
    }
