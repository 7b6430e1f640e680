"""The page of the key-norm protocol: a cache of a baseline that is cut, or the steps of a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from sinklens import files, plots
from sinklens.experiments.budget_table import budget_table
from sinklens.experiments.l2_diffusion import NormsInDiffusion, by_type
from sinklens.experiments.l2_result import PUBLISHED, L2Result
from sinklens.plots import caches
from sinklens.report import page
from sinklens.report.page import Section

FILES = {
    "l2.csv": files.table("outcome", "semantics"),
    "l2-trials.csv": files.table("outcome", "semantics", "tokens"),
    "l2-correlation.csv": files.table("way", "layer"),
    "report.html": files.PAGE,
}
FILES_IN_DIFFUSION = {
    "l2-steps.csv": files.table("step", "key_type"),
    "l2-budgets.csv": files.table("selector", "rate"),
    "report.html": files.PAGE,
}
SOURCE = "“A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression” (arXiv 2406.11430)"


VALUES = {
    "perplexity": "Perplexity",
    "passkey": "Share of right answers",
    "needle": "Share of right answers",
}  # fmt: skip


def published() -> pd.DataFrame:
    """What the paper says of each outcome."""
    return pd.DataFrame({"outcome": list(PUBLISHED), "published (Llama-2, Llama-3, Gemma)": list(PUBLISHED.values())})


def write_l2(result: L2Result, out: Path) -> Path:
    """Write tables and `report.html` of a baseline into a folder."""
    summary: Any = result.summary()
    files.write_table(out / "l2.csv", summary, FILES["l2.csv"])
    files.write_table(out / "l2-trials.csv", result.table(), FILES["l2-trials.csv"])
    files.write_table(out / "l2-correlation.csv", result.correlation(), FILES["l2-correlation.csv"])
    sections = []
    if result.correlations:
        table: Any = result.correlation()
        means = table.groupby("way", sort=False)["correlation"].agg(["mean", "min", "max"]).reset_index()
        text = (
            "The finding that the budget rests on: keys of low norm receive high attention. A sum over queries favours "
            "early keys, which more queries see, and in many heads the first key is the sink; so beside the plain "
            "correlation stand those per query, without the first key, and beyond what the position explains."
        )
        sections.append(
            Section(
                "Key norm and attention", text, [("By layer and key head", means)], [caches.norm_correlation(result)]
            )
        )
    kinds = result.measured()
    for outcome in dict.fromkeys(outcome for outcome, _ in kinds):
        figures = [caches.cache_curve(result, outcome, semantics) for kind, semantics in kinds if kind == outcome]
        if outcome != "perplexity":
            figures.append(caches.retrieval_grid(result, outcome))
        ways = [semantics for kind, semantics in kinds if kind == outcome]
        tables = [(f"{VALUES[outcome]}, {way}", result.wide(outcome, way)) for way in ways]
        less = f"{VALUES[outcome] if outcome != 'perplexity' else 'Nats per token'} minus that of as many random keys"
        tables += [(f"{less}, cache", result.wide(outcome, "cache", "minus_random"))]
        tables += [
            (f"{less} with the first position among them, cache", result.wide(outcome, column="minus_random_first"))
        ]
        text = f"Published: {PUBLISHED[outcome]}; other models and texts: compare the direction, not the size."
        if outcome == "perplexity":
            least = 2.0 ** (1 - result.protocol.texts)
            text += (
                f"\n\nA cache is cut whenever it holds {result.protocol.limit} keys, to the share that is shown, and "
                "read on with until it is full again. The larger the share, the more often it is cut: with 90 % it "
                "holds many keys of long ago and few of the last ones, with 10 % all that was read since the last cut. "
                f"With {result.protocol.texts} texts no permutation test has a p below {least:g}."
            )
        if "recomputed" in ways:
            text += (
                "\n\ncache: what is dropped stays dropped, and the context was read with all of it. recomputed: every "
                "step reads everything anew, the dropped keys are hidden from the context's own queries too, and what "
                "is dropped is chosen by the norms of that forward. Budgets are published of caches."
            )
        sections.append(Section(outcome.capitalize(), text, tables, figures))
    protocol = pd.DataFrame([(k, str(v)) for k, v in result.protocol.to_dict().items()], columns=["what", "value"])
    sections.append(Section("Protocol", "Everything that made the numbers.", [(result.model, protocol)]))
    return page.write(
        out / "report.html",
        title=f"Key norms as a budget of the cache: {result.model}",
        intro=f"{SOURCE}, by its own protocol, with the controls that it lacks: as many keys at random, the most "
        "recent, the most attended, and some with or without the first position, the usual sink. Intervals are "
        "of 95 % over texts; differences are paired by text, * where p is below .05 after Holm's correction.",
        sections=sections,
        footer="Written by sinklens reproduce l2",
        warning=result.unfinished,
    )


def write_l2_in_diffusion(model: str, found: NormsInDiffusion, out: Path) -> Path:
    """Write tables and `report.html` of a diffusion model into a folder."""
    table = budget_table(found.curve)
    files.write_table(out / "l2-steps.csv", found.correlation, FILES_IN_DIFFUSION["l2-steps.csv"])
    files.write_table(out / "l2-budgets.csv", table, FILES_IN_DIFFUSION["l2-budgets.csv"])
    sections = [
        Section(
            "Does a small key receive more attention?",
            "Spearman's correlation of -norm and received attention within each type of key, mean over layers, heads "
            "and prompts; 1: the smaller, the more. Autoregressive models are published with a high one.",
            [("Over steps", by_type(found.correlation))],
            [caches.norms_over_steps(found.correlation, model)] if len(found.correlation) else [],
        ),
        Section(
            "Is keeping the smallest enough?",
            "The same prompts with ever fewer keys at every step. A key that is dropped at one step may be back at the "
            "next: nothing is cached between them.",
            [("Against keeping as many at random, paired by prompt", table)],
            [plots.budget_curves({model: table})],
        ),
    ]
    return page.write(
        out / "report.html",
        title=f"Key norms in a diffusion model: {model}",
        intro=f"The questions of {SOURCE}, asked of a model that computes all keys anew at every step.",
        sections=sections,
        footer="Written by sinklens reproduce l2",
        warning=found.curve.unfinished or "",
    )
