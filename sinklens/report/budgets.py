"""The pages of budgets: how few keys are enough, and what a gate keeps of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from sinklens import files, plots, records
from sinklens.analysis import kept
from sinklens.experiments.budget_table import breaking_point, budget_table
from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import AblationResult
from sinklens.report.ablation import table_of
from sinklens.report.page import PROMPTS, Section, write

CURVE_FILES = {
    "result.json": files.RESULT,
    "budgets.csv": files.table("model", "selector", "rate"),
    "report.html": files.PAGE,
}
SHOW_FILES = {"record.nc": files.RECORD, "report.html": files.PAGE}
KINDS: dict[kept.Kind, str] = {"token_class": "text", "place": "place", "key_type": "state"}


def measured(result: AblationResult) -> list[str]:
    """The metrics of a result."""
    return list(dict.fromkeys(str(score["metric"]) for score in result.scores))


def curve_report(result: AblationResult, out: Path, margin: float | None = None) -> list[Path]:
    """Write `result.json`, `budgets.csv` and `report.html` of a budget curve into a folder.

    Args:
        result: From `budget_curve`.
        out: The folder.
        margin: As in `breaking_point`.
    """
    saved, model = result.save(out / "result.json"), str(result.scores[0]["model"])
    tables: dict[str, Any] = {metric: budget_table(result, metric) for metric in measured(result)}
    whole: Any = pd.concat(tables.values(), ignore_index=True)
    whole.insert(0, "model", model)
    files.write_table(out / "budgets.csv", whole, CURVE_FILES["budgets.csv"])
    sections = [
        Section(
            METRICS[metric].meaning[:1].upper() + METRICS[metric].meaning[1:],
            f"Metric {metric}, in {METRICS[metric].unit}. Each layer and head keeps a share of the keys, chosen as the "
            "line says, and loses the others before the softmax, at every step; a key that is gone at one step may be "
            "back at the next. Differences are paired by prompt, with 95 % bootstrap intervals and p-values by "
            "permutation after Holm's correction over the table.\n\nA model holds at a rate if "
            + (
                "it is not shown to be worse than unmasked there (few prompts show little)"
                if margin is None
                else f"it is shown to lose less than {margin:g} there"
            )
            + ", and at every higher rate. Where more is kept than by chance, part of the difference is the budget's.",
            [("Down to which rate it holds", breaking_point(table, margin)), ("All rates", _short(table))],
            [plots.budget_curves({model: table}), plots.budget_curves({model: table}, "rate")],
        )
        for metric, table in tables.items()
    ]
    first = next(iter(tables.values()))
    sections.append(Section("What was kept in truth", "", figures=[plots.reached_shares({model: first})]))
    sections.append(Section("Provenance", tables=[("What made the numbers", table_of(result.provenance))]))
    page = write(
        out / "report.html",
        title=f"How few keys are enough for {model}",
        intro="The same prompts and seeds with all keys, and with ever fewer of them, chosen in several ways; beside "
        "them all keys but the sinks, and all but as many others.",
        sections=sections,
        warning=result.unfinished,
    )
    return [saved, out / "budgets.csv", page]


def show_report(record: xr.Dataset, out: Path) -> Path:
    """Write `report.html` of what a gate keeps in a run into a folder.

    Args:
        record: Of a run with the probes `Kept`, `ReceivedAttention` and `KeyNorm`.
        out: The folder.
    """
    model = str(records.made(record).get("model"))
    texts = Section(
        "How long each token survives",
        "A text coloured by the lowest rate down to which the gate keeps each token, the mean over layers and steps.",
        figures=[plots.survival(record, prompt=prompt) for prompt in range(min(record.sizes["prompt"], PROMPTS))],
    )
    by_layer, by_step = (kept.sinks_kept(record, by=(dim,)) for dim in ("layer", "step"))
    sinks = Section(
        "Does it keep the sinks?",
        "Sinks are those of the same forward, per layer and head. Chance is what as many keys hold that are drawn "
        "evenly from those on the canvas.",
        [("All layers and steps", kept.sinks_kept(record, by=()))],
        [plots.sinks_kept({model: by_layer}, "layer"), plots.sinks_kept({model: by_step}, "step")],
    )
    what = Section(
        "What else it keeps",
        "kept: the share of these tokens that is kept; of_kept and of_keys: their share of all that is kept, and of "
        "all keys. Key norms are means over the keys that are kept and dropped; compare them within a layer.",
        [
            *((f"By {word}", _wide(kept.kept_by(record, kind), kind)) for kind, word in KINDS.items()),
            ("Key norms by layer", kept.norms_kept(record)),
        ],
    )
    made = Section("Provenance", tables=[("What made the numbers", table_of(records.made(record)))])
    return write(
        out / "report.html",
        title=f"What a gate keeps in {model}",
        intro="The run itself is unedited: the gate is asked, and nothing is dropped.",
        sections=[texts, sinks, what, made],
        warning=records.unfinished(record),
    )


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """The table with intervals behind their numbers."""
    loose: Any = table
    shown: Any = pd.DataFrame({"selector": loose.selector.str.replace("_", " "), "rate": loose.rate})
    shown["kept (prompts from, to)"] = _texts(loose, "kept")
    shown["value [95 %]"] = _texts(loose, "value", ("low", "high"))
    for name, what in (("to_unmasked", "- unmasked"), ("to_random", "- by chance")):
        shown[f"{what} [95 %]"] = _texts(loose, name)
        shown[f"p ({what})"] = [
            "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in loose[f"{name}_p_holm"]
        ]
    shown["kept - by chance"] = ["" if math.isnan(more) else f"{more:+.2f}" for more in loose.to_random_kept]
    shown["exposed"] = loose.exposed
    return shown


def _texts(table: Any, name: str, ends: tuple[str, str] | None = None) -> list[str]:
    low, high = ends or (f"{name}_low", f"{name}_high")
    three = zip(table[name], table[low], table[high], strict=True)
    return ["" if math.isnan(value) else f"{value:.2f} [{a:.2f}, {b:.2f}]" for value, a, b in three]


def _wide(frame: pd.DataFrame, kind: str, shown: Sequence[str] = ("kept", "of_kept", "of_keys")) -> pd.DataFrame:
    """Kinds that there are, without columns of nothing."""
    loose: Any = frame
    return loose[loose["keys"] > 0][["rate", kind, "keys", *shown]].reset_index(drop=True)
