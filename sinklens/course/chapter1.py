"""Exercises of chapter 1: attention by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from sinklens.course.answers import Wrong, array, near, number
from sinklens.course.checking import exercise
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import Echo

KEYS = 16


@cache
def pattern() -> np.ndarray:
    """What the chapter's first cells show: layer 0 of tiny-dlm on one echo prompt, [head, query, key].

    The prompt is one on which the readings of 1.4 differ: 2 sinks by the rule, 5 keys above 3, 1 above the mean of all
    keys by 3, none by column means. Where a prompt has no sinks, every mistake is right.
    """
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    _, seen = dlm.run_with_cache(dlm.to_tokens(Echo(n=8, seed=16)[1].prompt))
    return seen["blocks.0.attn.hook_pattern"][0].double().numpy()


@exercise("1.1", "what each key of layer 0 receives, as column sums: an array [head, key]")
def received(answer: Any) -> str:
    """Column sums."""
    shown = pattern()
    heads, queries, keys = shown.shape
    got = array(answer)
    if got.shape == (heads, queries) and np.allclose(got, 1, atol=1e-3):
        raise Wrong("these are all 1: you summed over keys, which is what each query gives; sum over queries")
    if got.shape == (keys,):
        raise Wrong(f"the shape ({keys},) has no heads left; keep one row per head")
    sums = shown.sum(1)
    near(got, sums, mistakes={"these are column means; the question asks for sums (do not divide)": shown.mean(1)})
    return "a key may receive more than 1, or nearly nothing; only what a query gives is fixed"


@exercise("1.2", "the average over keys of what they receive: one number, in column sums")
def average(answer: Any) -> str:
    """As many queries as keys, so 1."""
    mistakes = {
        "that is the average weight of one cell, or a column mean: 1 / 16; a column has 16 cells": 1 / KEYS,
        "that is what all keys receive together; divide by how many they are": float(KEYS),
    }
    near(answer, 1.0, tolerance=1e-3, mistakes=mistakes)
    return "always: N queries give 1 each, and N keys share it; so a column sum of 4 is four times the average"


@exercise("1.3", "the largest possible column mean: one number")
def largest(answer: Any) -> str:
    """1."""
    got = number(answer)
    if np.isclose(got, pattern().mean(1).max(), atol=1e-4):
        raise Wrong("that is the largest one in this pattern; which could it be in any pattern?")
    if got > 1:
        raise Wrong("a mean over queries cannot be larger than the largest weight that a query can give, which is 1")
    near(got, 1.0, tolerance=1e-6)
    return "and so no column mean can exceed another one by 3"


@exercise("1.4", "which keys are sinks by epsilon = 3 in column sums: a boolean array [head, key]")
def sinks(answer: Any) -> str:
    """Equation 3 in column sums."""
    sums = pattern().sum(1)
    keys = sums.shape[1]
    flags = array(answer, sums.shape)
    if not np.isin(flags, (0, 1)).all():
        raise Wrong("expected True or False for each head and key, and got other numbers; compare with the threshold")
    got = flags.astype(bool)
    others = (sums.sum(-1, keepdims=True) - sums) / (keys - 1)
    truth = sums - others > 3
    if (got == truth).all():
        return f"{int(truth.sum())} of {truth.size}, in different heads and at different keys"
    if not got.any():
        raise Wrong("no sink at all: did you compare column means, which are at most 1, with 3?")
    if (got == (sums > 3)).all():
        raise Wrong("you compared with 3; the rule compares with the mean of the other keys, plus 3")
    if (got == (sums - sums.mean(-1, keepdims=True) > 3)).all():
        raise Wrong("you compared with the mean of all keys; the rule leaves the key itself out of the mean")
    if (got == ~truth).all():
        raise Wrong("these are the keys that are no sinks: the comparison is the wrong way round")
    raise Wrong(f"{int((got != truth).sum())} of {truth.size} are not right; {int(got.sum())} sinks found")


@exercise("1.5", "what uniform causal attention gives each of 16 keys: an array [16]")
def null(answer: Any) -> str:
    """Harmonic tails."""
    gives = 1 / np.arange(1, KEYS + 1)
    truth = np.array([gives[key:].sum() for key in range(KEYS)])
    mistakes = {
        "these are all 1: either the bidirectional null (here a query sees only itself and what is before it), or "
        "what each query gives (sum over queries, not over keys)": np.ones(KEYS),
        "that is how many queries see each key; each of them gives 1 / (keys that it sees)": np.arange(KEYS, 0, -1.0),
        "these are column means; the question asks for what a key receives in all": truth / KEYS,
        "that is what the last query gives to each key; sum over all queries": np.full(KEYS, 1 / KEYS),
        "the order is reversed: the first key is seen by every query": truth[::-1],
    }
    near(answer, truth, mistakes=mistakes)
    return "the first key gets three times the average, and nobody preferred it"
