"""Accuracy against the share of keys that is kept: one curve per way to choose them, beside the sinks alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from sinklens.decoding.plan import Plan
from sinklens.errors import ContentError, TaskError
from sinklens.experiments.ablation import ablate
from sinklens.experiments.batch import Repetition
from sinklens.experiments.job import Job
from sinklens.experiments.results import UNMASKED, AblationResult
from sinklens.hooks import Edit, Scope
from sinklens.interventions import KeepKeys, LearnedSelection, MaskSinks, SameStep, control
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.outline import Sketched
from sinklens.selection import places, reading
from sinklens.sinks import Positions, SinkRule
from sinklens.tasks import Prompts, Task
from sinklens.values.kinds import Count, reads

Ranking = Literal["received", "key_norm", "hidden_norm", "recency", "random", "random_tokens"]
RATES = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
RANDOM, RANDOM_TOKENS, LEARNED, BY_CHANCE = "random", "random_tokens", "learned", " by chance"
WITHOUT_SINKS, WITHOUT_OTHERS = "without sinks", "without as many others"


@reads()
def budget_edits(
    rates: Sequence[float] = RATES,
    selectors: Sequence[Ranking] = RANKINGS,
    *,
    gates: Mapping[str, str] | None = None,
    draws: Count = 3,
    sinks: SinkRule | None = SinkRule(),
    where: Scope | None = None,
    queries: Positions = "all",
) -> dict[str, Edit]:
    """The conditions of a budget curve: each selector at each rate, and the sinks alone.

    "SELECTOR=RATE" keeps that share of the keys, as `interventions.KeepKeys` has it; what is random ("random" in each
    head by itself, "random_tokens" in all heads of a layer alike) comes `draws` times, as "random#0=RATE" and so on. A
    gate comes with its control, "GATE by chance#0=RATE": as many tokens as it keeps in each row, layer and step.
    "without sinks" drops the keys that a rule calls sinks and nothing else, "without as many others" as many random
    other keys: the same budget, so their difference is what a sink is worth more than another key. A rate of 1 keeps
    everything: it is the unedited run, and has no condition.

    Args:
        rates: Shares of keys, in (0, 1].
        selectors: How keys are ranked.
        gates: Further selectors: trained gates (`interventions.LearnedSelection`), by what they are to be called.
        draws: Seeds of each random choice.
        sinks: What a sink is, in the forward that is edited; None leaves the two conditions out.
        where: Layers, heads and steps in which keys are dropped, by every selector alike. None: everywhere, and beside
            gates in the layers in which these choose (mostly all but the first).
        queries: Which queries see only what is kept.

    Raises:
        ContentError: a rate outside (0, 1], a rate or a selector that is named twice, nothing left to compare, a gate
            with a name that means something else.
        GateError: no such gate.
    """
    _check_rates(rates)
    gates = gates or {}
    names = [*selectors, *gates]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        raise ContentError(f"selectors={names} " + ("names one twice" if twice else "is empty"))
    for name in gates:
        if not name or set("=#") & set(name) or name in (*RANKINGS, UNMASKED, WITHOUT_SINKS, WITHOUT_OTHERS):
            raise ContentError(f"a gate cannot be called {name!r}: give it a name of its own, without '=' and '#'")
    if where is None:
        first = max((reading.load(gate).shape.first for gate in gates.values()), default=0)
        where = Scope(layers=slice(first, None)) if first else Scope()
    edits: dict[str, Edit] = {}
    for selector in selectors:
        for rate in sorted(rate for rate in rates if rate < 1):
            if selector in (RANDOM, RANDOM_TOKENS):
                for draw in range(draws):
                    name = f"{selector}#{draw}={rate!r}"
                    edits[name] = KeepKeys(rate, selector, seed=draw, where=where, queries=queries)
            else:
                edits[f"{selector}={rate!r}"] = KeepKeys(rate, selector, where=where, queries=queries)
    for name, gate in gates.items():
        for rate in sorted(rate for rate in rates if rate < 1):
            edits[f"{name}={rate!r}"] = edit = LearnedSelection(gate, rate=rate, where=where, queries=queries)
            for draw in range(draws):
                edits[f"{name}{BY_CHANCE}#{draw}={rate!r}"] = control(edit, RANDOM, draw)
    if sinks is not None:
        edits[WITHOUT_SINKS] = MaskSinks(SameStep(sinks), where=where, queries=queries)
        edits[WITHOUT_OTHERS] = control(edits[WITHOUT_SINKS], RANDOM)
    return edits


def gates_for(model: Sketched, gates: Mapping[str, str] | None) -> dict[str, str]:
    """The gates for a model: those that were named, "auto" resolved; when None the one that comes with sinklens.

    Raises:
        GateError: "auto", and no gate comes with sinklens for this model.
    """
    if gates is None:
        return {LEARNED: str(model.name)} if str(model.name) in places.names() else {}
    return {name: places.find(gate, model).name if gate == places.AUTO else gate for name, gate in gates.items()}


def _check_rates(rates: Sequence[float]) -> None:
    wrong = [rate for rate in rates if not 0 < rate <= 1]
    if wrong:
        raise ContentError(f"rate {wrong[0]!r} is outside (0, 1]; a rate is the share of keys that is kept")
    if len(set(rates)) < len(rates) or not any(rate < 1 for rate in rates):
        what = "names one twice" if len(set(rates)) < len(rates) else "drops nothing; name a rate below 1"
        raise ContentError(f"rates={list(rates)} {what}")


def check_lengths(model: Sketched, task: Task, plan: Plan, rates: Sequence[float], metrics: Sequence[str]) -> int:
    """Raise, before a forward, for rates that mean nothing on the shortest prompt of a task.

    Returns:
        The number of keys of the shortest prompt at its first step (a baseline has no more, a diffusion model's canvas
        is whole).

    Raises:
        TaskError: a rate that is less than one key of it, or below 1 and yet keeps all of them.
        ValueError: as in `experiments.job.Job`.
    """
    _check_rates(rates)
    canvas = Job(model, task, plan, metrics).start.canvas
    keys = int(canvas.positions("prompt" if model.is_causal else "all").sum(-1).min())
    low, high = 1 / keys, 1 - 1 / keys
    less = [rate for rate in rates if rate * keys < 1 - 1e-9]
    whole = [rate for rate in rates if rate < 1 and math.ceil(rate * keys - 1e-9) == keys]
    if less or whole:
        rate, why = (less[0], "is less than one of them") if less else (whole[0], "keeps all of them")
        raise TaskError(
            f"rate {rate!r} means nothing on the shortest prompt of {task.name!r}: it has {keys} keys at its first "
            f"step, and {rate!r} {why}. Give rates from {math.ceil(low * 1000) / 1000:g} to "
            f"{math.floor(high * 1000) / 1000:g} (and 1), or longer prompts"
        )
    return keys


@reads("task")
def budget_curve(
    dlm: HookedDLM,
    task: Task | Sequence[Any],
    rates: Sequence[float] = RATES,
    selectors: Sequence[Ranking] = RANKINGS,
    plan: Plan | None = None,
    *,
    gates: Mapping[str, str] | None = None,
    seeds: Sequence[Repetition] = (0,),
    metrics: Sequence[str] | None = None,
    batch_size: Count = 128,
    save_to: str | Path | None = None,
    progress: bool | str = True,
    **options: Any,
) -> AblationResult:
    """Measure a model that sees only a share of its keys, for every rate and way to choose them, on the same prompts.

    One ablation (`ablate`) of the conditions of `budget_edits`, paired by prompt and seed. `budget_table` makes the
    curves of it, `plots.budgets` draws them. A key that is dropped at one step may be back at the next.

    Args:
        dlm: The model.
        task: As in `ablate`.
        rates: Shares of keys, in (0, 1]. 1 is the unedited run.
        selectors: How keys are ranked.
        plan: As in `ablate`.
        gates: As in `budget_edits`; when None the gate that comes with sinklens for the model, as "learned", if there
            is one.
        seeds: As in `ablate`.
        metrics: As in `ablate`; forced_accuracy for a task and kl for prompts when None.
        batch_size: As in `ablate`.
        save_to: As in `ablate`; an interrupted curve goes on where it was.
        progress: As in `ablate`.
        **options: Further arguments of `budget_edits`.

    Raises:
        ContentError: as in `budget_edits`.
        GateError: no such gate, or one of another model.
        TaskError: rates that mean nothing on the shortest prompt (`check_lengths`).
        ValueError: as in `ablate`.
        NeverExposed: as in `ablate`: no key was a sink, say; `sinks=None` leaves them out.
    """
    edits = budget_edits(rates, selectors, gates=gates_for(dlm, gates), **options)
    asked = task if isinstance(task, Task) else Prompts(task)
    if metrics is None:
        metrics = ("kl",) if isinstance(asked, Prompts) else ("forced_accuracy",)
    check_lengths(dlm, asked, plan or Plan(), rates, metrics)
    label = progress if isinstance(progress, str) else "budgets"
    return ablate(
        dlm,
        asked,
        edits,
        plan,
        seeds=seeds,
        controls=None,
        metrics=metrics,
        batch_size=batch_size,
        save_to=save_to,
        progress=label if progress else False,
    )
