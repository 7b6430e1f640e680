"""The causal experiment: the same prompts and seeds under several conditions, paired, with controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm import tqdm
from transformer_lens.utilities.statistics import bootstrap_ci, success_rate_ci

from sinklens.interventions import SinkEdit, random_control
from sinklens.model import HookedDLM
from sinklens.plan import Plan
from sinklens.tasks import Task
from sinklens.trials import Outcome, Store, Trials

if TYPE_CHECKING:
    import pandas as pd

UNMASKED = "unmasked"


@dataclass(frozen=True)
class Effect:
    """What a condition does to accuracy, paired by prompt and seed, with 95 % bootstrap intervals.

    Attributes:
        condition: Name of the condition.
        outcome: "generated" or "forced".
        pairs: Number of (prompt, seed) pairs that could be scored under all sides.
        to_unmasked: Mean of accuracy(condition) - accuracy(unmasked), in [-1, 1]; negative = it hurts.
        to_unmasked_interval: Its interval.
        to_control: Mean of accuracy(condition) - accuracy(random control): the difference of differences. None
            without a control.
        to_control_interval: Its interval.
    """

    condition: str
    outcome: str
    pairs: int
    to_unmasked: float
    to_unmasked_interval: tuple[float, float]
    to_control: float | None
    to_control_interval: tuple[float, float] | None


@dataclass(frozen=True)
class AblationResult:
    """One row per prompt, seed, condition, kind and outcome; `finished` is False after an interrupt.

    Row fields: model, prompt (index), name, seed, condition, kind (unmasked | sinks | random), outcome, correct,
    total, accuracy (nan where nothing was checkable), edited_keys (over steps, layers and heads).
    """

    rows: list[dict[str, Any]]
    finished: bool = True

    def to_dataframe(self) -> pd.DataFrame:
        """All rows."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def _paired(self, outcome: str, *sides: tuple[str, str]) -> torch.Tensor:
        tables = []
        for condition, kind in sides:
            found = {
                (row["prompt"], row["seed"]): row["accuracy"]
                for row in self.rows
                if row["condition"] == condition and row["kind"] == kind and row["outcome"] == outcome
            }
            if not found:
                known = sorted({(row["condition"], row["kind"], row["outcome"]) for row in self.rows})
                raise ValueError(f"there are no rows for {(condition, kind, outcome)}; there are {known}")
            tables.append(found)
        pairs = sorted(set.intersection(*(set(table) for table in tables)))
        values = torch.tensor([[table[pair] for pair in pairs] for table in tables], dtype=torch.float64)
        return values[:, ~values.isnan().any(0)]

    def effect(self, condition: str, outcome: Outcome = "forced") -> Effect:
        """Effect of a condition against unmasked and against its random control.

        Raises:
            ValueError: a condition or outcome that was not run; nothing that could be scored.
        """
        controlled = any(row["condition"] == condition and row["kind"] == "random" for row in self.rows)
        sides = [(UNMASKED, UNMASKED), (condition, "sinks")] + ([(condition, "random")] if controlled else [])
        values = self._paired(outcome, *sides)
        if not values.shape[1]:
            raise ValueError(f"no prompt could be scored for {condition!r}, outcome {outcome!r}")
        return Effect(
            condition,
            outcome,
            values.shape[1],
            *_mean_and_interval(values[1] - values[0]),
            *(_mean_and_interval(values[1] - values[2]) if controlled else (None, None)),
        )

    def summary(self) -> pd.DataFrame:
        """Mean accuracy per condition, kind and outcome with a 95 % interval over prompts and seeds.

        Percentile bootstrap; exact (Clopper-Pearson over examples) where every example scores 0 or every one 1.
        Columns: model, outcome, condition, kind, accuracy, low, high, scored (examples), places (checked tokens).
        """
        import pandas as pd

        out = []
        frame = self.to_dataframe()
        keys = ["model", "outcome", "condition", "kind"]
        grouped: Any = frame.groupby(keys, sort=False)
        for names, group in grouped:
            values = torch.tensor(group["accuracy"].to_numpy(dtype=float))
            values = values[~values.isnan()]
            mean, (low, high) = _accuracy_and_interval(values) if len(values) else (float("nan"), (float("nan"),) * 2)
            out.append((*names, mean, low, high, len(values), int(group["total"].sum())))
        return pd.DataFrame(out, columns=[*keys, "accuracy", "low", "high", "scored", "places"])


def _mean_and_interval(values: torch.Tensor) -> tuple[float, tuple[float, float]]:
    low, high = bootstrap_ci(values, n_resamples=2000)
    return float(values.mean()), (float(low), float(high))


def _accuracy_and_interval(values: torch.Tensor) -> tuple[float, tuple[float, float]]:
    """As above; where all examples are entirely right or all wrong, a bootstrap would claim certainty, so exact."""
    if len(values) and bool((values == values[0]).all()) and float(values[0]) in (0.0, 1.0):
        exact = success_rate_ci([bool(value) for value in values])
        return float(values[0]), (exact.ci_low, exact.ci_high)
    return _mean_and_interval(values)


def ablate(
    dlm: HookedDLM,
    task: Task,
    conditions: Mapping[str, SinkEdit],
    plan: Plan | None = None,
    *,
    seeds: Sequence[int] = (0,),
    controls: Literal["random"] | None = "random",
    outcomes: Sequence[Outcome] = ("forced", "generated"),
    batch_size: int = 32,
    save_to: str | Path | None = None,
    progress: bool | str = True,
) -> AblationResult:
    """Accuracy unmasked, under each condition, and under its matched random control, on the same prompts and seeds.

    Args:
        dlm: The model.
        task: Prompts plus a checker (`tasks.Echo`, `tasks.Jsonl`).
        conditions: Edits by name.
        plan: How to decode.
        seeds: Repetitions; each prompt gets its own seed from each.
        controls: "random": as many random non-sink keys in the same scope. None must be asked for.
        outcomes: "forced": the true answer is committed whatever the model says, and what it would have said is
            checked, so that the scored places are the same under every condition. "generated": the model's own
            completion is checked.
        batch_size: Prompts per forward.
        save_to: A JSONL file that gets the rows of every finished batch. Batches that it already holds are not
            run again, so an interrupted experiment goes on where it was.
        progress: Show a progress bar; a string is its label.

    A KeyboardInterrupt returns the finished batches.
    """
    if UNMASKED in conditions:
        raise ValueError(f"the condition name {UNMASKED!r} is taken by the unedited run")
    if not outcomes or set(outcomes) - {"forced", "generated"}:
        raise ValueError(f"outcomes={list(outcomes)} must be some of 'forced', 'generated'")
    if batch_size < 1 or not seeds:
        raise ValueError(f"batch_size={batch_size} must be at least 1 and seeds={list(seeds)} must not be empty")
    plan = plan or Plan()
    if dlm.is_causal:
        plan = plan.for_causal()
    arms: list[tuple[str, str, SinkEdit | None]] = [(UNMASKED, UNMASKED, None)]
    for name, edit in conditions.items():
        arms.append((name, "sinks", edit))
        if controls is not None:
            arms.append((name, "random", random_control(edit)))
    trials = Trials(dlm, task, plan, list(outcomes))
    store = Store(save_to)
    batches = [range(start, min(start + batch_size, len(task))) for start in range(0, len(task), batch_size)]
    jobs: list[Any] = [
        (seed, batch, arm, outcome) for seed in seeds for batch in batches for outcome in outcomes for arm in arms
    ]
    rows: list[dict[str, Any]] = []
    finished = False
    try:
        for seed, batch, (condition, kind, edit), outcome in tqdm(
            jobs, desc=progress if isinstance(progress, str) else "ablating", disable=progress is False, leave=False
        ):
            marks = {index: trials.fingerprint(index, seed, edit, outcome) for index in batch}
            left = [index for index, mark in marks.items() if mark not in store.rows]
            if left:
                store.add({marks[row["prompt"]]: row for row in trials.run(left, seed, edit, outcome)})
            names = {"model": dlm.name, "task": task.name, "seed": seed, "condition": condition, "kind": kind}
            rows += [{**names, "outcome": outcome, **store.rows[mark], "prompt": i} for i, mark in marks.items()]
        finished = True
    except KeyboardInterrupt:
        tqdm.write(f"interrupted; returning {len(rows)} finished rows")
    return AblationResult(rows, finished)
