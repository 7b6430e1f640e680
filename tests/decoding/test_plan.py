"""A plan that cannot be carried out is refused before anything is computed, by field and value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sinklens import HookedDLM, Plan, denoise, denoising_steps
from sinklens.errors import PlanError

MASK = 62
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Callable[[str], HookedDLM]:
    """A random model of a family, made before any test forbids forwards."""
    return {name: tiny_model(name) for name in ("LLaDA", "MMaDA", "Dream", "A2D-Qwen3", "Llama")}.__getitem__


def refused(dlm: HookedDLM, prompts: Any, plan: Plan, message: str, **options: Any) -> None:
    """Both entrances raise PlanError with this message."""
    with pytest.raises(PlanError, match=message):
        next(denoising_steps(dlm, prompts, plan, **options))
    with pytest.raises(PlanError, match=message):
        denoise(dlm, prompts, plan, progress=False, **options)


# Fields on their own.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("new_tokens", -1),
        ("steps", 0),
        ("block_length", 0),
        ("remasking", "best"),
        ("sampler", "mdlm"),
        ("threshold", 0.0),
        ("threshold", 1.1),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", 0),
        ("cfg_scale", -1.0),
        ("eps", 0.0),
        ("eps", 1.0),
        ("alg_temp", -0.1),
        ("suppress_eos", "always"),
    ],
)
def test_refuses_a_value_that_has_no_meaning(field: str, value: object) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**{field: value})
    assert str(caught.value).startswith(f"{field}={value!r} ")


# Fields against each other and against the model.

DIFFUSION = [
    (Plan(new_tokens=16, block_length=4, steps=6), r"steps=6 is not divisible by the 4 blocks of new_tokens=16"),
    (Plan(new_tokens=16, block_length=16, steps=17), r"steps=17 is more than new_tokens=16"),
    (Plan(new_tokens=16, block_length=5), r"new_tokens=16 is not a multiple of block_length=5"),
    (Plan(new_tokens=16, block_length=32), r"new_tokens=16 is not a multiple of block_length=32"),
    (Plan(new_tokens=8, top_p=0.9), r"top_p=0\.9 needs sampler='dream'"),
    (Plan(new_tokens=8, top_k=3), r"top_k=3 needs sampler='dream'"),
    (Plan(new_tokens=8, alg_temp=0.5), r"alg_temp=0\.5 needs sampler='dream'"),
    (Plan(new_tokens=8, remasking="origin"), r"remasking='origin' needs sampler='dream'"),
    (Plan(new_tokens=8, sampler="dream", remasking="random"), r"remasking='random' belongs to sampler='llada'"),
    (Plan(new_tokens=8, sampler="dream", block_length=4), r"block_length=4: the sampler 'dream' has no blocks"),
    (Plan(new_tokens=8, threshold=0.5, remasking="random"), r"threshold=0\.5 .* remasking='random'"),
    (Plan(new_tokens=0, block_length=4), r"block_length=4 has no meaning for filling gaps"),
]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(("plan", "message"), DIFFUSION, ids=[message for _, message in DIFFUSION])
def test_refuses_what_the_sampler_cannot_do(model: Any, plan: Plan, message: str) -> None:
    refused(model("LLaDA"), PROMPT, plan, message)


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 4),
        ("block_length", 4),
        ("remasking", "entropy"),
        ("sampler", "llada"),
        ("threshold", 0.5),
        ("cfg_scale", 1.0),
        ("alg_temp", 0.5),
    ],
)
def test_refuses_what_a_baseline_does_not_have(model: Any, field: str, value: Any) -> None:
    refused(model("Llama"), PROMPT, Plan(new_tokens=8, **{field: value}), rf"{field}={value!r} has no meaning")


# Prompts.


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
@pytest.mark.parametrize(
    ("prompts", "plan", "message"),
    [
        ([], Plan(new_tokens=8), "prompts is empty"),
        ([[]], Plan(new_tokens=8), "prompt 0 is empty"),
        ([PROMPT, []], Plan(new_tokens=8), "prompt 1 is empty"),
        ([5] * 57, Plan(new_tokens=8), "prompt 0 has 57 tokens; with new_tokens=8 that exceeds the context of 64"),
        ([PROMPT, [5] * 100], Plan(new_tokens=8), "prompt 1 has 100 tokens"),
        ([5, MASK, 6], Plan(new_tokens=8), "prompt 0 holds 1 mask tokens; to fill gaps say new_tokens=0"),
        (PROMPT, Plan(new_tokens=0), "new_tokens=0 fills gaps, and prompt 0 holds no mask token"),
    ],
)
def test_refuses_prompts_that_cannot_be_decoded(
    model: Any, family: str, prompts: Any, plan: Plan, message: str
) -> None:
    refused(model(family), prompts, plan, message)


@pytest.mark.usefixtures("no_forward")
def test_refuses_more_steps_than_gaps(model: Any) -> None:
    message = "steps=3 is more than the 2 gaps of prompt 0"
    refused(model("LLaDA"), [5, MASK, 6, MASK], Plan(new_tokens=0, steps=3), message)


@pytest.mark.usefixtures("no_forward")
def test_refuses_a_gap_that_a_baseline_cannot_see_before(model: Any) -> None:
    refused(model("Llama"), [MASK, 5], Plan(new_tokens=0), "prompt 0 begins with a gap")


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
@pytest.mark.parametrize(
    ("force", "message"),
    [
        ([[1, 2, 3]], r"force\[0\] has 3 tokens for 4 positions"),
        ([[1, 2, 3, 4, 5]], r"force\[0\] has 5 tokens for 4 positions"),
        ([[1, 2, 3, 4]] * 2, "force has 2 entries for 1 prompts"),
    ],
)
def test_refuses_forced_tokens_of_the_wrong_length(model: Any, family: str, force: Any, message: str) -> None:
    refused(model(family), PROMPT, Plan(new_tokens=4), message, force=force)


@pytest.mark.usefixtures("no_forward")
def test_refuses_a_wrong_number_of_seeds(model: Any) -> None:
    with pytest.raises(ValueError, match="seed has 3 entries for 2 prompts"):
        next(denoising_steps(model("LLaDA"), [PROMPT, PROMPT], Plan(new_tokens=4), seed=[1, 2, 3]))


# What is accepted.


def test_no_forward_would_be_noticed(model: Any, request: pytest.FixtureRequest) -> None:
    """The control of every test above: a valid plan does reach the forward that they forbid."""
    request.getfixturevalue("no_forward")
    with pytest.raises(AssertionError, match="a forward was run"):
        next(denoising_steps(model("LLaDA"), PROMPT, Plan(new_tokens=8)))


def test_defaults_are_the_familys(model: Any) -> None:
    llada = Plan(new_tokens=64).resolved(model("LLaDA"))
    assert (llada.sampler, llada.remasking, llada.block_length, llada.steps) == ("llada", "low_confidence", 32, 64)
    dream = Plan(new_tokens=24).resolved(model("Dream"))
    assert (dream.sampler, dream.remasking, dream.block_length, dream.steps) == ("dream", "entropy", 24, 24)
    short = Plan(new_tokens=10).resolved(model("LLaDA"))  # the default block does not divide it
    assert short.block_length == 10


@pytest.mark.parametrize("family", ["LLaDA", "MMaDA", "Dream", "A2D-Qwen3"])
def test_resolving_twice_changes_nothing(model: Any, family: str) -> None:
    once = Plan(new_tokens=16).resolved(model(family))
    assert once.resolved(model(family)) == once


def test_a_baseline_takes_one_step_per_token(model: Any) -> None:
    assert Plan(new_tokens=7).resolved(model("Llama")).steps == 7


def test_for_causal_drops_what_a_baseline_does_not_use(model: Any) -> None:
    plan = Plan(new_tokens=16, steps=8, block_length=8, remasking="margin", cfg_scale=1.0, temperature=0.5)
    assert plan.for_causal() == Plan(new_tokens=16, temperature=0.5)
    plan.for_causal().resolved(model("Llama"))


def test_a_prompt_that_just_fits_is_accepted(model: Any) -> None:
    step = next(denoising_steps(model("LLaDA"), [5] * 56, Plan(new_tokens=8)))
    assert step.canvas.tokens.shape == (1, 64)
