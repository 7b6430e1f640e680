"""What is not finite stops the run, and is told with its step and its layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM, Plan
from sinklens.errors import CheckFailed, NotFinite, PlanError

PROMPT = [3, 4, 5]
run = partial(sl.denoise, progress=False)
FAMILIES = ["LLaDA", "Dream", "Llama"]


def broken(tiny_model: Callable[..., HookedDLM], family: str, name: str, value: float) -> HookedDLM:
    """A fresh model with one number of one weight replaced."""
    dlm = tiny_model(family)
    with torch.no_grad():
        dlm.original_model.get_parameter(name).view(-1)[0] = value
    return dlm


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("weight", "where"),
    [("model.layers.1.mlp.down_proj.weight", "layer 1"), ("lm_head.weight", "the unembedding")],
)
def test_a_weight_that_is_no_number_stops_the_first_step_and_names_the_layer(
    tiny_model: Any, family: str, weight: str, where: str, value: float
) -> None:
    dlm = broken(tiny_model, family, weight, value)
    with pytest.raises(NotFinite, match=rf"step 0: .*since {where}"):
        run(dlm, PROMPT, Plan(new_tokens=4))
    assert not dlm.hooked


def test_a_large_edit_whose_numbers_hold_runs(tiny_model: Any) -> None:
    edit = sl.interventions.parse("scale=1e10:same/top2")
    assert run(tiny_model("LLaDA"), PROMPT, Plan(new_tokens=4), interventions=[edit]).finished


def test_a_model_that_says_nothing_in_numbers_runs(tiny_model: Any) -> None:
    """Logits of 0 are no fault where nothing overflows."""
    dlm = tiny_model("LLaDA")
    with torch.no_grad():
        dlm.original_model.lm_head.weight.zero_()
    assert run(dlm, PROMPT, Plan(new_tokens=4)).finished


def test_logits_that_rule_every_token_out_stop(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    with (
        dlm.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: logits * 0 - float("inf"))]),
        pytest.raises(NotFinite, match="since the unembedding"),
    ):
        run(dlm, PROMPT, Plan(new_tokens=4))


def test_a_nan_embedding_stops_where_its_token_is_seen(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    with torch.no_grad():
        dlm.original_model.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(NotFinite, match="since the embedding"):
        run(dlm, [3, 5], Plan(new_tokens=4))


def test_the_step_is_the_one_at_which_it_happens(tiny_model: Any) -> None:
    """The token that is forced at step 2 has no finite embedding: the forward of step 3 sees it first."""
    dlm = tiny_model("Llama")
    with torch.no_grad():
        dlm.original_model.get_input_embeddings().weight[9] = float("nan")
    with pytest.raises(NotFinite, match="step 3: ") as caught:
        run(dlm, PROMPT, Plan(new_tokens=5), force=[[6, 7, 9, 8, 8]])
    assert caught.value.run.commit_step.max() == 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_finds_every_weight_that_is_no_number(tiny_model: Any, family: str) -> None:
    """One row of the embedding whose token the calibration's prompt does not hold is found, too."""
    for name, weight in tiny_model(family).original_model.named_parameters():
        dlm = tiny_model(family)
        with torch.no_grad():
            dlm.original_model.get_parameter(name).view(-1)[weight.numel() // 2] = float("nan")
        with pytest.raises(CheckFailed, match=name.replace(".", r"\.")):
            dlm.check()


@pytest.mark.parametrize("factor", ["1e38", "1e30", "1e22"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_that_overflows_stops_the_run(tiny_model: Any, family: str, factor: str) -> None:
    """1e38 overflows by itself; the squares of the others do, in the normalisation: its output is 0, and finite."""
    edit = sl.interventions.parse(f"scale={factor}:same/top2")
    with pytest.raises(NotFinite, match=r"step 0: .*layer \d"):
        run(tiny_model(family), PROMPT, Plan(new_tokens=4), interventions=[edit])


def test_a_likelihood_of_what_is_no_number_is_none(tiny_model: Any) -> None:
    dlm = broken(tiny_model, "LLaDA", "lm_head.weight", float("nan"))
    with pytest.raises(NotFinite):
        sl.log_likelihood(dlm, [PROMPT], [[6, 7]])


def test_guidance_by_what_is_no_number_stops(tiny_model: Any) -> None:
    """Only the pass without the prompt sees the mask at the prompt's positions: its position 0 breaks there alone."""
    dlm = tiny_model("LLaDA")
    plain = dlm.original_model.forward

    def blind(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = plain(input_ids, **kwargs)
        if int(input_ids[0, 0]) == dlm.ids.mask:
            out.logits[0, -1] = float("inf")
        return out

    dlm.original_model.forward = blind
    with pytest.raises(NotFinite, match="step 0"):
        run(dlm, PROMPT, Plan(new_tokens=4, cfg_scale=1.0))


@pytest.mark.parametrize("name", ["temperature", "cfg_scale", "alg_temp", "eps", "top_p", "threshold"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_plan_holds_no_number_that_is_none(name: str, value: float) -> None:
    with pytest.raises(PlanError, match=name):
        Plan(**{name: value})
