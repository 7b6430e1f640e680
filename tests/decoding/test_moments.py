"""A run that is taken up at one of its steps goes on as it did, draws included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens.decoding.loop import steps_from
from sinklens.decoding.prompts import prepare_rows

PROMPT = [0, 7, 9, 11]
SAMPLERS: dict[str, dict[str, Any]] = {
    "llada": {"temperature": 1.0, "remasking": "random", "block_length": 4},
    "dream": {"temperature": 1.0, "top_p": 0.9, "alg_temp": 0.5},
    "diffugpt": {"temperature": 1.0},
    "ddpm_cache": {"temperature": 1.0},
    "p2": {"temperature": 1.0, "top_k": 20},
}


@pytest.mark.parametrize("sampler", [*SAMPLERS, "causal"])
def test_a_run_is_taken_up_at_each_of_its_steps(tiny_model: Callable[..., sl.HookedDLM], sampler: str) -> None:
    dlm = tiny_model("Llama" if sampler == "causal" else "Dream")
    options = {"temperature": 1.0} if sampler == "causal" else {"sampler": sampler, **SAMPLERS[sampler]}
    plan = sl.Plan(new_tokens=8, **options)
    start, three = (prepare_rows(dlm, [PROMPT] * rows, plan, 3) for rows in (1, 3))
    whole = [(step, step.moment) for step in steps_from(dlm, start)]
    tokens = torch.stack([step.tokens for step, _ in whole])
    assert len({tuple(row.tolist()) for row in tokens[:, 0]}) > 3  # it went on
    for number, (_, moment) in enumerate(whole[:-1], start=1):
        rest = list(steps_from(dlm, three, since=moment.repeated(3)))
        assert [step.index for step in rest][: len(whole) - number] == list(range(number, len(whole)))
        for step in rest[: len(whole) - number]:
            assert torch.equal(step.tokens, tokens[step.index].expand(3, -1))


def test_a_baseline_that_is_taken_up_goes_on_behind_an_eos(tiny_model: Callable[..., sl.HookedDLM]) -> None:
    dlm, plan = tiny_model("Llama"), sl.Plan(new_tokens=8, temperature=1.0)
    for seed in range(40):  # until a run ends early
        start = prepare_rows(dlm, [PROMPT], plan, seed)
        steps = [step.moment for step in steps_from(dlm, start)]
        if len(steps) < 7:
            break
    else:
        pytest.fail("no run ended early")
    rest = list(steps_from(dlm, start, since=steps[0]))
    assert rest[-1].index == 7
    assert not rest[-1].after.masked.any()
