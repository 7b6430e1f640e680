"""Exercises of chapter 4: are they needed?"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch

from sinklens.course.answers import Wrong, array, call, near, number
from sinklens.course.checking import exercise
from sinklens.decoding.plan import Plan
from sinklens.experiments.ablation import ablate
from sinklens.interventions import MaskSinks, SameStep
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import antibodies

FLIPS, LEVEL = 0.1, 0.025


@cache
def arms() -> dict[str, np.ndarray]:
    """Accuracy per prompt of each arm of the chapter's experiment on AntiBERTy, top 5."""
    dlm = HookedDLM.from_pretrained("antiberty")
    edits = {"top-5": MaskSinks(SameStep(top_k=5))}
    plan = Plan(new_tokens=0, steps=2)
    result = ablate(dlm, antibodies(4), edits, plan, metrics=["accuracy"], progress=False)
    table = result.to_dataframe()
    return {str(kind): rows.sort_values("prompt")["value"].to_numpy() for kind, rows in table.groupby("kind")}


@exercise("4.1", "the change of AntiBERTy's accuracy by masking 5 sinks, beyond that by 5 random keys: a number")
def effect(answer: Any) -> str:
    """Sinks minus random, paired."""
    got = arms()
    truth = float((got["sinks"] - got["random"]).mean())
    mistakes = {
        "the size is right, the sign is not: masking minus control, a loss is negative": -truth,
        "that is against unmasked; subtract what random keys do": (got["sinks"] - got["unmasked"]).mean(),
        "that is what the control does by itself": (got["random"] - got["unmasked"]).mean(),
        "that is the accuracy itself; subtract that with random keys": got["sinks"].mean(),
    }
    near(answer, truth, tolerance=5e-4, mistakes=mistakes)
    return "five keys of every head are gone, and most of what the model knew is still there"


@exercise("4.2", '{"a": ..., "b": ...}, each "axis", "return", "unit" or "fine"')
def culprits(answer: Any) -> str:
    """A returns nothing, B's rule cannot fire."""
    if not isinstance(answer, dict) or set(answer) != {"a", "b"}:
        raise Wrong(f'expected {{"a": ..., "b": ...}}, and got {answer!r}')
    for who, truth, why in (
        ("a", "return", "what does the function give back to the model?"),
        ("b", "unit", "how large can `received` be, if it is a mean over queries?"),
    ):
        if str(answer[who]) not in ("axis", "return", "unit", "fine"):
            raise Wrong(f'colleague {who.upper()}: {answer[who]!r} is none of "axis", "return", "unit", "fine"')
        if answer[who] != truth:
            raise Wrong(f"colleague {who.upper()}: not {answer[who]!r}; {why}")
    return "neither edit changed more than rounding does; both papers would have been about nothing"


@exercise("4.3", "a function (pattern, hook) that returns the edited pattern [batch, head, query, key]")
def repaired(answer: Any) -> str:
    """Key 0 unseen from query 1 on, rows that sum to 1, the input untouched."""
    scores = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pattern = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1)
    given = pattern.clone()
    returned = call(answer, pattern, hook=None)
    if returned is None:
        raise Wrong("it returns nothing, as A's did: the model goes on with the pattern that it had")
    got = array(returned, pattern.shape)
    if not torch.equal(pattern, given):
        raise Wrong("the pattern that was given is changed in place; clone it first")
    if np.isnan(got).any():
        raise Wrong("there is nan in it: query 0 sees key 0 alone, and 0 / 0 is no weight; leave query 0 as it is")
    if got[:, :, 1:, 0].any():
        raise Wrong("some query behind the first one still looks at key 0")
    if not np.allclose(got[:, :, 0], given[:, :, 0].numpy()):
        raise Wrong("query 0 was changed; it has nobody else to look at")
    if not np.allclose(got.sum(-1), 1, atol=1e-5):
        raise Wrong(f"rows must sum to 1; here they sum to between {got.sum(-1).min():.2f} and {got.sum(-1).max():.2f}")
    rest = given[:, :, 1:, 1:].double().numpy()
    if not np.allclose(got[:, :, 1:, 1:], rest / rest.sum(-1, keepdims=True), atol=1e-5):
        raise Wrong("the other weights must keep their proportions")
    return "now it acts; whether it removes the sink is another question"


@exercise("4.4", "the smallest number of prompts: an integer")
def prompts(answer: Any) -> str:
    """0.9 ** n < 0.025."""
    truth = math.ceil(math.log(LEVEL) / math.log(1 - FLIPS))
    got = number(answer)
    if got == math.ceil(math.log(0.05) / math.log(1 - FLIPS)):
        raise Wrong("that is for 0.05; a two-sided 95 % interval leaves 0.025 on each side")
    if got != int(got):
        raise Wrong(f"prompts are whole: {got:g}")
    if got < 1:
        raise Wrong(f"at least one prompt is needed, and you gave {got:g}")
    if got < truth:
        chance, many = (1 - FLIPS) ** got, "prompt" if got == 1 else "prompts"
        raise Wrong(f"with {got:g} {many} no flip has still the probability {chance:.5f}, and it must be below {LEVEL}")
    if got > truth:
        raise Wrong("that is enough, but fewer are, too")
    return f"with {truth} prompts it is {(1 - FLIPS) ** truth:.5f}, with one fewer {(1 - FLIPS) ** (truth - 1):.5f}"


@exercise("4.5", "the smallest two-sided p of a sign-flip test with 5 prompts: a number")
def smallest(answer: Any) -> str:
    """All plus and all minus, of 32 patterns."""
    mistakes = {
        "that is one-sided: all plus is as extreme as all minus": 1 / 2**5,
        "each prompt has two signs, so there are 2 ** 5 patterns": 1 / 5,
        "that is 2 / 5 ** 2; there are 2 ** 5 patterns": 2 / 25,
    }
    near(answer, 2 / 2**5, tolerance=1e-6, mistakes=mistakes)
    return "above .05: such an experiment cannot succeed, whatever is true"
