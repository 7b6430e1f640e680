"""A plan that cannot be carried out is refused before anything is computed, by field and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens import HookedDLM, Plan, ablate, denoise, denoising_steps
from sinklens.decoding.prompts import prepare
from sinklens.errors import PlanError

MASK = 62
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Callable[[str], HookedDLM]:
    """A random model of a family, made before any test forbids forwards."""
    return {
        name: tiny_model(name) for name in ("LLaDA", "MMaDA", "Dream", "A2D-Qwen3", "DiffuGPT", "Llama")
    }.__getitem__


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
        ("new_tokens", 8.0),
        ("new_tokens", True),
        ("steps", "8"),
        ("block_length", 4.5),
        ("top_k", False),
    ],
)
def test_refuses_a_value_that_has_no_meaning(field: str, value: object) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**{field: value})
    assert str(caught.value).startswith(f"{field}={value!r} ")


@pytest.mark.parametrize("threshold", [0.9, 0.01, 1.0])
def test_a_threshold_that_an_entropy_cannot_reach_is_refused(threshold: float) -> None:
    """Minus the entropy is never positive: such a threshold would never fire, and every step commit one token."""
    with pytest.raises(PlanError, match=rf"threshold={threshold} must be below 0 .*minus the entropy"):
        Plan(threshold=threshold, remasking="entropy")


@pytest.mark.usefixtures("no_forward")
def test_a_threshold_is_checked_against_the_familys_own_confidence(model: Any) -> None:
    """Dream's default is the entropy."""
    refused(
        model("Dream"),
        PROMPT,
        Plan(new_tokens=8, threshold=0.9),
        r"threshold=0\.9 must be below 0 for remasking='entropy'",
    )


# Fields against each other and against the model.

DIFFUSION = [
    (Plan(new_tokens=16, block_length=4, steps=6), r"steps=6 is not divisible by the 4 blocks of new_tokens=16"),
    (Plan(new_tokens=16, block_length=16, steps=17), r"steps=17 is more than new_tokens=16"),
    (Plan(new_tokens=16, block_length=5), r"new_tokens=16 is not a multiple of block_length=5"),
    (Plan(new_tokens=16, block_length=32), r"new_tokens=16 is not a multiple of block_length=32"),
    (Plan(new_tokens=8, top_p=0.9), r"top_p=0\.9 needs sampler='dream'"),
    (Plan(new_tokens=8, top_k=3), r"top_k=3 needs sampler='dream'"),
    (Plan(new_tokens=8, alg_temp=0.5), r"alg_temp=0\.5 needs sampler='dream'"),
    (Plan(new_tokens=8, eps=0.1), r"eps=0\.1 needs sampler='dream'"),
    (Plan(new_tokens=8, sampler="dream", suppress_eos="both"), r"suppress_eos='both' needs sampler='llada'"),
    (Plan(new_tokens=8, remasking="origin"), r"remasking='origin' needs sampler='dream'"),
    (Plan(new_tokens=8, sampler="dream", remasking="random"), r"remasking='random' belongs to sampler='llada'"),
    (Plan(new_tokens=8, sampler="dream", block_length=4), r"block_length=4: the sampler 'dream' has no blocks"),
    (Plan(new_tokens=8, threshold=0.5, remasking="random"), r"threshold=0\.5 .* remasking='random'"),
    (Plan(new_tokens=8, threshold=-0.5), r"threshold=-0\.5 must be in \(0, 1\] for remasking='low_confidence'"),
    (Plan(new_tokens=8, sampler="diffugpt", eps=0.1), r"eps=0\.1 needs sampler='dream' or 'ddpm_cache'"),
    (Plan(new_tokens=8, sampler="diffugpt", remasking="margin"), r"remasking='margin': the sampler 'diffugpt' reveals"),
    (Plan(new_tokens=8, sampler="ddpm_cache", remasking="random"), r"'ddpm_cache' reveals by chance"),
    (Plan(new_tokens=8, sampler="ddpm_cache", block_length=4), r"the sampler 'ddpm_cache' has no blocks"),
    (Plan(new_tokens=8, sampler="ddpm_cache", threshold=0.5), r"threshold=0\.5 compares confidences"),
    (Plan(new_tokens=8, sampler="diffugpt", suppress_eos="both"), r"suppress_eos='both' needs sampler='llada'"),
    (Plan(new_tokens=8, sampler="diffugpt", alg_temp=0.5), r"alg_temp=0\.5 needs sampler='dream'"),
    (Plan(new_tokens=8, threshold=0.5, sampler="dream", remasking="origin"), r"remasking='origin' has none"),
    (Plan(new_tokens=0, block_length=4), r"block_length=4 has no meaning for filling gaps"),
]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(("plan", "message"), DIFFUSION, ids=[message for _, message in DIFFUSION])
def test_refuses_what_the_sampler_cannot_do(model: Any, plan: Plan, message: str) -> None:
    refused(model("LLaDA"), PROMPT, plan, message)


NOT_CAUSAL = [
    ("steps", 4),
    ("steps", 9),
    ("block_length", 4),
    ("block_length", 8),
    ("remasking", "entropy"),
    ("sampler", "llada"),
    ("threshold", 0.5),
    ("cfg_scale", 1.0),
    ("alg_temp", 0.5),
    ("alg_temp", 0.0),
    ("eps", 0.1),
    ("suppress_eos", "confidence"),
    ("suppress_eos", "both"),
]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(("field", "value"), NOT_CAUSAL)
def test_refuses_what_a_baseline_does_not_have(model: Any, field: str, value: Any) -> None:
    refused(model("Llama"), PROMPT, Plan(new_tokens=8, **{field: value}), rf"{field}={value!r} has no meaning")


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(("field", "value"), NOT_CAUSAL)
def test_an_ablation_refuses_what_a_run_refuses(model: Any, field: str, value: Any) -> None:
    """No field of a plan is dropped on the way: the ablation of a baseline would be of another plan than it says."""
    plan = Plan(new_tokens=8, **{field: value})
    messages = []
    for refuse in (
        lambda: denoise(model("Llama"), PROMPT, plan, progress=False),
        lambda: ablate(model("Llama"), [PROMPT], {}, plan, metrics=["agreement"], progress=False),
        lambda: prepare(model("Llama"), PROMPT, plan),
    ):
        with pytest.raises(PlanError) as caught:
            refuse()
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


def test_an_ablation_of_a_baseline_takes_the_plan_made_for_it(model: Any) -> None:
    plan = Plan(new_tokens=4, steps=2, block_length=2, remasking="margin").for_causal()
    assert ablate(model("Llama"), [PROMPT], {}, plan, metrics=["agreement"], progress=False).finished


# Prompts.


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
@pytest.mark.parametrize(
    ("prompts", "plan", "message"),
    [
        ([], Plan(new_tokens=8), "prompts is empty"),
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
    assert (dream.eps, llada.eps) == (1e-3, None)
    assert Plan(new_tokens=8, sampler="ddpm_cache").resolved(model("LLaDA")).eps == 1e-5
    gpt = Plan(new_tokens=24, steps=64).resolved(model("DiffuGPT"))
    assert (gpt.sampler, gpt.remasking, gpt.block_length, gpt.steps) == ("diffugpt", "origin", 24, 64)
    short = Plan(new_tokens=10).resolved(model("LLaDA"))  # the default block does not divide it
    assert short.block_length == 10


def test_a_sampler_without_blocks_is_given_none(model: Any) -> None:
    """Also in a family whose own sampler has blocks: nobody asked for them."""
    plan = Plan(new_tokens=64, sampler="dream").resolved(model("LLaDA"))
    assert (plan.sampler, plan.block_length) == ("dream", 64)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan that holds by itself."""
    fields = {
        "new_tokens": st.sampled_from([0, 1, 8, 10, 64]),
        "steps": st.sampled_from([None, 1, 4, 8, 64]),
        "block_length": st.sampled_from([None, 2, 8]),
        "remasking": st.sampled_from([None, "low_confidence", "random", "margin", "origin"]),
        "sampler": st.sampled_from([None, None, "llada", "dream", "diffugpt", "ddpm_cache", "p2", "dplm"]),
        "threshold": st.sampled_from([None, None, 0.5]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "top_k": st.sampled_from([None, 3]),
        "cfg_scale": st.sampled_from([0.0, 0.0, 1.0]),
        "suppress_eos": st.sampled_from([None, "logits", "both"]),
        "resample": st.sampled_from([None, None, 0.25]),
    }
    said = draw(st.sets(st.sampled_from(sorted(fields)), max_size=4))
    return Plan(**{name: draw(fields[name]) for name in said})


@given(plans(), st.sampled_from(["LLaDA", "MMaDA", "Dream", "A2D-Qwen3", "Llama", "DiffuGPT"]))
def test_resolving_twice_changes_nothing(model: Any, plan: Plan, family: str) -> None:
    for given_ in (plan, plan.for_causal()) if family == "Llama" else (plan,):
        try:
            once = given_.resolved(model(family))
        except PlanError:
            assert given_ is plan
            continue
        assert once.resolved(model(family)) == once
        assert once.resolved(model(family)).digest == once.digest


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_the_plan_of_a_run_runs_again(model: Any, family: str) -> None:
    first = denoise(model(family), PROMPT, Plan(new_tokens=6), progress=False)
    again = denoise(model(family), PROMPT, first.plan, progress=False)
    assert again.plan == first.plan
    assert again.tokens.tolist() == first.tokens.tolist()


def test_a_baseline_takes_one_step_per_token(model: Any) -> None:
    assert Plan(new_tokens=7).resolved(model("Llama")).steps == 7
    assert Plan(new_tokens=7, steps=7).resolved(model("Llama")).steps == 7  # which is what it does anyway


@given(plans())
def test_for_causal_drops_what_a_baseline_does_not_use_and_nothing_else(model: Any, plan: Plan) -> None:
    causal = plan.for_causal()
    causal.resolved(model("Llama"))
    assert causal.for_causal() == causal
    for name in ("new_tokens", "temperature", "top_p", "top_k", "allow_mask", "chat"):
        assert getattr(causal, name) == getattr(plan, name)
    assert (causal.suppress_eos is None) == (plan.suppress_eos is None)


def test_for_causal_keeps_what_a_baseline_can_do_of_an_option() -> None:
    plan = Plan(new_tokens=16, steps=8, block_length=8, remasking="margin", cfg_scale=1.0, temperature=0.5)
    assert plan.for_causal() == Plan(new_tokens=16, temperature=0.5)
    kept = {value: Plan(suppress_eos=value).for_causal().suppress_eos for value in ("logits", "confidence", "both")}  # pyright: ignore
    assert kept == {"logits": "logits", "confidence": None, "both": "logits"}


# A plan is a value.


@given(plans())
def test_a_plan_survives_being_data(plan: Plan) -> None:
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["type"] == "Plan"
    assert Plan.from_dict(data) == plan
    assert Plan.from_dict(data).digest == plan.digest


@given(plans(), plans())
def test_plans_have_one_digest_iff_they_are_equal(one: Plan, other: Plan) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_a_plan_shows_what_was_said() -> None:
    assert repr(Plan()) == "Plan()"
    assert repr(Plan(new_tokens=8, temperature=0.5)) == "Plan(new_tokens=8, temperature=0.5)"
    assert Plan(new_tokens=np.int64(8)).digest == Plan(new_tokens=8).digest  # pyright: ignore


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Plan has no field 'new_token'; its fields are new_tokens, steps"):
        Plan.from_dict({"type": "Plan", "new_token": 8})


def test_a_prompt_that_just_fits_is_accepted(model: Any) -> None:
    step = next(denoising_steps(model("LLaDA"), [5] * 56, Plan(new_tokens=8)))
    assert step.canvas.tokens.shape == (1, 64)
