"""The main job on the bundled models: where the sinks are, how they move, what removing them does."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import typer
import xarray as xr

from sinklens import files, records
from sinklens.analysis import rates as metrics
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import Run, denoise
from sinklens.errors import PartlyExposed
from sinklens.experiments.ablation import ablate
from sinklens.experiments.batch import SEEDS
from sinklens.experiments.results import AblationResult
from sinklens.interventions import MaskSinks, PreviousStep
from sinklens.models.files import BUNDLED
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.placing import Placing
from sinklens.probes import ReceivedAttention
from sinklens.sinks import SinkRule
from sinklens.tasks import Echo

# pandas annotates its methods with unions that no type checker can follow.
Table = Any

Given = TypeVar("Given", Run, AblationResult)
RECORDS = {"tiny-dlm": "record.nc", "tiny-bdlm": "record-bdlm.nc", "tiny-arm": "record-arm.nc"}
FILES = {
    **dict.fromkeys(RECORDS.values(), files.RECORD),
    "ablation.csv": files.table("model", "outcome", "condition"),
    "scores.jsonl": files.SCORES,
    "report.html": files.PAGE,
}

KS = (1, 5, 10)
# One text continued by sampling: greedy decoding of a toy bigram language runs into loops.
PLAN = Plan(new_tokens=32, temperature=1.0)
FILL = Plan(new_tokens=0)


@dataclass
class Findings:
    """Everything that the demo computes, for all bundled models; `results` by outcome, one ablation per model."""

    records: dict[str, xr.Dataset]
    results: dict[str, list[AblationResult]]
    layers: Table
    classes: Table
    movement: Table
    ablations: Table
    accuracy: Table
    examples: Table
    seconds: float


def main_job(out: Path, placing: Placing, *, prompts: int = 64, seed: int = 0) -> Findings:
    """Run the demo and write the records, `ablation.csv` and `scores.jsonl` into `out`.

    Args:
        placing: How the models are loaded.
        out: Folder for the results; made if missing. An interrupted demo goes on from its finished batches.
        prompts: Held-out texts per task.
        seed: Of the texts and of the sampling.

    Raises:
        KeyboardInterrupt: as soon as there is one; no table is made of a part.
    """
    started = time.monotonic()
    rule, recorded = SinkRule(), {}
    layers, classes, moves, samples = [], [], [], []
    continued, filling = Echo(prompts, seed=seed), Echo(prompts, seed=seed, gaps=0.5)
    results: dict[str, list[AblationResult]] = {"continuing": [], "filling in": []}
    edits = {f"top-{k}": MaskSinks(PreviousStep(top_k=k)) for k in KS}
    for name in BUNDLED:
        dlm = placing.load(name)
        which = f", {dlm.revision}" if dlm.revision else ""
        typer.echo(f"{name} on {dlm.device}{which}: {dlm.n_layers} layers x {dlm.n_heads} heads, calibrated")
        run = whole(_traced(dlm, continued, seed, f"{name}: sinks"))
        recorded[name] = run.record
        records.save(run.record, out / RECORDS[name])
        layers.append(metrics.per_layer(run.record, rule).assign(model=name))
        classes.append(metrics.token_classes(run.record, rule).assign(model=name))
        moves.append(metrics.movement(run.record, rule).assign(model=name))
        untrained = replace(placing, revision="step-0").load(name)
        blank = whole(_traced(untrained, continued, seed, f"{name} untrained: sinks")).record
        layers.append(metrics.per_layer(blank, rule).assign(model=f"{name}, untrained"))
        samples += [(name, "continue", continued[i].prompt, run.completions[i]) for i in range(3)]
        for outcome, task, plan in (("continuing", continued, PLAN), ("filling in", filling, FILL)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PartlyExposed)  # the table says how much of each is
                result = ablate(
                    dlm,
                    task,
                    edits,
                    beside(dlm, plan),
                    seeds=[seed],
                    metrics=["forced_accuracy" if task.gaps else "accuracy"],
                    batch_size=448,
                    save_to=out / "scores.jsonl",
                    progress=f"{name}: removing sinks, {outcome}",
                )
            results[outcome].append(whole(result))
        gap = filling[0]
        filled = whole(denoise(dlm, gap.prompt, beside(dlm, FILL), seed=seed, progress=False))
        samples.append((name, "fill in", gap.prompt, filled.completions[0]))
    ablations = _table(results)
    files.write_table(out / "ablation.csv", ablations, FILES["ablation.csv"])
    accuracy = ablations[ablations.kind == "unmasked"][["model", "outcome", "accuracy", "low", "high", "places"]]
    return Findings(
        records=recorded,
        results=results,
        layers=pd.concat(layers, ignore_index=True)[["model", "layer", "sinks", "not_sinks", "null"]],
        classes=pd.concat(classes, ignore_index=True)[["model", "token_class", "share_of_sinks", "share_of_keys"]],
        movement=pd.concat(moves, ignore_index=True)[["model", "layer", "jaccard", "ever", "always"]],
        ablations=ablations,
        accuracy=accuracy.reset_index(drop=True),
        examples=pd.DataFrame(samples, columns=["model", "task", "prompt", "written by the model"]),
        seconds=time.monotonic() - started,
    )


def whole(given: Given) -> Given:
    """What was finished; an interrupt ends the demo, whatever it left."""
    if not given.finished:
        raise KeyboardInterrupt
    return given


def beside(dlm: HookedDLM, plan: Plan) -> Plan:
    """The plan; for the baseline without what only diffusion models use."""
    return plan.for_causal() if dlm.is_causal else plan


def _traced(dlm: HookedDLM, task: Echo, seed: int, label: str) -> Run:
    count = min(len(task), 32)
    seeds = [seed * SEEDS + index for index in range(count)]
    prompts = [task[index].prompt for index in range(count)]
    return denoise(dlm, prompts, beside(dlm, PLAN), probes=[ReceivedAttention()], seed=seeds, progress=label)


def _table(results: dict[str, list[AblationResult]]) -> Table:
    """All summaries as one table, with the effects beside the conditions."""
    tables = []
    by_model = zip(*([(outcome, result) for result in several] for outcome, several in results.items()), strict=True)
    for outcome, result in (pair for model in by_model for pair in model):
        table = result.summary().rename(columns={"value": "accuracy"}).drop(columns=["metric", "edited_mass"])
        table.insert(1, "outcome", outcome)
        for condition in (f"top-{k}" for k in KS):
            effect = result.effect(condition)
            lines = (table.condition == condition) & (table.kind == "sinks")
            table.loc[lines, "minus_unmasked"] = effect.to_unmasked
            table.loc[lines, ["minus_random", "minus_random_low", "minus_random_high"]] = (
                effect.to_control,
                *(effect.to_control_interval or (float("nan"),) * 2),
            )
        tables.append(table)
    out: Table = pd.concat(tables, ignore_index=True)
    out.insert(3, "k", out.condition.str.extract(r"(\d+)")[0].fillna("0").astype(int))
    return out
