"""The page of an ablation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sinklens import files, plots
from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import AblationResult
from sinklens.report.page import Section, write

FILES = {
    "result.json": files.RESULT,
    "summary.csv": files.table("model", "metric", "condition"),
    "report.html": files.PAGE,
}


def table_of(fields: Mapping[str, Any]) -> pd.DataFrame:
    """Fields as a table; what a mapping holds has lines of its own, anything deeper is JSON."""
    lines: list[tuple[str, str]] = []
    for name, value in fields.items():
        inner = value.items() if isinstance(value, Mapping) else [(None, value)]
        lines += [(name if key is None else f"{name}.{key}", _text(one)) for key, one in inner]
    return pd.DataFrame(lines, columns=["what", "value"])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def report_of(result: AblationResult, out: Path) -> list[Path]:
    """Write `result.json`, `summary.csv` and `report.html` of an ablation into a folder.

    Args:
        result: The ablation.
        out: The folder.
    """
    saved = result.save(out / "result.json")
    summary: Any = result.summary()
    files.write_table(out / "summary.csv", summary, FILES["summary.csv"])
    names = list(dict.fromkeys(score["metric"] for score in result.scores))
    sections = [
        Section(
            METRICS[name].meaning[:1].upper() + METRICS[name].meaning[1:],
            f"Metric {name}, in {METRICS[name].unit}. Differences are paired by prompt; p-values by permutation, after "
            "Holm's correction. Exposed: the share of the scored places that were decided by a forward in which at "
            "least one key was edited; the others show nothing of the edit.",
            [
                ("Means with 95 % intervals", summary[summary.metric == name]),
                ("Effects", result.effects(name).drop(columns=["metric"]).dropna(axis=1, how="all")),
            ],
            [plots.conditions(result, name), plots.effects(result, name)],
        )
        for name in names
    ]
    sections.append(Section("Provenance", "", [("What made the numbers", table_of(result.provenance))]))
    page = write(
        out / "report.html",
        title=f"What editing sinks does to {result.scores[0]['model']}",
        intro="The same prompts and seeds unedited, under each edit, and under the same edit at control keys.",
        sections=sections,
        warning=result.unfinished,
    )
    return [saved, out / "summary.csv", page]
