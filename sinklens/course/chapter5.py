"""Exercises of chapter 5: what sinks do."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import xarray as xr

from sinklens.course.answers import Wrong, array, call, near
from sinklens.course.checking import exercise
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.experiments.budgets import budget_curve
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.patching import Patches, patch
from sinklens.probes import ReceivedAttention, ValueNorm
from sinklens.tasks import Echo


@cache
def norms() -> tuple[np.ndarray, np.ndarray]:
    """Value norms of tiny-arm, and which keys are sinks, by hand: both [prompt, step, layer, head, key]."""
    task = Echo(n=6, seed=1)
    arm = HookedDLM.from_pretrained("tiny-arm")
    probes = [ReceivedAttention(), ValueNorm()]
    prompts = [task[index].prompt for index in range(6)]
    record = denoise(arm, prompts, Plan(new_tokens=32), probes=probes, progress=False).record
    received = record["received"].transpose("prompt", "step", "layer", "head", "key").to_numpy()
    others = (np.nansum(received, -1, keepdims=True) - received) / (np.isfinite(received).sum(-1, keepdims=True) - 1)
    values = record["value_norm"].transpose("prompt", "step", "layer", "kv_head", "key").to_numpy()
    return values, np.nan_to_num(received - others) > 3


@exercise("5.1", "the mean value norm of tiny-arm's sinks over that of its other keys: a number")
def quiet(answer: Any) -> str:
    """A ratio of two means."""
    values, sinks = norms()
    there = np.isfinite(values)
    of_sinks, of_others = values[sinks & there].mean(), values[~sinks & there].mean()
    mistakes = {
        "that is the sinks' mean alone; divide by that of the others": of_sinks,
        "that is the others' mean alone": of_others,
        "that is upside down: sinks over others": of_others / of_sinks,
    }
    near(answer, of_sinks / of_others, tolerance=5e-3, mistakes=mistakes)
    return f"a sink of this model has {of_sinks / of_others:.2f} of the value norm of another key: it rests"


@exercise("5.2", '{"A": ..., "B": ...}, "resting" and "informative"')
def roles(answer: Any) -> str:
    """The resting one does not miss its value."""
    truth = {"A": "resting", "B": "informative"}
    if not isinstance(answer, dict) or set(answer) != {"A", "B"}:
        raise Wrong(f'expected {{"A": ..., "B": ...}}, and got {answer!r}')
    if answer == truth:
        return (
            "silenced for free: resting; silenced and lost: informative. Masking alone could not have told them apart"
        )
    if answer == {"A": "informative", "B": "resting"}:
        raise Wrong("the other way round: which of them does not notice that its sink's value is gone?")
    raise Wrong(f'each is "resting" or "informative", and they differ; got {answer!r}')


@cache
def kept() -> dict[str, np.ndarray]:
    """Accuracy per prompt of tiny-dlm with half of its keys, by what is kept."""
    curve = budget_curve(
        HookedDLM.from_pretrained("tiny-dlm"),
        Echo(n=8, seed=3),
        (0.5,),
        ("key_norm", "random"),
        Plan(new_tokens=32),
        metrics=["forced_accuracy"],
        gates={},
        sinks=None,
        progress=False,
    )
    table = curve.to_dataframe().sort_values("prompt")
    found = {str(name): rows["value"].to_numpy() for name, rows in table.groupby("condition")}
    random = np.mean([values for name, values in found.items() if name.startswith("random")], 0)
    return {"unmasked": found["unmasked"], "key_norm": found["key_norm=0.5"], "random": random}


@exercise("5.3", "accuracy with the smallest key norms minus that with random keys, at a rate of 0.5: a number")
def norm_effect(answer: Any) -> str:
    """Paired difference of means."""
    got = kept()
    truth = float((got["key_norm"] - got["random"]).mean())
    mistakes = {
        "the sign is turned: key norm minus random": -truth,
        "that is against the unedited model; the control is random keys": (got["key_norm"] - got["unmasked"]).mean(),
        "that is the accuracy itself; subtract that of random keys": got["key_norm"].mean(),
    }
    near(answer, truth, tolerance=1e-6, mistakes=mistakes)
    return "far worse than chance: in this model the keys with small norms are not the ones that matter"


@exercise("5.4", "a function (vector [d_model], seed) that returns a control vector [d_model]")
def control(answer: Any) -> str:
    """As long, random, reproducible, and not the vector itself."""
    vector = torch.randn(96, generator=torch.Generator().manual_seed(1)) * 3
    first, again, other = (array(call(answer, vector, seed), (96,)) for seed in (0, 0, 1))
    long = float(vector.norm())
    if not np.array_equal(first, again):
        raise Wrong("the same seed gives two vectors; make a generator from the seed")
    if np.allclose(first, other):
        raise Wrong("another seed gives the same vector; the control must be drawn anew")
    if not np.isclose(np.linalg.norm(first), long, rtol=1e-4):
        raise Wrong(f"its length is {np.linalg.norm(first):.3g}, the direction's {long:.3g}: a fair push is as long")
    if abs(first @ vector.double().numpy()) > 0.5 * long**2:
        raise Wrong("it points nearly where the direction points (or away from it): that is no control")
    return "as long and anywhere else; if it does the same, the direction meant nothing"


@cache
def effects() -> xr.DataArray:
    """The chapter's patches at step 0: [layer, position]."""
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    pair = ("pante dolko xe dolko", "pante tuste xe tuste")
    return patch(dlm, *pair, Plan(new_tokens=8), Patches("mlp"), progress=False)["effect"].isel(prompt=0, step=0)


@exercise("5.5", "(layer, position) of the largest effect at step 0: two integers")
def place(answer: Any) -> str:
    """The largest cell."""
    values = effects().transpose("layer", "position").to_numpy()
    truth = np.unravel_index(values.argmax(), values.shape)
    got = array(answer, (2,))
    if tuple(got) == tuple(truth[::-1]):
        raise Wrong("the order is turned: (layer, position)")
    if tuple(got) == tuple(np.unravel_index(np.abs(values).argmin(), values.shape)):
        raise Wrong("that is the smallest effect")
    if tuple(got) != tuple(truth):
        layer, position = (int(each) for each in got)
        inside = 0 <= layer < values.shape[0] and 0 <= position < values.shape[1]
        said = (
            f"its effect is {values[layer, position]:.2f}, and another is larger" if inside else "there is no such cell"
        )
        raise Wrong(f"at layer {layer}, position {position}: {said}")
    return f"an effect of {values[truth]:.2f}, at the last occurrence of the word in the prompt"
