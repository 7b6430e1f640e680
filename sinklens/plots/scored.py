"""What figures of ablations share: words for metrics and kinds, and what must be said of exposure and interrupts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import AblationResult

MARKERS = ("circle", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open", "star-open")


def words(metric: str) -> tuple[str, str]:
    """Axis title and definition."""
    known = METRICS.get(metric)
    name = metric.replace("_", " ")
    return (f"{name} ({known.unit})", f"{name}: {known.meaning} ({known.unit}).") if known else (name, name)


def results_of(results: AblationResult | Sequence[AblationResult]) -> list[AblationResult]:
    return [results] if isinstance(results, AblationResult) else list(results)


def metric_of(results: Sequence[AblationResult], metric: str | None) -> str:
    known = list(dict.fromkeys(score["metric"] for result in results for score in result.scores))
    if not known:
        raise ValueError("the results have no scores, so there is nothing to draw")
    if metric is not None and metric not in known:
        raise ValueError(f"metric {metric!r} was not measured; there are {', '.join(known)}")
    return metric or known[0]


def least_exposed(table: Any) -> dict[str, float]:
    """The conditions of which some scored places met no edit, with the share that did (the least of their arms)."""
    least = table.groupby("condition", sort=False)["exposed"].min()
    return {name: float(share) for name, share in least.items() if share < 1}


def unfinished(*results: AblationResult) -> list[str]:
    """A line of the title for each result that was interrupted."""
    return [f"{result.scores[0]['model']} is {result.unfinished}." for result in results if result.unfinished]


def said_of(shares: Sequence[float]) -> list[str]:
    """A line of the title, if there is anything to say."""
    if not shares:
        return []
    few, most = (f"{each:.2f}" for each in (min(shares), max(shares)))
    return [
        f"Of some conditions only {few if few == most else f'{few} to {most}'} of the scored places were exposed to "
        "the edit: the rest was decided by forwards that edited no key."
    ]


def kind_words(kind: str, part: Any = None) -> str:
    """What an arm is called; `part`: its lines of the summary, which say whether its edit acts on keys."""
    if kind == "sinks" and part is not None and part["edited_keys"].isna().all():
        return "edit"
    return {"random": "random keys", "same_mass": "random keys of the same mass"}.get(kind, kind)


def reached(part: Any, text: str) -> str:
    """What a figure says of edited keys; nothing where the edit acts on none."""
    return "" if part["edited_keys"].isna().all() else text
