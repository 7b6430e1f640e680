"""Exercises of chapter 6: your own probe, your own study."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch

from sinklens.course.answers import Wrong, array, call, choice, near
from sinklens.course.checking import exercise
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.experiments.ablation import ablate
from sinklens.hooks import Probe
from sinklens.interventions import Fixed, MaskSinks
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import Echo

MARGIN = 0.1


@exercise("6.1", "a class below sl.Probe that records how far each query looks [layer, head, query]")
def reach(answer: Any) -> str:
    """What its hooks record, against the pattern of the same forward."""
    if not (inspect.isclass(answer) and issubclass(answer, Probe)):
        raise Wrong(f"expected a class below sl.Probe (the class, not an object of it), and got {answer!r}")
    dlm, prompt = HookedDLM.from_pretrained("tiny-dlm"), Echo(n=1, seed=9)[0].prompt
    probe = call(answer)
    run = call(denoise, dlm, prompt, Plan(new_tokens=5, steps=1), probes=[probe], progress=False)
    name = getattr(probe, "name", None)
    if name not in run.record:
        raise Wrong(f"the record has no variable {name!r}; it has {', '.join(map(str, run.record.data_vars))}")
    recorded = run.record[name]
    if {"layer", "head", "query"} - set(recorded.dims):
        raise Wrong(f"its dims are {recorded.dims}; ('layer', 'head', 'query') are asked for")
    got = recorded.isel(prompt=0, step=0).transpose("layer", "head", "query").to_numpy()
    with torch.no_grad():
        _, seen = dlm.run_with_cache(torch.from_numpy(run.record["canvas"].isel(step=0).to_numpy()).long())
    patterns = np.stack([seen[f"blocks.{layer}.attn.hook_pattern"][0].numpy() for layer in range(2)])
    places = np.arange(patterns.shape[-1])
    away = places - places[:, None]  # [query, key]
    mistakes = {
        "the distance has a sign here: what lies left counts against what lies right; take |i - j|": away,
        "these are squares; take |i - j|": away**2,
    }
    wrong = {says: (patterns * distance).sum(-1) for says, distance in mistakes.items()}
    wrong["the other way round, with a sign: take |i - j|"] = -(patterns * away).sum(-1)
    wrong["you summed over queries; sum over keys"] = (patterns * np.abs(away)).sum(-2)
    wrong["that is a mean over keys; rows sum to 1 already, so take the sum"] = (patterns * np.abs(away)).mean(-1)
    near(got, (patterns * np.abs(away)).sum(-1), tolerance=1e-3, mistakes=wrong)
    return "it records what the pattern says"


@exercise("6.2", "the reach of each of 32 queries under uniform attention: an array [32]")
def null(answer: Any) -> str:
    """Mean distance to all positions."""
    keys = 32
    truth = np.array([(i * (i + 1) / 2 + (keys - 1 - i) * (keys - i) / 2) / keys for i in range(keys)])
    mistakes = {
        "you left the query itself out; under uniform attention it looks at itself, too": truth * keys / (keys - 1),
        "that is the sum of distances; each key has the weight 1 / 32": truth * keys,
    }
    got = array(answer)
    if got.size == 1:
        raise Wrong("one number for all queries; the ends look farther than the middle")
    near(got, truth, tolerance=1e-3, mistakes=mistakes)
    return f"from {truth.min():.1f} in the middle to {truth.max():.1f} at the ends: a 9 may be near or far"


@exercise("6.3", "a function (low, high, margin) that returns a set of 'different' and 'equivalent'")
def verdict(answer: Any) -> str:
    """Every combination."""
    cases = (
        (-0.30, -0.15, {"different"}, "a large loss"),
        (0.15, 0.30, {"different"}, "a large gain"),
        (-0.05, 0.04, {"equivalent"}, "an interval around 0 inside of the margin"),
        (-0.05, -0.01, {"different", "equivalent"}, "a small loss, measured well"),
        (-0.25, 0.15, set(), "a wide interval around 0: nothing is shown"),
        (-0.25, 0.05, set(), "an interval that leaves the margin on one side"),
    )
    for low, high, truth, says in cases:
        got = call(answer, low, high, MARGIN)
        if isinstance(got, str) or not hasattr(got, "__iter__"):
            raise Wrong(f"expected a set, and got {got!r}")
        if set(got) != truth:
            raise Wrong(f"for [{low}, {high}] and a margin of {MARGIN} ({says}) it returns {set(got) or '{}'}")
    return "no effect shown is not no effect: that is what the empty set is for"


@cache
def effect() -> tuple[float, float]:
    """The chapter's effect of the first token against random keys: low and high."""
    edits = {"first token": MaskSinks(Fixed([0]))}
    dlm, task = HookedDLM.from_pretrained("tiny-dlm"), Echo(n=24, seed=2)
    found = ablate(dlm, task, edits, Plan(new_tokens=32), metrics=["forced_accuracy"], progress=False)
    row = found.effects().iloc[0]
    return float(row["to_control_low"]), float(row["to_control_high"])


@exercise("6.4", 'one of "needed", "not needed", "not shown"')
def claim(answer: Any) -> str:
    """By the rule written before."""
    low, high = effect()
    said = choice(answer, ("needed", "not needed", "not shown"))
    truth = "needed" if high < 0 else "not needed" if low > -MARGIN and high < MARGIN else "not shown"
    told = f"the interval is [{low:.3f}, {high:.3f}], the margin {MARGIN}"
    if said != truth:
        raise Wrong(f"{told}; what did the rule say, before the run?")
    return f"{told}; and not a word about other models"


@exercise("6.5", "the four p-values after Holm's correction: an array [4]")
def holm(answer: Any) -> str:
    """Step down, by the definition."""
    p = [0.03, 0.20, 0.01, 0.04]
    truth, running = np.empty(4), 0.0
    for rank, index in enumerate(sorted(range(4), key=p.__getitem__)):
        running = max(running, min(1.0, p[index] * (4 - rank)))
        truth[index] = running
    mistakes = {
        "that is Bonferroni: each times 4; Holm multiplies later ones by less": np.minimum(1, 4 * np.array(p)),
        "a later one is smaller than one before it: take the running maximum": [0.09, 0.20, 0.04, 0.08],
        "that is sorted; put them back into the old order": np.sort(truth),
    }
    near(answer, truth, tolerance=1e-9, mistakes=mistakes)
    return ".03 and .04 are not below .05 any more"
