"""Finding a batch's rows among the prompts of a record."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sinklens import Canvas, HookedDLM, Plan, concat, denoise, denoising_steps, planted
from sinklens.decoding.prompts import prepare
from sinklens.errors import RecordError
from sinklens.records import PromptIndex

MASK = 62
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7], [5, 17, 9, 5]]
GAPS = [[5, MASK, 9, MASK], [5, MASK, 9, MASK, 3], [5, 6, MASK]]


@pytest.fixture(scope="module")
def dlm(tiny_model: Any) -> HookedDLM:
    return tiny_model("LLaDA")


def recorded(dlm: HookedDLM, prompts: Any, plan: Plan, seed: Any = 0) -> Any:
    return denoise(dlm, prompts, plan, seed=seed, progress=False).record


@pytest.mark.parametrize(("prompts", "plan"), [(PROMPTS, Plan(new_tokens=4)), (GAPS, Plan(new_tokens=0))])
def test_rows_are_found_in_any_batch_at_any_step(dlm: HookedDLM, prompts: Any, plan: Plan) -> None:
    index = PromptIndex(recorded(dlm, prompts, plan))
    for order in ([0, 1, 2], [2, 0], [1], [2, 2, 1]):
        batch = [prompts[row] for row in order]
        longest = max(map(len, batch))
        for step in denoising_steps(dlm, batch, plan):
            found = index.find(step.canvas)
            assert [row.prompt for row in found] == order
            assert [row.start for row in found] == [longest - len(prompt) for prompt in batch]


def test_a_prompt_that_occurs_twice_is_told_by_its_seed(dlm: HookedDLM) -> None:
    plan = Plan(new_tokens=2)
    twice = recorded(dlm, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], plan, seed=[3, 3, 4])
    for record in (twice, concat([recorded(dlm, PROMPTS[:2], plan, seed=3), recorded(dlm, PROMPTS[0], plan, seed=4)])):
        index = PromptIndex(record)
        start = prepare(dlm, [PROMPTS[0], PROMPTS[0], PROMPTS[1]], plan, [4, 3, 99])
        assert [row.prompt for row in index.find(start.canvas)] == [2, 0, 1]
        with pytest.raises(RecordError, match=r"row 0 .* is not in the record"):
            index.find(prepare(dlm, PROMPTS[0], plan, 5).canvas)
    same = PromptIndex(recorded(dlm, [PROMPTS[0]] * 2, plan, seed=3))
    with pytest.raises(RecordError, match="is 2 times in the record"):
        same.find(prepare(dlm, PROMPTS[0], plan, 3).canvas)


@pytest.mark.parametrize("prompt", [[5, 17], [5, 17, 9, 5, 1], [17, 9], [5, 17, 8]])
def test_a_prompt_that_only_resembles_one_is_not_found(dlm: HookedDLM, prompt: list[int]) -> None:
    index = PromptIndex(recorded(dlm, PROMPTS, Plan(new_tokens=2)))
    with pytest.raises(RecordError, match=r"the prompt of row 1 \(tokens \[.* is not in the record"):
        index.find(prepare(dlm, [PROMPTS[0], prompt], Plan(new_tokens=2)).canvas)


def test_the_places_of_gaps_belong_to_a_prompt(dlm: HookedDLM) -> None:
    """The same given tokens around another gap are another prompt."""
    index = PromptIndex(recorded(dlm, [[5, MASK, 9]], Plan(new_tokens=0)))
    with pytest.raises(RecordError, match="not in the record"):
        index.find(prepare(dlm, [[5, 9, MASK]], Plan(new_tokens=0)).canvas)


def test_two_runs_may_ask_one_index(dlm: HookedDLM) -> None:
    """It remembers nothing of either."""
    index = PromptIndex(recorded(dlm, PROMPTS, Plan(new_tokens=4)))
    one = denoising_steps(dlm, [PROMPTS[1]], Plan(new_tokens=4))
    other = denoising_steps(dlm, [PROMPTS[2]], Plan(new_tokens=4))
    for a, b in zip(one, other, strict=True):
        assert [row.prompt for row in index.find(a.canvas)] == [1]
        assert [row.prompt for row in index.find(b.canvas)] == [2]


def test_planted_records_can_be_searched() -> None:
    record = planted("static", prompts=1).record
    token, given = (torch.from_numpy(record[name].to_numpy().copy()) for name in ("token", "given"))
    on = torch.ones_like(given, dtype=torch.bool)
    canvas = Canvas(token.long(), on, given == 0, given == 1, seeds=(0,))
    assert PromptIndex(record).find(canvas) == [(0, 0)]
