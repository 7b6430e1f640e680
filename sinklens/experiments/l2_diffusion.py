"""Key norms in diffusion models, step by step: do small keys receive more attention, and is keeping them enough?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklens.analysis.norms import key_norm_correlation
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.errors import Unsupported
from sinklens.experiments.budgets import RATES, budget_curve
from sinklens.experiments.results import AblationResult
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.probes import KeyNorm, ReceivedAttention
from sinklens.tasks import Task
from sinklens.values.kinds import Count, Seed, reads

if TYPE_CHECKING:
    import pandas as pd

SELECTORS = ("key_norm", "received", "recency", "random")
METRICS = ("accuracy",)
MEASURED = 8  # prompts whose attention is recorded


@dataclass(frozen=True, eq=False)
class NormsInDiffusion:
    """What `l2_in_diffusion` found.

    Attributes:
        correlation: Columns: step, key_type ("prompt", "committed", "mask", "eos"), correlation (Spearman's of -norm
            and received attention, mean over layers, heads and prompts; nan where there are fewer than 3 such keys).
        curve: The budget curve (`budget_table` makes its table).
    """

    correlation: pd.DataFrame
    curve: AblationResult


@reads("task")
def l2_in_diffusion(
    dlm: HookedDLM,
    task: Task,
    plan: Plan | None = None,
    *,
    rates: Sequence[float] = RATES,
    seed: Seed = 0,
    batch_size: Count = 128,
    save_to: str | Path | None = None,
    progress: bool | str = True,
) -> NormsInDiffusion:
    """The questions of arXiv 2406.11430 asked of a diffusion model, whose keys are computed anew at every step.

    Does low norm predict received attention, for prompt, committed and mask keys, at each step; and does keeping the
    keys of lowest norm hold at a rate at which keeping as many at random does not?

    Args:
        dlm: A diffusion model.
        task: Prompts and answers.
        plan: As in `ablate`.
        rates: As in `budget_curve`.
        seed: Of the runs.
        batch_size: As in `ablate`.
        save_to: As in `ablate`.
        progress: As in `ablate`.

    Raises:
        KeyboardInterrupt: as in `ablate`.
        Unsupported: an autoregressive model, which has a cache to cut: `l2`.
        TaskError: as in `budget_curve`.
    """
    if dlm.is_causal:
        raise Unsupported(f"{dlm.name} is autoregressive: its cache is cut by l2")
    curve = budget_curve(
        dlm,
        task,
        rates,
        SELECTORS,
        plan,
        gates={},
        sinks=None,
        seeds=(seed,),
        metrics=METRICS,
        batch_size=batch_size,
        save_to=save_to,
        progress=progress,
    )
    if not curve.finished:
        return NormsInDiffusion(_table([]), curve)
    prompts = [task[index].prompt for index in range(min(MEASURED, len(task)))]
    run = denoise(dlm, prompts, plan, probes=[ReceivedAttention(), KeyNorm()], seed=seed, progress=bool(progress))
    return NormsInDiffusion(by_step(run.record), curve)


def by_step(record: Any) -> pd.DataFrame:
    """The correlation at each step by type of key; see `NormsInDiffusion`."""
    rows: list[tuple[int, str, float]] = []
    for step in record["step"].to_numpy():
        table = key_norm_correlation(record.sel(step=[step]), by="key_type").mean("layer")
        rows += [(int(step), str(kind), float(table.sel(key_type=kind))) for kind in table["key_type"].to_numpy()]
    return _table(rows)


def by_type(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest of the steps, by type of key."""
    found: Any = table.groupby("key_type", sort=False)["correlation"].agg(["mean", "min", "max"])
    return found.reset_index()


def _table(rows: Sequence[tuple[int, str, float]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=["step", "key_type", "correlation"])
