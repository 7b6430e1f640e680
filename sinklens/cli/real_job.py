"""The job of `sinklens demo --real`: the same questions as on the twins, asked of real models."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import typer
import xarray as xr

from sinklens import files, records
from sinklens.analysis import rates as metrics
from sinklens.analysis.headline import headline
from sinklens.cli.demo_job import Table, whole
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.errors import PartlyExposed
from sinklens.experiments.ablation import ablate, doses
from sinklens.experiments.batch import SEEDS
from sinklens.experiments.budget_table import COLUMNS as BUDGET_COLUMNS
from sinklens.experiments.budget_table import budget_table
from sinklens.experiments.budgets import Ranking, budget_curve
from sinklens.experiments.results import AblationResult
from sinklens.interventions import MaskSinks, PreviousStep, SameStep
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.placing import Placing
from sinklens.probes import ReceivedAttention
from sinklens.sinks import SinkRule
from sinklens.tasks import Task

KS = (1, 5, 10)
# Sinks of the forward that is edited, and those of the step before (the paper's, which cannot edit the first step).
DETECTORS: dict[str, Any] = {"same step, k": SameStep, "previous step, k": PreviousStep}
CONTROLS = ("random", "same_mass", "shifted")
TRACED = 8  # prompts whose sinks are recorded
RATES = (0.1, 0.25, 0.5)  # of the budgets
RANKINGS: tuple[Ranking, ...] = ("received", "key_norm", "random")


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked.

    Attributes:
        model: As in `HookedDLM.from_pretrained`.
        task: Its prompts and answers.
        few: Some of them, for the budgets.
        plan: How it decodes.
        about: What the model is, for the page.
        log: Of its training, for the figure of how its sinks emerged; none if None.
    """

    model: str
    task: Task
    few: Task
    plan: Plan
    about: str
    log: Path | None = None

    @property
    def record(self) -> str:
        """Name of the record's file."""
        return f"record-{Path(self.model).name}.nc"


@dataclass
class Found:
    """Everything that the job computes; tables have a column `model`.

    Attributes:
        subjects: What was asked of which model.
        records: The first prompts of each model, every step.
        headlines: One sentence about the sinks of each.
        tokens: Token classes of sinks beside those of keys.
        places: Likewise first, last, separator and other places.
        layers: Sinks per head, by layer.
        movement: Overlap of consecutive steps, by layer.
        results: By model: all conditions and controls.
        budgets: By model: a budget curve.
        seconds: How long it took.
    """

    subjects: Sequence[Subject]
    records: dict[str, xr.Dataset]
    headlines: dict[str, str]
    tokens: Table
    places: Table
    layers: Table
    movement: Table
    results: dict[str, AblationResult]
    budgets: dict[str, AblationResult]
    seconds: float


def kinds(subjects: Sequence[Subject]) -> dict[str, files.Kind]:
    """The files that the job and its page write."""
    fixed = {
        "table1.csv": files.table("model", "task", "detector"),
        "budgets.csv": files.table("model", "selector", "rate"),
        "scores.jsonl": files.SCORES,
        "report.html": files.PAGE,
    }
    return fixed | {subject.record: files.RECORD for subject in subjects}


def real_job(subjects: Sequence[Subject], out: Path, placing: Placing, *, seed: int = 0) -> Found:
    """Record the sinks of each model, ablate them by each detector with every control, and spend budgets of keys.

    Writes a record per model, `table1.csv`, `budgets.csv` and `scores.jsonl` into `out`; goes on from the finished
    batches.

    Args:
        subjects: The models, in the order of the page.
        out: Folder for the results; made if missing.
        placing: How the models are loaded.
        seed: Of the controls and of the sampling.

    Raises:
        KeyboardInterrupt: as soon as there is one; no table is made of a part.
    """
    started = time.monotonic()
    rule = SinkRule()
    recorded, sentences, results = {}, {}, dict[str, AblationResult]()
    budgets = dict[str, AblationResult]()
    tables: dict[str, list[Table]] = {"tokens": [], "places": [], "layers": [], "movement": []}
    for subject in subjects:
        name = subject.model
        dlm = placing.load(name)
        kind = "autoregressive" if dlm.is_causal else "bidirectional"
        typer.echo(f"{name} on {dlm.device}: {dlm.n_layers} layers x {dlm.n_heads} heads, {kind}, calibrated")
        record = _recorded(dlm, subject, seed)
        records.save(record, out / subject.record)
        recorded[name], sentences[name] = record, headline(record, rule)
        for table, measured in zip(
            tables.values(),
            (metrics.token_classes, metrics.place_classes, metrics.per_layer, metrics.movement),
            strict=True,
        ):
            table.append(measured(record, rule).assign(model=name))
        typer.echo(f"{name}: {sentences[name]}")
        results[name] = _ablated(dlm, subject, seed, out / "scores.jsonl")
        budgets[name] = _budgets(dlm, subject, seed, out / "scores.jsonl")
    files.write_table(out / "table1.csv", table1(results), kinds(subjects)["table1.csv"])
    files.write_table(out / "budgets.csv", budget_tables(budgets), kinds(subjects)["budgets.csv"])
    joined: dict[str, Table] = {which: pd.concat(parts, ignore_index=True) for which, parts in tables.items()}
    return Found(
        subjects=subjects,
        records=recorded,
        headlines=sentences,
        tokens=joined["tokens"][["model", "token_class", "share_of_sinks", "share_of_keys"]],
        places=joined["places"][["model", "place", "share_of_sinks", "share_of_keys"]],
        layers=joined["layers"][["model", "layer", "sinks", "not_sinks", "null"]],
        movement=joined["movement"][["model", "layer", "jaccard", "ever", "always"]],
        results=results,
        budgets=budgets,
        seconds=time.monotonic() - started,
    )


def _recorded(dlm: HookedDLM, subject: Subject, seed: int) -> xr.Dataset:
    count = min(len(subject.task), TRACED)
    prompts = [subject.task[index].prompt for index in range(count)]
    seeds = [seed * SEEDS + index for index in range(count)]
    label = f"{subject.model}: sinks"
    return whole(
        denoise(dlm, prompts, beside(dlm, subject.plan), probes=[ReceivedAttention()], seed=seeds, progress=label)
    ).record


def _ablated(dlm: HookedDLM, subject: Subject, seed: int, scores: Path) -> AblationResult:
    edits: dict[str, Any] = {}
    for name, detector in DETECTORS.items():
        edits |= doses(name, KS, lambda k, of=detector: MaskSinks(of(top_k=k)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartlyExposed)  # the table says how much of each is
        return whole(
            ablate(
                dlm,
                subject.task,
                edits,
                beside(dlm, subject.plan),
                seeds=[seed],
                controls=CONTROLS,
                metrics=["accuracy"],
                batch_size=100,
                save_to=scores,
                progress=f"{subject.model}: removing sinks",
            )
        )


def _budgets(dlm: HookedDLM, subject: Subject, seed: int, scores: Path) -> AblationResult:
    """Accuracy with ever fewer keys, by what they are chosen; with the gate that comes with sinklens, if one does."""
    return whole(
        budget_curve(
            dlm,
            subject.few,
            RATES,
            RANKINGS,
            beside(dlm, subject.plan),
            draws=1,
            seeds=[seed],
            metrics=["accuracy"],
            batch_size=100,
            save_to=scores,
            progress=f"{subject.model}: fewer keys",
        )
    )


def budget_tables(budgets: Mapping[str, AblationResult]) -> Table:
    """`budget_table` of every model, in one."""
    return pd.concat([budget_table(result).assign(model=name) for name, result in budgets.items()], ignore_index=True)[
        ["model", *BUDGET_COLUMNS]
    ]


def beside(dlm: HookedDLM, plan: Plan) -> Plan:
    """The plan; for an autoregressive model without what only diffusion models use."""
    return plan.for_causal() if dlm.is_causal else plan


def table1(results: Mapping[str, AblationResult]) -> Table:
    """A line per model, detector and number of keys: accuracy, exposure and intervals, with every control beside it.

    Columns: model, task, detector, k (0: unmasked), kind (unmasked, sinks, or a control), accuracy, low, high (95 %
    interval), exposed; for controls also minus_control with its interval and p_holm (sinks against this control, paired
    by prompt; the p-value corrected over all lines of the model).
    """
    lines: list[dict[str, Any]] = []
    for model, result in results.items():
        effects: Any = result.effects("accuracy")
        against = {(line.condition, line.control): line for line in effects.itertuples()}
        summary: Any = result.summary()
        for line in summary.itertuples():
            detector, _, k = str(line.condition).partition(", k=")
            row = {
                "model": model,
                "task": result.provenance["task"],
                "detector": detector if k else "",
                "k": int(k or 0),
            }
            row |= {"kind": line.kind, "accuracy": line.value, "low": line.low, "high": line.high}
            row |= {"exposed": line.exposed}
            if (effect := against.get((line.condition, line.kind))) is not None:
                row |= {
                    "minus_control": effect.to_control,
                    "minus_control_low": effect.to_control_low,
                    "minus_control_high": effect.to_control_high,
                    "p_holm": effect.to_control_p_holm,
                }
            lines.append(row)
    return pd.DataFrame(lines)
