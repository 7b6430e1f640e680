"""What a budget curve found: a line per selector and rate, and the rate at which a model breaks. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sinklens.errors import ContentError
from sinklens.experiments.budgets import BY_CHANCE, RANDOM, RANDOM_TOKENS, WITHOUT_OTHERS, WITHOUT_SINKS
from sinklens.experiments.exposure import exposed
from sinklens.experiments.outcomes import METRICS
from sinklens.experiments.results import UNMASKED, AblationResult
from sinklens.experiments.statistics import (
    difference_and_interval,
    holm,
    mean_and_interval,
    permutation_p,
    rate_and_interval,
)
from sinklens.values.kinds import AtLeastZero, reads

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

COLUMNS = [
    *("selector", "rate", "kept", "kept_low", "kept_high", "metric", "value", "low", "high", "pairs", "exposed"),
    *("to_unmasked", "to_unmasked_low", "to_unmasked_high", "to_unmasked_p", "to_unmasked_p_holm"),
    *("to_random", "to_random_low", "to_random_high", "to_random_p", "to_random_p_holm", "to_random_kept"),
]
CONTROLS = {
    "received": RANDOM,
    "key_norm": RANDOM,
    "hidden_norm": RANDOM_TOKENS,
    "recency": RANDOM_TOKENS,
    WITHOUT_SINKS: WITHOUT_OTHERS,
}  # of any other, a gate, its own
Key = tuple[str, float | None]


@reads()
def budget_table(result: AblationResult, metric: str | None = None) -> pd.DataFrame:
    """The curves of a `budget_curve`: a line per selector and rate, with 95 % intervals over prompts.

    Columns: selector ("unmasked" first; "without sinks" and "without as many others" have no rate); rate (the share
    asked for, 0 to 1); kept (the share of keys kept in truth, over all steps, layers and heads in scope: mean over
    prompts, and the lowest and highest prompt as kept_low and kept_high; a budget is rounded up to whole keys); metric,
    value, low, high, pairs (prompts that could be scored); exposed (as in `AblationResult.scores`); to_unmasked and
    to_random (differences paired by prompt, with intervals, p-values of sign-flip permutations, and these after Holm's
    correction over the table). Of what is random everything is the mean over its draws, within each prompt.

    to_random is the difference to the control at the same budget: "random" for "received" and "key_norm", which choose
    in each head by itself; "random_tokens" for "hidden_norm" and "recency", which choose for all heads of a layer;
    "GATE by chance" for a gate, at the budget that the gate itself chose; "without as many others" for "without sinks".
    to_random_kept: how much more was kept in truth than by that control, as a share of the keys, over the pairs of
    to_random. A gate reads the residual stream of the run that it edits, so it may ask for other budgets there than in
    the run of its control; where this is not about 0, part of to_random is the budget's.

    Args:
        result: What `budget_curve` returned; also of an interrupted one, as far as it is.
        metric: Which metric; the first that was measured when None.

    Raises:
        ContentError: no such metric, or no condition of a budget curve.
    """
    import pandas as pd

    measured = list(dict.fromkeys(score["metric"] for score in result.scores))
    asked = metric or next(iter(measured), "")
    conditions = list(dict.fromkeys(score["condition"] for score in result.scores))
    groups: dict[Key, list[str]] = {}
    for name in conditions:
        groups.setdefault(_key(name), []).append(name)
    if asked not in measured or not any(rate is not None for _, rate in groups):
        what = "this is no budget curve" if asked in measured else f"metric {asked!r} was not measured"
        raise ContentError(f"{what}; there are the metrics {measured} of the conditions {conditions}")
    frame: Any = pd.DataFrame([_line(result, asked, key, groups) for key in groups]).reindex(columns=COLUMNS)
    for name in ("to_unmasked", "to_random"):
        frame[f"{name}_p_holm"] = holm([float(p) for p in frame[f"{name}_p"]])
    return frame


def _key(condition: str) -> Key:
    """Selector and rate; several draws are one selector."""
    selector, equals, rate = condition.partition("=")
    try:
        return selector.partition("#")[0], float(rate) if equals else None
    except ValueError:
        return condition, None


def _line(result: AblationResult, metric: str, key: Key, groups: Mapping[Key, list[str]]) -> dict[str, Any]:
    """One line of the table."""
    selector, rate = key
    kind = UNMASKED if selector == UNMASKED else "sinks"
    sides = [(name, kind) for name in groups[key]]
    values = result.paired(metric, (UNMASKED, UNMASKED), *sides)
    line = {"selector": selector, "rate": rate, "metric": metric, "pairs": values.shape[1]}
    line |= _kept(result, metric, groups[key])
    if not values.shape[1]:
        return line
    own = values[1:].mean(0)
    share = metric in METRICS and METRICS[metric].share
    line["value"], (line["low"], line["high"]) = rate_and_interval(own) if share else mean_and_interval(own)
    if selector == UNMASKED:
        return line | {"rate": 1.0, "kept": 1.0, "kept_low": 1.0, "kept_high": 1.0}
    line |= _difference("to_unmasked", own - values[0], share)
    beside = groups.get((CONTROLS.get(selector, f"{selector}{BY_CHANCE}"), rate), [])
    if not beside:
        return line
    values = result.paired(metric, *sides, *((name, "sinks") for name in beside))
    if not values.shape[1]:
        return line
    difference = _difference("to_random", _less(values, len(sides)), share)
    kept = _kept_in_place(result).paired(metric, *sides, *((name, "sinks") for name in beside))
    return line | difference | {"to_random_kept": float(_less(kept, len(sides)).mean())}


def _less(values: Tensor, own: int) -> Tensor:
    """How much more the first sides [side, prompt] have than the others, in each prompt."""
    return values[:own].mean(0) - values[own:].mean(0)


def _kept_in_place(result: AblationResult) -> AblationResult:
    """The shares that were kept, as values; nan also where nothing could be scored, so that the pairs are the same."""
    counted = [not math.isnan(score["value"]) and score["kept"] is not None for score in result.scores]
    pairs = zip(result.scores, counted, strict=True)
    return AblationResult([score | {"value": score["kept"] if known else math.nan} for score, known in pairs])


def _difference(name: str, values: Any, share: bool) -> dict[str, Any]:
    mean, (low, high) = difference_and_interval(values, share)
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_p": permutation_p(values)}


def _kept(result: AblationResult, metric: str, conditions: list[str]) -> dict[str, float]:
    """The share of keys that was kept, by prompt; and how much of what is scored the edit met."""
    import pandas as pd

    mine = [score for score in result.scores if score["condition"] in conditions and score["metric"] == metric]
    shares: Any = pd.DataFrame(mine, columns=["prompt", "kept"]).dropna()
    by_prompt = shares.groupby("prompt")["kept"].mean()
    met = [share for (_, _, which), share in exposed(mine).items() if which == metric]
    found = {"kept": by_prompt.mean(), "kept_low": by_prompt.min(), "kept_high": by_prompt.max()}
    return found | ({"exposed": sum(met) / len(met)} if met else {})


@reads()
def breaking_point(table: pd.DataFrame, margin: AtLeastZero | None = None) -> pd.DataFrame:
    """Down to which rate a model holds, for each selector of a `budget_table`.

    A model holds at a rate if the metric is not shown to be below unmasked there (p after Holm from 0.05 on); with a
    margin, if it is shown to be less than that below it (the 95 % interval of the difference lies above -margin). The
    latter is the stronger claim: few prompts show nothing, and so "break" nothing. A rate counts only if the model
    holds at every higher rate of the table, too. For metrics of which more is better.

    Columns: selector; holds (the lowest such rate; nan if it does not hold at the highest); breaks (the highest rate at
    which it does not hold; nan if there is none); kept (the share kept in truth at `holds`); lost (the difference to
    unmasked at `breaks`) with its interval, lost_low and lost_high.

    Args:
        table: Of one metric.
        margin: The largest loss that would not matter, in the unit of the metric.

    Raises:
        ContentError: a table that `budget_table` did not make.
    """
    import pandas as pd

    lacking = [name for name in COLUMNS if name not in table.columns]
    if lacking:
        raise ContentError(f"the table has no column {lacking[0]!r}; give what budget_table returns")
    curves: Any = table[table["rate"].notna() & (table["selector"] != UNMASKED)]
    lines: list[dict[str, Any]] = []
    for selector, part in curves.sort_values("rate", ascending=False, kind="stable").groupby("selector", sort=False):
        if margin is None:
            below = (part["to_unmasked"] < 0) & (part["to_unmasked_p_holm"] < 0.05)
        else:
            below = ~(part["to_unmasked_low"] > -margin)
        held = part[below.cumsum() == 0]
        line: dict[str, Any] = {"selector": selector}
        if len(held):
            line |= {"holds": held["rate"].iloc[-1], "kept": held["kept"].iloc[-1]}
        if below.any():
            first = part[below].iloc[0]
            line |= {"breaks": first["rate"], "lost": first["to_unmasked"]}
            line |= {"lost_low": first["to_unmasked_low"], "lost_high": first["to_unmasked_high"]}
        lines.append(line)
    return pd.DataFrame(lines).reindex(columns=["selector", "holds", "breaks", "kept", "lost", "lost_low", "lost_high"])
