"""From prompts to the first canvas: layout, seeds, and what a prepared run knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sinklens import HookedDLM, Plan, denoising_steps
from sinklens.decoding.loop import steps_from
from sinklens.decoding.prompts import left_padded, prepare, seeds_for

MASK, PAD = 62, 1
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7]]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Callable[[str], HookedDLM]:
    return {name: tiny_model(name) for name in ("LLaDA", "Dream", "Llama")}.__getitem__


def test_seeds_for_wants_one_or_one_per_prompt() -> None:
    assert seeds_for(3, 2) == (3, 3)
    assert seeds_for([4, 5], 2) == (4, 5)
    assert seeds_for(np.array([4, 5]), 2) == (4, 5)  # pyright: ignore[reportArgumentType]
    assert seeds_for(np.int64(3), 1) == (3,)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="seed has 3 entries for 2 prompts"):
        seeds_for([1, 2, 3], 2)


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_a_prepared_run_by_hand(model: Any, family: str) -> None:
    start = prepare(model(family), PROMPTS, Plan(new_tokens=2), [7, 8, 9])
    assert start.starts == [3, 0, 5]
    assert start.limits == [2, 2, 2]
    assert (start.steps, start.length) == (2, 8)
    assert start.plan == Plan(new_tokens=2).resolved(model(family))
    canvas = start.canvas
    for row, (prompt, first) in enumerate(zip(PROMPTS, start.starts, strict=True)):
        assert canvas.tokens[row].tolist() == [PAD] * first + prompt + [MASK] * 2
        assert canvas.valid[row].tolist() == [False] * first + [True] * (8 - first)
        assert canvas.prompt[row].tolist() == [False] * first + [True] * len(prompt) + [False] * 2
    assert canvas.masked.tolist() == [[False] * 6 + [True] * 2] * 3
    assert (canvas.step, canvas.seeds, canvas.active) == (0, (7, 8, 9), None)


def test_gaps_are_masked_and_rows_take_as_many_steps_as_they_have_gaps(model: Any) -> None:
    start = prepare(model("LLaDA"), [[5, MASK, 9, MASK], [8, MASK]], Plan(new_tokens=0))
    assert start.limits == [2, 1]
    assert start.steps == 2
    assert start.canvas.masked.tolist() == [[False, True, False, True], [False, False, False, True]]
    assert start.canvas.prompt.tolist() == [[True, False, True, False], [False, False, True, False]]
    assert prepare(model("LLaDA"), [[5, MASK]], Plan(new_tokens=0, threshold=0.5)).steps is None


def test_padding_is_on_the_left(model: Any) -> None:
    tokens, valid, starts = left_padded(model("LLaDA"), [[5, 6], [7]])
    assert tokens.tolist() == [[5, 6], [PAD, 7]]
    assert valid.tolist() == [[True, True], [False, True]]
    assert starts == [0, 1]


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_a_prepared_run_is_run_without_preparing_again(
    model: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as often as wanted: it holds no random numbers that would be used up."""
    dlm, plan = model(family), Plan(new_tokens=4, temperature=1.0)
    expected = [step.tokens for step in denoising_steps(dlm, PROMPTS, plan, seed=5)]
    start = prepare(dlm, PROMPTS, plan, 5)
    monkeypatch.setattr(HookedDLM, "encode", None)
    monkeypatch.setattr(Plan, "resolved", None)
    for _ in range(2):
        tokens = [step.tokens for step in steps_from(dlm, start)]
        assert all(torch.equal(a, b) for a, b in zip(tokens, expected, strict=True))
