"""Chapter 4's exercises, but for that which asks AntiBERTy (tests/real): mistakes are told apart, right ones pass."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl


def repaired(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
    scores = pattern.log()
    scores[..., 1:, 0] = -torch.inf
    return scores.softmax(-1)


def in_place(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
    pattern[:, :, 1:, 0] = 0
    return pattern / pattern.sum(-1, keepdim=True)


def first_query_too(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
    edited = pattern.clone()
    edited[..., 0] = 0
    return edited / edited.sum(-1, keepdim=True)


def not_renormalised(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
    edited = pattern.clone()
    edited[:, :, 1:, 0] = 0
    return edited


RIGHT = {
    "4.2": lambda: {"a": "return", "b": "unit"},
    "4.3": lambda: repaired,
    "4.4": lambda: next(n for n in range(1, 99) if (1 - 0.1) ** n < 0.025),
    "4.5": lambda: np.mean([abs(sum(signs)) == 5 for signs in itertools.product((1, -1), repeat=5)]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_computed_another_way_is_right(name: str) -> None:
    assert sl.course.check(name, RIGHT[name]())


WRONG = [
    ("4.2", lambda: {"a": "fine", "b": "unit"}, "colleague A"),
    ("4.2", lambda: {"a": "return", "b": "axis"}, "colleague B"),
    ("4.2", lambda: {"a": "return", "b": "typo"}, "is none of"),
    ("4.2", lambda: ["return", "unit"], "expected {"),
    ("4.3", lambda: lambda pattern, hook: None, "returns nothing"),
    ("4.3", lambda: in_place, "in place"),
    ("4.3", lambda: first_query_too, "query 0"),
    ("4.3", lambda: not_renormalised, "rows must sum to 1"),
    ("4.3", lambda: lambda pattern, hook: pattern.clone(), "still looks at key 0"),
    ("4.4", lambda: 29, "two-sided"),
    ("4.4", lambda: 12, "with 12 prompts"),
    ("4.4", lambda: 35, "0.02503, and it must be below 0.025"),
    ("4.4", lambda: 1, "with 1 prompt no flip"),
    ("4.4", lambda: 100, "fewer are"),
    ("4.4", lambda: -3, "at least one prompt"),
    ("4.4", lambda: 35.5, "whole"),
    ("4.5", lambda: 1 / 32, "one-sided"),
    ("4.5", lambda: 0.05, "too small"),
]


@pytest.mark.parametrize(("name", "answer", "says"), WRONG, ids=[f"{name}-{says[:18]}" for name, _, says in WRONG])
def test_a_mistake_is_named(name: str, answer: Any, says: str) -> None:
    verdict = sl.course.check(name, answer())
    assert not verdict
    assert says in verdict.says
