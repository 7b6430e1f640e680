"""The paired ablation: the same prompts and seeds unmasked, under each condition, and under its controls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sinklens.decoding.plan import Plan
from sinklens.errors import NothingEdited
from sinklens.experiments.outcomes import Pass, known
from sinklens.experiments.results import UNMASKED, AblationResult
from sinklens.experiments.runner import Trials
from sinklens.experiments.scores import Store
from sinklens.hooks import Intervention, leaves
from sinklens.interventions import SinkEdit, control
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.records import provenance
from sinklens.tasks import Prompts, Task

Controls = str | None | Sequence[str] | Mapping[str, Callable[[Any], Intervention]]


def ablate(
    dlm: HookedDLM,
    task: Task | Sequence[Any],
    conditions: Mapping[str, Intervention],
    plan: Plan | None = None,
    *,
    seeds: Sequence[int] = (0,),
    controls: Controls = "random",
    metrics: Sequence[str] | None = None,
    batch_size: int = 128,
    save_to: str | Path | None = None,
    progress: bool | str = True,
) -> AblationResult:
    """Measure a model unmasked, under each condition, and under its controls, on the same prompts and seeds.

    All conditions of a prompt share forwards (`interventions.SideBySide`), so that N of them do not cost N runs.

    Args:
        dlm: The model.
        task: Prompts plus a checker (`tasks.Echo`, `tasks.Jsonl`), or just prompts.
        conditions: Edits by name.
        plan: How to decode.
        seeds: Repetitions; each prompt gets its own seed from each.
        controls: "random": as many random keys that are no sinks, in the same scope. Other names, or several:
            "same_mass", "bottom", "same_class", "shifted", "noop". A mapping from names to functions of the edit makes
            one's own. None must be asked for.
        metrics: Names out of `measures.METRICS`, which says what each means: "accuracy" (of what the model writes),
            "forced_accuracy" (of what it would write while the truth is committed: the same places under every
            condition), "agreement" and "order" (against the unedited run), "kl", "replayed_agreement",
            "confidence_committed" and "confidence_uncommitted" (on the canvases of the unedited run, commits
            replayed), "log_likelihood". None: forced_accuracy and accuracy for a task, agreement, order and kl for
            prompts.
        batch_size: Rows per forward, over all conditions.
        save_to: A JSONL file that gets the scores of every finished batch. Scores that it already holds are not
            run again, so an interrupted experiment goes on where it was.
        progress: Show a progress bar; a string is its label.

    A KeyboardInterrupt returns the finished batches.

    Raises:
        ValueError: before the first forward, for what cannot be run.
        NothingEdited: a warning: a condition that did not touch a single key.
    """
    if UNMASKED in conditions:
        raise ValueError(f"the condition name {UNMASKED!r} is taken by the unedited run")
    seeds = [int(seed) for seed in seeds]
    if batch_size < 1 or not seeds:
        raise ValueError(f"batch_size={batch_size} must be at least 1 and seeds={list(seeds)} must not be empty")
    job: Task = task if hasattr(task, "score") else Prompts(task)  # pyright: ignore[reportAssignmentType, reportArgumentType]
    if metrics is None:
        metrics = ("agreement", "order", "kl") if isinstance(job, Prompts) else ("forced_accuracy", "accuracy")
    metrics = known(list(metrics))
    plan = plan or Plan()
    if dlm.is_causal:
        plan = plan.for_causal()
    arms: list[tuple[str, str, Intervention | None]] = [(UNMASKED, UNMASKED, None)]
    for name, edit in conditions.items():
        arms += [(name, "sinks", edit), *((name, kind, other) for kind, other in _controls(edit, controls))]
    trials = Trials(dlm, job, plan, metrics)
    trials.check([(name, edit) for name, _, edit in arms if edit is not None])
    store = Store(save_to)
    together = max(1, batch_size // len(arms))  # prompts in a forward
    batches = [trials.order[start : start + together] for start in range(0, len(job), together)]
    rows: list[dict[str, Any]] = []
    finished = False
    label = progress if isinstance(progress, str) else "ablating"
    total = len(seeds) * len(job) * len(trials.passes)
    try:
        with tqdm(total=total, desc=label, unit="prompt", disable=progress is False, leave=False) as bar:
            for seed in seeds:
                for batch in batches:
                    for which in trials.passes:
                        rows += _rows(trials, store, arms, batch, seed, which, batch_size)
                        bar.update(len(batch))
        finished = True
    except KeyboardInterrupt:
        tqdm.write(f"interrupted; returning {len(rows)} finished rows")
    rows.sort(key=lambda row: (seeds.index(row["seed"]), row["prompt"]))  # however batches were cut
    made = provenance(
        dlm,
        plan=asdict(plan),
        task=job.name,
        prompts=len(job),
        seeds=seeds,
        conditions={f"{name} ({kind})": repr(edit) for name, kind, edit in arms},
        metrics=list(metrics),
        finished=finished,
    )
    for name, kind, edit in arms:
        mine = [row for row in rows if (row["condition"], row["kind"]) == (name, kind)]
        sought = edit is not None and any(isinstance(leaf, SinkEdit) for leaf in leaves(edit))
        if sought and mine and finished and not any(row["edited_keys"] for row in mine):
            warnings.warn(
                f"condition {name!r} ({kind}), {edit!r}, did not edit a single key: its detector found none, or its "
                "steps never came",
                NothingEdited,
                stacklevel=2,
            )
    return AblationResult(rows, finished, made)


def doses(name: str, values: Sequence[Any], make: Callable[[Any], Intervention]) -> dict[str, Intervention]:
    """Conditions for a dose-response curve: one per value, named "name=value".

    For example `doses("k", [1, 5, 10], lambda k: MaskSinks(PreviousStep(top_k=k)))`, or over epsilon, layers or steps:
    `doses("layer", range(dlm.n_layers), lambda i: MaskSinks(where=Where(layers=i)))`. `plots.dose_response` draws them.

    Args:
        name: What is varied.
        values: Its values, numbers for a curve.
        make: The edit for a value.
    """
    return {f"{name}={value}": make(value) for value in values}


def _controls(edit: Any, controls: Controls) -> list[tuple[str, Intervention]]:
    if controls is None:
        return []
    if isinstance(controls, Mapping):
        made = [(name, make(edit)) for name, make in controls.items()]
    else:
        made = [(name, control(edit, name)) for name in ([controls] if isinstance(controls, str) else controls)]
    taken = {UNMASKED, "sinks"} & {name for name, _ in made}
    if taken:
        raise ValueError(f"the control name {taken.pop()!r} is taken")
    return made


def _rows(
    trials: Trials,
    store: Store,
    arms: Sequence[tuple[str, str, Intervention | None]],
    batch: Sequence[int],
    seed: int,
    which: Pass,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Rows of one batch, run where the store does not hold them yet."""
    marks = {
        (arm, index): trials.fingerprint(index, seed, arms[arm][2], which)
        for arm in range(len(arms))
        for index in batch
    }
    left = [index for index in batch if any(marks[arm, index] not in store.rows for arm in range(len(arms)))]
    missing = [arm for arm in range(1, len(arms)) if any(marks[arm, index] not in store.rows for index in left)]
    each = max(1, batch_size // max(len(left), 1) - 1)  # edited groups in a forward, beside the unedited one
    for start in range(0, len(missing), each) if missing else ([0] if left else []):
        group = missing[start : start + each]
        scored = trials.run(left, seed, [None, *(arms[arm][2] for arm in group)], which)
        new: dict[str, dict[str, Any]] = {}
        for arm, results in zip([0, *group], scored, strict=True):
            new |= {marks[arm, index]: result for index, result in zip(left, results, strict=True)}
        store.add(new)
    rows = []
    for arm, (condition, kind, _) in enumerate(arms):
        for index in batch:
            result = store.rows[marks[arm, index]]
            names = {"model": trials.dlm.name, "task": trials.task.name, "prompt": index}
            names |= {"name": trials.examples[index].name, "seed": seed, "condition": condition, "kind": kind}
            counts = {"edited_keys": result["edited_keys"], "edited_mass": result["edited_mass"]}
            for metric, (value, places) in result["values"].items():
                rows.append({**names, "metric": metric, "value": value, "places": places, **counts})
    return rows
