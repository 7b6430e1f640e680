"""Samplers that reveal by chance: how often, with which tokens, until when. Against their formulas, not their code."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch

from sinklens import HookedDLM, MaskSinks, Plan, SameStep, Scope, denoise, denoising_steps
from sinklens.errors import ScopeError
from sinklens.probes import ReceivedAttention

MASK = 62


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """Random models of a family, one per family."""
    return lru_cache(tiny_model)


def commit_steps(dlm: HookedDLM, plan: Plan, rows: int) -> list[int]:
    """When each position of many runs was committed."""
    run = denoise(dlm, [[5, 9]] * rows, plan, seed=list(range(rows)), progress=False)
    assert bool((run.tokens != dlm.ids.mask).all())
    return run.commit_step[:, 2:].flatten().tolist()


def expect(counts: list[int], chances: list[float]) -> None:
    """Counts within five standard deviations of what chances give."""
    assert len(counts) == len(chances)
    total = sum(counts)
    assert math.isclose(sum(chances), 1, rel_tol=1e-6)
    for count, chance in zip(counts, chances, strict=True):
        assert abs(count - total * chance) < 5 * math.sqrt(total * chance * (1 - chance)) + 1e-9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["DiffuGPT", "LLaDA"])
def test_diffugpt_reveals_each_position_at_each_step_alike(model: Any, family: str, temperature: float) -> None:
    """1 / (steps that are left), step after step, is one chance for every step."""
    plan = Plan(new_tokens=20, steps=5, sampler="diffugpt", temperature=temperature)
    steps = commit_steps(model(family), plan, 40)
    expect([steps.count(step) for step in range(5)], [1 / 5] * 5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("eps", [None, 0.4])
def test_ddpm_reveals_with_the_time_that_passes_and_fills_the_rest(
    model: Any, eps: float | None, temperature: float
) -> None:
    """A position is masked still at time t with probability t: 1 - eps evenly over the steps, eps for the last one."""
    plan = Plan(new_tokens=20, steps=4, sampler="ddpm_cache", eps=eps, temperature=temperature)
    steps = commit_steps(model("LLaDA"), plan, 40)
    left = 1e-5 if eps is None else eps
    expect([steps.count(step) for step in range(5)], [*[(1 - left) / 4] * 4, left])


@pytest.mark.parametrize("sampler", ["diffugpt", "ddpm_cache"])
def test_at_temperature_0_the_likeliest_token_is_taken_whenever_it_is(model: Any, sampler: str) -> None:
    dlm = model("LLaDA")
    for step in denoising_steps(dlm, [[5, 9], [7]], Plan(new_tokens=8, steps=5, sampler=sampler), seed=4):
        likeliest = step.logits.index_fill(-1, torch.tensor([MASK]), -math.inf).argmax(-1)
        assert torch.equal(step.predicted[step.canvas.masked], likeliest[step.canvas.masked])


@pytest.mark.parametrize("sampler", ["diffugpt", "ddpm_cache"])
def test_tokens_have_the_models_chances(model: Any, sampler: str) -> None:
    """One position, many seeds, one step: the frequencies are the softmax without the mask."""
    dlm, rows = model("LLaDA"), 4000
    with torch.no_grad():
        logits = dlm(torch.tensor([[5, 9, MASK]]))[0, 2].double() / 3
    plan = Plan(new_tokens=0, steps=1, sampler=sampler, temperature=3.0, eps=0.4 if sampler == "ddpm_cache" else None)
    step = next(denoising_steps(dlm, [[5, 9, MASK]] * rows, plan, seed=list(range(rows))))
    drawn = step.tokens[:, 2][step.committed[:, 2]].tolist()
    assert MASK not in drawn
    assert len(drawn) > 0.5 * rows
    logits[MASK] = -math.inf
    best = logits.softmax(-1).topk(6)
    for token, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        assert abs(drawn.count(token) - len(drawn) * chance) < 5 * math.sqrt(len(drawn) * chance * (1 - chance))


@pytest.mark.parametrize(("sampler", "more"), [("diffugpt", 0), ("ddpm_cache", 1)])
def test_a_run_has_the_steps_that_scopes_may_name(model: Any, sampler: str, more: int) -> None:
    """MDLM's noise removal is a step like any other: it is measured, edited and counted."""
    dlm, plan = model("LLaDA"), Plan(new_tokens=6, steps=40, sampler=sampler, temperature=1.0)
    last = 39 + more
    edit = MaskSinks(SameStep(top_k=1), where=Scope(steps=[last]))
    run = denoise(dlm, [5, 9], plan, interventions=[edit], probes=[ReceivedAttention()], progress=False)
    assert run.record.sizes["step"] <= last + 1
    assert int(run.commit_step.max()) == run.record.sizes["step"] - 1
    with pytest.raises(ScopeError):
        denoise(dlm, [5, 9], plan, interventions=[MaskSinks(SameStep(top_k=1), where=Scope(steps=[last + 1]))])


@pytest.mark.parametrize("family", ["LLaDA", "DiffuGPT"])
def test_gaps_are_filled_in_as_many_steps_as_one_likes(model: Any, family: str) -> None:
    prompts = [[5, MASK, 9, MASK, 8], [MASK, 12, MASK]]
    for sampler in ("diffugpt", "ddpm_cache"):
        for steps in (None, 1, 9):
            plan = Plan(new_tokens=0, steps=steps, sampler=sampler, temperature=1.0)
            run = denoise(model(family), prompts, plan, progress=False)
            assert bool((run.tokens != MASK).all())
            assert run.tokens[0, [0, 2, 4]].tolist() == [5, 9, 8]
