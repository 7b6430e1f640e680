"""The page of an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from sinklens import plots
from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import AblationResult
from sinklens.report.page import Section, write


def report_of(result: AblationResult, out: Path) -> list[Path]:
    """Write `result.json`, `summary.csv` and `report.html` of an ablation into a folder.

    Args:
        result: The ablation.
        out: The folder.
    """
    saved = result.save(out / "result.json")
    summary: Any = result.summary()
    summary.to_csv(out / "summary.csv", index=False)
    names = list(dict.fromkeys(row["metric"] for row in result.rows))
    sections = [
        Section(
            METRICS[name].meaning[:1].upper() + METRICS[name].meaning[1:],
            f"Metric {name}, in {METRICS[name].unit}. Differences are paired by prompt; p-values by permutation, after "
            "Holm's correction.",
            [
                ("Means with 95 % intervals", summary[summary.metric == name]),
                ("Effects", result.effects(name).drop(columns=["metric"]).dropna(axis=1, how="all")),
            ],
            [plots.conditions(result, name), plots.effects(result, name)],
        )
        for name in names
    ]
    made = [(name, str(value)) for name, value in result.provenance.items()]
    sections.append(Section("Provenance", "", [("", pd.DataFrame(made, columns=["what", "value"]))]))
    page = write(
        out / "report.html",
        title=f"What editing sinks does to {result.rows[0]['model']}",
        intro="The same prompts and seeds unedited, under each edit, and under the same edit at control keys.",
        sections=sections,
        footer="" if result.finished else "The ablation was interrupted: this is what was finished.",
    )
    return [saved, out / "summary.csv", page]
