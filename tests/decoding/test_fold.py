"""The fold over steps: what a Trajectory keeps is what a naive loop over the steps finds, and it can be followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinklens import HookedDLM, Plan, Run, denoise, denoising_steps
from sinklens.decoding.fold import Trajectory
from sinklens.decoding.loop import steps_from
from sinklens.decoding.prompts import prepare

MASK = 62
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7]]
CASES = [
    ("LLaDA", PROMPTS, Plan(new_tokens=8, steps=4, temperature=1.0)),
    ("LLaDA", [[5, MASK, 9, MASK], [33, 8, MASK]], Plan(new_tokens=0)),
    ("Dream", PROMPTS, Plan(new_tokens=6, steps=3, remasking="origin", temperature=1.0)),
    ("Llama", PROMPTS, Plan(new_tokens=10, temperature=1.5)),
]
NAMES = ("tokens", "commit_step", "predicted", "confidence", "filled")


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Callable[[str], HookedDLM]:
    return {name: tiny_model(name) for name in ("LLaDA", "Dream", "Llama")}.__getitem__


def folded(dlm: HookedDLM, prompts: Any, plan: Plan, **options: Any) -> Trajectory:
    """A run without a record."""
    start = prepare(dlm, prompts, plan, options.pop("seed", 0))
    trajectory = Trajectory.of(start.canvas)
    for step in steps_from(dlm, start, **options):
        trajectory.add(step)
    return trajectory


@pytest.mark.parametrize(("family", "prompts", "plan"), CASES)
def test_a_trajectory_keeps_the_last_commit_of_every_position(
    model: Any, family: str, prompts: Any, plan: Plan
) -> None:
    dlm = model(family)
    steps = list(denoising_steps(dlm, prompts, plan, seed=3))
    trajectory = folded(dlm, prompts, plan, seed=3)
    rows, width = trajectory.tokens.shape
    for row in range(rows):
        for place in range(width):
            commits = [step for step in steps if step.committed[row, place]]
            if not commits:
                assert trajectory.commit_step[row, place] == trajectory.predicted[row, place] == -1
                assert trajectory.confidence[row, place].isnan()
                continue
            step = commits[-1]
            assert trajectory.commit_step[row, place] == step.index
            assert trajectory.predicted[row, place] == step.predicted[row, place]
            assert trajectory.confidence[row, place] == step.confidence[row, place]
    assert torch.equal(trajectory.tokens, steps[-1].tokens)
    assert torch.equal(trajectory.committed, trajectory.commit_step >= 0)
    assert not (trajectory.committed & ~trajectory.filled).any()
    assert torch.equal(trajectory.filled, prepare(dlm, prompts, plan).canvas.masked)


@pytest.mark.parametrize(("family", "prompts", "plan"), CASES)
def test_a_run_is_the_trajectory_of_its_steps(model: Any, family: str, prompts: Any, plan: Plan) -> None:
    run, trajectory = (
        denoise(model(family), prompts, plan, seed=3, progress=False),
        folded(model(family), prompts, plan, seed=3, every_row=False),  # as a run asks: see `steps_from`
    )
    assert isinstance(run, Run)
    assert isinstance(run, Trajectory)
    for name in NAMES:
        torch.testing.assert_close(getattr(run, name), getattr(trajectory, name), rtol=0, atol=0, equal_nan=True)


def test_a_step_that_is_added_is_not_changed(model: Any) -> None:
    steps = list(denoising_steps(model("LLaDA"), PROMPTS, Plan(new_tokens=4)))
    before = [(step.tokens.clone(), step.predicted.clone()) for step in steps]
    trajectory = Trajectory.of(prepare(model("LLaDA"), PROMPTS, Plan(new_tokens=4)).canvas)
    for step in [*steps, *steps]:
        trajectory.add(step)
    for step, (tokens, predicted) in zip(steps, before, strict=True):
        assert torch.equal(step.tokens, tokens)
        assert torch.equal(step.predicted, predicted)


@pytest.mark.parametrize(("family", "prompts", "plan"), CASES)
def test_groups_of_a_batch_follow_one_trajectory(model: Any, family: str, prompts: Any, plan: Plan) -> None:
    first = folded(model(family), prompts, plan, seed=3)
    twice = first.repeated(2)
    assert torch.equal(twice.tokens, torch.cat([first.tokens, first.tokens]))
    again = folded(model(family), [*prompts, *prompts], plan, seed=8, follow=twice)
    assert torch.equal(again.tokens, twice.tokens)
    assert torch.equal(again.commit_step, twice.commit_step)
    assert torch.equal(again.filled, twice.filled)
