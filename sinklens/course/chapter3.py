"""Exercises of chapter 3: where sinks are, and how they move."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinklens.analysis import rates
from sinklens.course.answers import Wrong, array, call, choice, near, number
from sinklens.course.checking import exercise
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.probes import ReceivedAttention
from sinklens.sinks import SinkRule
from sinklens.tasks import Echo

PACKAGE = Path(__file__).parents[1]
ADAPTED = "adapted/smollm2-135m-diffusion/log.jsonl"
KEYS = 8  # of the sets on which the function of 3.3 is tried


@cache
def record(name: str) -> xr.Dataset:
    """The chapter's record of a bundled model."""
    task = Echo(n=6, seed=1)
    prompts = [task[index].prompt for index in range(6)]
    dlm = HookedDLM.from_pretrained(name)
    return denoise(dlm, prompts, Plan(new_tokens=32), probes=[ReceivedAttention()], progress=False).record


@cache
def rows(log: str) -> list[dict[str, Any]]:
    """A training log that comes with the package."""
    return [json.loads(line) for line in (PACKAGE / log).read_text(encoding="utf-8").splitlines()]


@cache
def sinks(name: str) -> np.ndarray:
    """By the rule of the chapter, straight from what was received: [prompt, step, layer, head, key]."""
    received = record(name)["received"].transpose("prompt", "step", "layer", "head", "key").to_numpy()
    others = (np.nansum(received, -1, keepdims=True) - received) / (np.isfinite(received).sum(-1, keepdims=True) - 1)
    return np.nan_to_num(received - others) > 3


@exercise("3.1", "how many times more often than by chance EOS is a sink of tiny-dlm: a number")
def eos_ratio(answer: Any) -> str:
    """Share of sinks over share of keys."""
    seen, texts = sinks("tiny-dlm"), record("tiny-dlm")
    there = texts["canvas"].to_numpy() == HookedDLM.from_pretrained("tiny-dlm").ids.eos
    of_sinks = (seen & there[:, :, None, None]).sum() / seen.sum()
    of_keys = there.mean()
    mistakes = {
        "that is the share of sinks; masks have a large one, too: divide by the share of keys": of_sinks,
        "that is the share of keys": of_keys,
        "that is upside down: sinks over keys": of_keys / of_sinks,
        "that is a difference; the question asks how many times": of_sinks - of_keys,
    }
    near(answer, of_sinks / of_keys, tolerance=0.02, mistakes=mistakes)
    return "far more often than chance, though masks hold more of the sinks"


@exercise("3.2", "sinks per head and step of layer 1 of tiny-arm beyond the causal null: a number")
def beyond(answer: Any) -> str:
    """Count minus null."""
    table = rates.per_layer(record("tiny-arm"), SinkRule()).set_index("layer")
    received = record("tiny-arm")["received"].transpose("prompt", "step", "layer", "head", "key").to_numpy()
    happened = np.asarray(np.isfinite(received).any(-1))
    counts = sinks("tiny-arm")[:, :, 1].sum(-1)[happened[:, :, 1]].mean()
    null = table["null"][1]
    mistakes = {
        "that is the count; subtract the null": counts,
        "that is the null itself": null,
        "that is layer 0": table["sinks"][0] - table["null"][0],
        "that is the null minus the count": null - counts,
    }
    near(answer, counts - null, tolerance=0.01, mistakes=mistakes)
    return "a third of a sink: a count of sinks cannot tell this model from one without preferences"


@exercise("3.3", "a function (a, b) of two boolean arrays [key]; nan where both are empty")
def jaccard(answer: Any) -> str:
    """On sets with known answers."""
    none = np.zeros(KEYS, bool)
    one, two, other, shifted = none.copy(), none.copy(), none.copy(), none.copy()
    one[[1]], two[[1, 2]], other[[5]], shifted[[2, 3]] = True, True, True, True
    cases = (
        ("the same set twice", two, two, 1.0),
        ("one key of two", one, two, 0.5),
        ("two sets of two keys, one of them in both,", two, shifted, 1 / 3),
        ("two sets without a common key", one, other, 0.0),
        ("a set and an empty one", one, none, 0.0),
        ("an empty set and one that is not", none, one, 0.0),
    )
    for says, a, b, truth in cases:
        got = _of_sets(answer, a, b)
        if not np.isclose(got, truth):
            raise Wrong(f"for {says} it returns {got:.3g}; shared over either is {truth:.3g}")
    got = _of_sets(answer, none, none)
    if got == 1:
        raise Wrong("two empty sets score 1: a model without a single sink would look perfectly stable")
    if got == 0:
        raise Wrong("two empty sets score 0: a model without a single sink would look restless")
    if not np.isnan(got):
        raise Wrong(f"for two empty sets it returns {got:g}; nan leaves them out of a mean")
    return "and a mean over steps has to say how many it left out"


def _of_sets(function: Any, a: np.ndarray, b: np.ndarray) -> float:
    """What a function says of copies of two sets: one number, nan allowed."""
    given = a.copy(), b.copy()
    got = call(function, *given)
    if got is None:
        raise Wrong(f"for sets of {a.sum()} and {b.sum()} keys it returns nothing; a function needs a `return`")
    if not (np.array_equal(given[0], a) and np.array_equal(given[1], b)):
        raise Wrong("it changes the arrays that it is given; `a & b` makes a new one, `a &= b` does not")
    return float(array(got, ()))


@exercise("3.4", "the share of sink episodes of tiny-dlm that last one step: from 0 to 1")
def brief(answer: Any) -> str:
    """Episodes counted key by key."""
    lines = np.moveaxis(sinks("tiny-dlm"), 1, -1).reshape(-1, record("tiny-dlm").sizes["step"])
    lengths = [len(stay) for line in lines for stay in "".join("x" if sink else " " for sink in line).split()]
    once = lengths.count(1)
    mistakes = {
        "that is how many they are; divide by the number of episodes": float(once),
        "that is the share of sink flags, not of episodes: a long stay counts once": once / sum(lengths),
        "that is the share of those that last longer": 1 - once / len(lengths),
        "that is the mean length": float(np.mean(lengths)),
    }
    near(answer, once / len(lengths), tolerance=2e-3, mistakes=mistakes)
    return f"and the longest of {len(lengths)} lasts {max(lengths)} steps: restless and steady heads stand side by side"


@exercise("3.5", "the first update of tiny-arm's log at which a head gives BOS more than half: an integer")
def update(answer: Any) -> str:
    """From the log."""
    log = rows("twins/tiny-arm/training.jsonl")

    def first(passes: Callable[[np.ndarray], Any]) -> float:
        return next((float(row["step"]) for row in log if passes(np.array(row["bos_share"]) > 0.5)), np.nan)

    got, truth = number(answer), first(np.any)
    if got in (first(np.all), first(lambda over: over.mean() > 0.5)) and got != truth:
        raise Wrong(f"{got:g} is later: the question asks for the first head, not for all or most of them")
    if got not in [row["step"] for row in log]:
        raise Wrong(f"the log has no update {got:g}; give the value of `step`, not the number of the line")
    near(got, truth, tolerance=0)
    return "and at that update accuracy is nearly 1: sink and skill come together; which causes which, no log can tell"


@exercise("3.6", 'one of "mask", "training", "neither"')
def cause(answer: Any) -> str:
    """Before and after the mask opens, and after training."""
    causal, opened, trained = (float(np.mean(rows(ADAPTED)[at]["sinks"]["first_token"])) for at in (0, 1, -1))
    said = choice(answer, ("mask", "training", "neither"))
    told = f"{causal:.3f} in the causal original, {opened:.3f} with the mask open, {trained:.3f} after training"
    if said == "training":
        raise Wrong(f"look at the row between: {told}")
    if said == "neither":
        raise Wrong(f"it is gone: {told}")
    return f"{told}: training even gave a little back"
