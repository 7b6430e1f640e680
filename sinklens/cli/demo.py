"""The main job on the bundled twins: where the sinks are, how they move, what removing them does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import typer
import xarray as xr

from sinklens import records
from sinklens.analysis import rates as metrics
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import Run, denoise
from sinklens.experiments.ablation import ablate
from sinklens.experiments.results import AblationResult
from sinklens.interventions import MaskSinks, PreviousStep
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.probes import ReceivedAttention
from sinklens.sinks import SinkRule
from sinklens.tasks import Echo

# pandas annotates its methods with unions that no type checker can follow.
Table = Any

TWINS = {"tiny-dlm": "diffusion", "tiny-arm": "autoregressive"}
KS = (1, 5, 10)
# One text continued by sampling: greedy decoding of a toy bigram language runs into loops.
PLAN = Plan(new_tokens=32, temperature=1.0)
FILL = Plan(new_tokens=0)


@dataclass
class Findings:
    """Everything that the demo computes, per twin."""

    records: dict[str, xr.Dataset]
    layers: Table
    classes: Table
    movement: Table
    ablations: Table
    accuracy: Table
    examples: Table
    seconds: float


def main_job(out: Path, *, prompts: int = 64, seed: int = 0, save_rows: bool = True) -> Findings:
    """Run the demo and write `record.nc`, `record-arm.nc` and `ablation.csv` into `out`.

    Args:
        out: Folder for the results; made if missing. An interrupted demo goes on from its finished batches.
        prompts: Held-out texts per task.
        seed: Of the texts and of the sampling.
        save_rows: Keep the per-example rows in `ablation.jsonl` for resuming.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    rule, recorded = SinkRule(), {}
    layers, classes, moves, runs, samples = [], [], [], [], []
    continued, filling = Echo(prompts, seed=seed), Echo(prompts, seed=seed, gaps=0.5)
    edits = {f"top-{k}": MaskSinks(PreviousStep(top_k=k)) for k in KS}
    for name in TWINS:
        dlm = HookedDLM.from_pretrained(name)
        typer.echo(f"{name}: {dlm.n_layers} layers x {dlm.n_heads} heads, calibrated")
        run = _traced(dlm, continued, seed, f"{name}: sinks")
        recorded[name] = run.record
        records.save(run.record, out / ("record.nc" if name == "tiny-dlm" else "record-arm.nc"))
        layers.append(metrics.per_layer(run.record, rule, causal=dlm.is_causal).assign(model=name))
        classes.append(metrics.token_classes(run.record, rule).assign(model=name))
        moves.append(metrics.movement(run.record, rule).assign(model=name))
        untrained = HookedDLM.from_pretrained(name, revision="step-0")
        blank = _traced(untrained, continued, seed, f"{name} untrained: sinks").record
        layers.append(metrics.per_layer(blank, rule, causal=dlm.is_causal).assign(model=f"{name}, untrained"))
        samples += [(name, "continue", continued[i].prompt, run.completions[i]) for i in range(3)]
        for task, plan in ((continued, PLAN), (filling, FILL)):
            store = out / "ablation.jsonl" if save_rows else None
            result = ablate(
                dlm,
                task,
                edits,
                plan,
                seeds=[seed],
                metrics=["forced_accuracy" if task.gaps else "accuracy"],
                batch_size=448,
                save_to=store,
                progress=f"{name}: removing sinks, {'continuing' if task is continued else 'filling in'}",
            )
            runs.append((task, result))
        gap = filling[0]
        filled = denoise(dlm, gap.prompt, FILL, seed=seed, progress=False)
        samples.append((name, "fill in", gap.prompt, filled.completions[0]))
    ablations = _table(runs)
    ablations.to_csv(out / "ablation.csv", index=False)
    accuracy = ablations[ablations.kind == "unmasked"][["model", "outcome", "accuracy", "low", "high", "places"]]
    return Findings(
        records=recorded,
        layers=pd.concat(layers, ignore_index=True)[["model", "layer", "sinks", "not_sinks", "null"]],
        classes=pd.concat(classes, ignore_index=True)[["model", "token_class", "share_of_sinks", "share_of_keys"]],
        movement=pd.concat(moves, ignore_index=True)[["model", "layer", "jaccard", "ever", "always"]],
        ablations=ablations,
        accuracy=accuracy.reset_index(drop=True),
        examples=pd.DataFrame(samples, columns=["model", "task", "prompt", "written by the model"]),
        seconds=time.monotonic() - started,
    )


def _traced(dlm: HookedDLM, task: Echo, seed: int, label: str) -> Run:
    count = min(len(task), 32)
    plan = PLAN.for_causal() if dlm.is_causal else PLAN
    seeds = [seed * 1_000_003 + index for index in range(count)]
    prompts = [task[index].prompt for index in range(count)]
    return denoise(dlm, prompts, plan, probes=[ReceivedAttention()], seed=seeds, progress=label)


def _table(runs: list[tuple[Echo, AblationResult]]) -> Table:
    tables = []
    for task, result in runs:
        table = result.summary().rename(columns={"value": "accuracy"}).drop(columns=["metric", "edited_mass"])
        table.insert(1, "outcome", "filling in" if task.gaps else "continuing")
        for condition in (f"top-{k}" for k in KS):
            effect = result.effect(condition)
            here = (table.condition == condition) & (table.kind == "sinks")
            table.loc[here, "minus_unmasked"] = effect.to_unmasked
            table.loc[here, ["minus_random", "minus_random_low", "minus_random_high"]] = (
                effect.to_control,
                *(effect.to_control_interval or (float("nan"),) * 2),
            )
        tables.append(table)
    out: Table = pd.concat(tables, ignore_index=True)
    out.insert(3, "k", out.condition.str.extract(r"(\d+)")[0].fillna("0").astype(int))
    return out


def write_report(found: Findings, out: Path) -> Path:
    """Write `report.html` into `out`."""
    from sinklens import plots, report

    dlm, arm = (found.records[name] for name in TWINS)
    trained = found.layers[~found.layers.model.str.contains("untrained")]
    effects = found.ablations[found.ablations.kind == "sinks"]
    columns = [
        "model",
        "outcome",
        "condition",
        "minus_unmasked",
        "minus_random",
        "minus_random_low",
        "minus_random_high",
    ]
    sections = [
        report.Section(
            "What the twins can do",
            "Two models of one architecture, trained on the same toy language: tiny-dlm by masked diffusion, tiny-arm "
            "to predict the next word. Behind a trigger word a rule decides the next word (xa, xe, ...: repeat the "
            "last word; wa, we, ...: the last word but one). Accuracy counts those words only, on held-out texts, with "
            "95 % bootstrap intervals over texts.",
            [("Accuracy at rule-decided words", found.accuracy), ("Held-out examples", found.examples)],
            [],
        ),
        report.Section(
            "Where the sinks are",
            "A key is a sink of a head at a step if it receives more than 3 units of attention (column sum; the "
            "average key receives 1) beyond the mean of the other keys (arXiv 2510.15731, epsilon = 3). 'null' is what "
            "uniform attention would give: in a causal model the first key passes without being a sink.",
            [
                (
                    "Sinks per head and step, by layer; share of keys that are no sinks (the paper asks for 0.96)",
                    found.layers,
                ),
                ("Token classes of sinks, beside how common each class is", found.classes),
            ],
            [plots.layer_counts(trained), plots.token_classes(found.classes)],
        ),
        report.Section(
            "How they move",
            "One held-out text while it is written. Jaccard is the overlap of a head's sinks at consecutive steps "
            "(1 = the same keys); 'ever' and 'always' count keys per head and run.",
            [("Movement of sinks, by layer", found.movement)],
            [
                plots.timeline(dlm, title="tiny-dlm while it denoises"),
                plots.timeline(arm, title="tiny-arm while it writes"),
                plots.sink_positions(dlm),
                plots.sink_positions(arm),
            ],
        ),
        report.Section(
            "What removing them does",
            "The top 1, 5 and 10 sinks of every layer and head at step t - 1 are masked (-inf before the softmax) at "
            "step t, and as many random keys that are no sinks. 'continuing' checks what the model writes itself; "
            "'filling in' scores the same masked words under every condition. Differences are paired by text.",
            [
                ("Accuracy under each condition", found.ablations.drop(columns=columns[3:])),
                ("Effects", effects[columns]),
            ],
            [plots.ablation(found.ablations)],
        ),
    ]
    return report.write(
        out / "report.html",
        title="sinklens demo: attention sinks in a diffusion model and its autoregressive twin",
        intro="Every number on this page was computed by `sinklens demo` on the two bundled models. They are tiny: "
        "what they show holds for them, and is shown whichever way it came out.",
        sections=sections,
        footer=f"computed in {found.seconds:.0f} s",
    )


def tell(found: Findings) -> None:
    """Print the tables."""
    for caption, table in (
        ("Accuracy at rule-decided words of held-out texts (95 % intervals)", found.accuracy),
        ("Examples", found.examples),
        ("Sinks per head and step (epsilon 3, column sums); null = under uniform attention", found.layers),
        ("What the sinks are", found.classes[found.classes.share_of_keys > 0]),
        ("How sinks move: Jaccard of consecutive steps; keys that are ever / always a sink of a head", found.movement),
        ("Accuracy with sinks masked, and with as many random keys masked", _wide(found.ablations)),
    ):
        shown = table.replace({"\n": "\\n"}, regex=True)
        typer.echo(f"\n{caption}\n{shown.to_string(index=False, float_format=lambda x: f'{x:.3f}', max_colwidth=60)}")


def _wide(ablations: Table) -> Table:
    out: Table = ablations.copy()
    interval = [
        f"{a:.3f} [{low:.3f}, {high:.3f}]" for a, low, high in zip(out.accuracy, out.low, out.high, strict=True)
    ]
    out["accuracy"] = interval
    wide = out.pivot_table(
        index=["model", "outcome", "k"], columns="kind", values="accuracy", aggfunc="first", sort=False
    )
    wide["sinks"] = wide["sinks"].fillna(wide["unmasked"])
    return (
        wide[["sinks", "random"]]
        .fillna("")
        .rename(columns={"sinks": "sinks masked", "random": "random masked"})
        .reset_index()
    )
