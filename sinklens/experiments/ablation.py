"""The paired ablation: the same prompts and seeds unmasked, under each condition, and under its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sinklens.decoding.plan import Plan
from sinklens.experiments.arms import Arm, Controls, arms_of
from sinklens.experiments.batch import Measured, Repetition
from sinklens.experiments.exposure import judge
from sinklens.experiments.outcomes import Pass, known
from sinklens.experiments.results import AblationResult
from sinklens.experiments.runner import Runner
from sinklens.experiments.scores import ScoreStore
from sinklens.hooks import Edit
from sinklens.interrupts import again
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.progress import hidden
from sinklens.records import provenance
from sinklens.tasks import Prompts, Task
from sinklens.values.content import plain
from sinklens.values.kinds import Count, reads


@reads("task", "conditions")
def ablate(
    dlm: HookedDLM,
    task: Task | Sequence[Any],
    conditions: Mapping[str, Edit],
    plan: Plan | None = None,
    *,
    seeds: Sequence[Repetition] = (0,),
    controls: Controls = "random",
    metrics: Sequence[str] | None = None,
    batch_size: Count = 128,
    save_to: str | Path | None = None,
    progress: bool | str = True,
) -> AblationResult:
    """Measure a model unmasked, under each condition, and under its controls, on the same prompts and seeds.

    All conditions of a prompt share forwards (`interventions.SideBySide`), so that N of them do not cost N runs.

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> cut = {"top-1": sl.MaskSinks(sl.SameStep(top_k=1))}
        >>> found = sl.ablate(dlm, sl.tasks.Echo(n=2, seed=1), cut, sl.Plan(new_tokens=32), progress=False)
        >>> sorted({row["kind"] for row in found.scores})
        ['random', 'sinks', 'unmasked']

    Args:
        dlm: The model.
        task: Prompts plus a checker (`tasks.Echo`, `tasks.Jsonl`), or just prompts.
        conditions: Edits by name.
        plan: How to decode; for an autoregressive baseline one that says only what it can do (`Plan.for_causal`).
        seeds: Repetitions; each prompt gets its own seed from each.
        controls: "random": as many random keys that are no sinks, in the same scope. Other names, or several:
            "same_mass", "bottom", "same_class", "shifted", "noop". Of `Steer`, which acts on no keys:
            "random_direction", "orthogonal_direction". A mapping from names to functions of the edit makes one's own.
            None must be asked for.
        metrics: Names out of `outcomes.METRICS`, which says what each means: "accuracy" (of what the model writes),
            "forced_accuracy" (of what it would write while the truth is committed: the same places under every
            condition), "agreement" and "order" (against the unedited run), "kl", "replayed_agreement",
            "confidence_committed" and "confidence_uncommitted" (on the canvases of the unedited run, commits
            replayed), "log_likelihood". None: forced_accuracy and accuracy for a task, agreement, order and kl for
            prompts.
        batch_size: Rows per forward, over all conditions.
        save_to: A file that gets the scores of every finished batch. Scores that it already holds are not run again,
            so an interrupted experiment goes on where it was. They are found by content (model, plan, prompt, edit,
            ...), never by name.
        progress: Show a progress bar; a string is its label.

    A KeyboardInterrupt returns the finished batches, with `finished=False` (shown wherever the result is); before the
    first is finished it is raised. Any other error carries them in its attribute `result`.

    Raises:
        RecordError: before the first forward, for a `save_to` that is there and holds no scores.
        SaveError: before the first forward, for a `save_to` that cannot be written; or a disk that got full.
        ValueError: before the first forward, for what cannot be run: two conditions that are the same edit, say.
        ContentError: before the first forward, for an edit, a task or a model whose content cannot be told.
        NeverExposed: a condition or a control that met no scored place, because no forward that decided one edited a
            key; before the first forward where that can be known, else with the finished `result` on the error.
        PartlyExposed: a warning: some were decided by forwards that edited nothing (`exposed` of the scores).
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)} must not be empty or name one twice")
    asked = _task(task)
    if metrics is None:
        metrics = ("agreement", "order", "kl") if isinstance(asked, Prompts) else ("forced_accuracy", "accuracy")
    metrics = known(list(metrics))
    arms = arms_of(conditions, controls)
    runner = Runner(dlm, asked, plan or Plan(), metrics)
    runner.job.check(arms)
    store = ScoreStore(save_to)
    together = max(1, batch_size // len(arms))  # prompts in a forward
    batches = [runner.order[start : start + together] for start in range(0, len(asked), together)]
    finished = False
    label = progress if isinstance(progress, str) else "ablating"
    total = len(seeds) * len(asked) * len(runner.job.passes)

    def so_far() -> AblationResult:
        return _result(runner, store, arms, seeds, finished)

    try:
        try:
            with tqdm(total=total, desc=label, unit="prompt", disable=hidden(progress), leave=False) as bar:
                for seed in seeds:
                    for batch in batches:
                        for which in runner.job.passes:
                            _score(runner, store, arms, batch, seed, which, batch_size)
                            bar.update(len(batch))
            finished = True
        except KeyboardInterrupt:
            if not so_far().scores:
                raise
            tqdm.write(f"interrupted; returning {len(so_far().scores)} finished scores")
        result = so_far()
        if finished:
            judge(result, arms)
        return result
    except BaseException as error:
        kept = again(so_far)
        if kept.scores and getattr(error, "result", None) is None:
            error.result = kept  # pyright: ignore[reportAttributeAccessIssue]
            error.add_note(f"{kept!r} is in this error's attribute `result`")
        raise


def _result(
    runner: Runner, store: ScoreStore, arms: Sequence[Arm], seeds: Sequence[int], finished: bool
) -> AblationResult:
    """The scores that the store holds, in the order of seeds and prompts, and what made them."""
    scores = [
        score
        for seed in seeds
        for index in range(len(runner.job.examples))
        for which in runner.job.passes
        for score in _stored(runner, store, arms, index, seed, which)
    ]
    made = provenance(
        runner.dlm,
        fingerprint=runner.identity["model"],
        plan=runner.identity["plan"],
        task=runner.task.name,
        prompts=len(runner.job.examples),
        seeds=list(seeds),
        conditions={f"{arm.condition} ({arm.kind})": plain(arm.edit) for arm in arms},
        read_as={f"{arm.condition} ({arm.kind})": repr(arm.edit) for arm in arms},
        metrics=list(runner.metrics),
        finished=finished,
    )
    return AblationResult(scores, finished, made)


@reads()
def doses(name: str, values: Sequence[Any], make: Callable[[Any], Edit]) -> dict[str, Edit]:
    """Conditions for a dose-response curve: one per value, named "name=value".

    For example `doses("k", [1, 5, 10], lambda k: MaskSinks(PreviousStep(top_k=k)))`, or over epsilon, layers or steps:
    `doses("layer", range(dlm.n_layers), lambda i: MaskSinks(where=Scope(layers=i)))`. `plots.dose_response` draws them.

    Args:
        name: What is varied.
        values: Its values, numbers for a curve.
        make: The edit for a value.

    Raises:
        ValueError: two values that are written alike.
    """
    conditions = {f"{name}={value}": make(value) for value in values}
    if len(conditions) < len(values):
        raise ValueError(f"{name} has {len(values)} values, of which some are written alike: {', '.join(conditions)}")
    return conditions


def _task(task: Any) -> Task:
    if isinstance(task, Task):
        return task
    if hasattr(task, "score"):
        raise ValueError(f"{task!r} can score, but is no task; give its class the base sinklens.tasks.Task")
    return Prompts(task)


def _score(
    runner: Runner, store: ScoreStore, arms: Sequence[Arm], batch: Sequence[int], seed: int, which: Pass, rows: int
) -> None:
    """Run one batch where the store does not hold its scores yet."""
    keys = {(arm.content, index): runner.key(index, seed, arm, which) for arm in arms for index in batch}
    edits = {arm.content: arm.edit for arm in arms if arm.edit is not None}
    left = [index for index in batch if any(keys[content, index] not in store.scores for content in (None, *edits))]
    missing = [content for content in edits if any(keys[content, index] not in store.scores for index in left)]
    for scored in runner.run(left, seed, [edits[content] for content in missing], which, rows=rows) if left else ():
        contents, missing = [None, *missing[: len(scored) - 1]], missing[len(scored) - 1 :]
        new = {}
        for content, of_edit in zip(contents, scored, strict=True):
            new |= {keys[content, index]: score for index, score in zip(left, of_edit, strict=True)}
        store.add(new)


def _stored(
    runner: Runner, store: ScoreStore, arms: Sequence[Arm], index: int, seed: int, which: Pass
) -> list[dict[str, Any]]:
    """Scores of one prompt under all arms; none if one of them is not there yet."""
    found = [(arm, store.scores.get(runner.key(index, seed, arm, which))) for arm in arms]
    scores: list[dict[str, Any]] = []
    for arm, stored in found:
        if stored is None:
            return []
        names = {"model": runner.dlm.name, "task": runner.task.name, "prompt": index}
        names |= {"name": runner.job.examples[index].name, "seed": seed, "condition": arm.condition, "kind": arm.kind}
        counts = {name: stored[name] for name in ("edited_keys", "edited_mass", "kept")}
        for metric in (name for name in runner.metrics if name in stored["values"]):
            measured = Measured(*stored["values"][metric])
            scores.append({**names, "metric": metric, **measured._asdict(), **counts})
    return scores
