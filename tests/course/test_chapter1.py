"""Chapter 1's exercises: a typical mistake is told from another, and the right answer passes, computed another way."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens.course.chapter1 import KEYS


@cache
def seen() -> tuple[np.ndarray, torch.Tensor]:
    """The chapter's pattern [head, query, key], and what the library's own hook says is received [head, key]."""
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    _, cache = dlm.run_with_cache(dlm.to_tokens(sl.tasks.Echo(n=8, seed=16)[1].prompt))
    return cache["blocks.0.attn.hook_pattern"][0].numpy(), cache["blocks.0.attn.hook_received"][0]


def causal(*, over: int) -> np.ndarray:
    """Uniform causal attention over 16 keys, row by row, summed over queries (0) or over keys (1)."""
    return np.array([[1 / (i + 1) if j <= i else 0 for j in range(KEYS)] for i in range(KEYS)]).sum(over)


RIGHT = {
    "1.1": lambda: seen()[1],
    "1.2": lambda: float(seen()[1].mean()),
    "1.3": lambda: np.eye(8)[[3] * 8].mean(0).max(),  # every query looks at key 3 alone
    "1.4": lambda: sl.SinkRule(epsilon=3.0)(seen()[1]),
    "1.5": lambda: causal(over=0),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_computed_another_way_is_right(name: str) -> None:
    assert sl.course.check(name, RIGHT[name]())


WRONG = [
    ("1.1", lambda: seen()[0].sum(2), "summed over keys"),
    ("1.1", lambda: seen()[0].mean(1), "column means"),
    ("1.1", lambda: seen()[0].sum((0, 1)), "no heads left"),
    ("1.1", lambda: seen()[0], r"expected the shape \(4, 16\), and got \(4, 16, 16\)"),
    ("1.1", lambda: "much", "expected numbers, and got 'much'"),
    ("1.2", lambda: 1 / KEYS, "average weight of one cell"),
    ("1.2", lambda: KEYS, "divide by how many they are"),
    ("1.2", lambda: 0.9, "too small"),
    ("1.2", lambda: seen()[0].sum(1), "expected one number, and got 64 of them"),
    ("1.3", lambda: seen()[0].mean(1).max(), "in this pattern"),
    ("1.3", lambda: KEYS, "cannot be larger"),
    ("1.3", lambda: 0.5, "too small"),
    ("1.3", lambda: float("nan"), "expected a number, and got nan"),
    ("1.4", lambda: seen()[0].mean(1) > 3, "column means"),
    ("1.4", lambda: seen()[0].sum(1) > 3, "compared with 3"),
    ("1.4", lambda: seen()[0].sum(1) - 1 > 3, "mean of all keys"),
    ("1.4", lambda: ~sl.SinkRule()(seen()[1]), "the wrong way round"),
    ("1.4", lambda: seen()[0].sum(1), "expected True or False"),
    ("1.4", lambda: seen()[0].sum(1) > 2, "are not right"),
    ("1.4", lambda: [(2, 0)], r"expected the shape \(4, 16\)"),
    ("1.5", lambda: np.ones(KEYS), "bidirectional null"),
    ("1.5", lambda: causal(over=1), "sum over queries, not over keys"),
    ("1.5", lambda: np.arange(KEYS, 0, -1), "how many queries see each key"),
    ("1.5", lambda: causal(over=0)[::-1], "order is reversed"),
    ("1.5", lambda: causal(over=0) / KEYS, "column means"),
    ("1.5", lambda: np.full(KEYS, 1 / KEYS), "what the last query gives"),
    ("1.5", lambda: causal(over=0)[:8], r"expected the shape \(16,\), and got \(8,\)"),
]


@pytest.mark.parametrize(("name", "answer", "says"), WRONG, ids=[f"{name}-{says}" for name, _, says in WRONG])
def test_a_typical_mistake_is_told_what_is_wrong(name: str, answer: Any, says: str) -> None:
    verdict = sl.course.check(name, answer())
    assert not verdict
    with pytest.raises(ValueError, match=says):
        raise ValueError(verdict.says)


def test_every_reading_of_the_rule_gives_another_answer_on_the_chapters_prompt() -> None:
    sums = seen()[0].sum(1)
    counts = [int((sums / KEYS > 3).sum()), int((sums - 1 > 3).sum()), int(sl.SinkRule()(seen()[1]).sum())]
    assert [*counts, int((sums > 3).sum())] == [0, 1, 2, 5]
