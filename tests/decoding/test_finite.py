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
from sinklens.models import norms

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


def scaled(point: str, factor: float) -> tuple[str, Callable[..., torch.Tensor]]:
    """A hook that multiplies what its point carries."""
    return point, lambda tensor, hook: tensor * factor


# The stream, or a part of a layer, made huge and then small again: nothing that is left of it is large.
INNER = [
    ("Qwen3", [scaled("blocks.1.attn.q.hook_out", 1e25)], "layer 1"),
    ("Qwen3", [scaled("blocks.0.attn.k.hook_out", 1e25)], "layer 0"),
    ("Qwen3", [scaled("blocks.0.attn.k.hook_out", float("inf"))], "layer 0"),
    *(
        (family, [scaled("blocks.0.hook_in", 1e25), scaled("blocks.1.hook_in", 1e-25)], "layer 0")
        for family in (*FAMILIES, "Qwen3")
    ),
    ("LLaDA", [scaled("blocks.1.ln1.hook_in", 1e25), scaled("blocks.1.ln1.hook_normalized", 2.0)], "layer 1"),
    ("LLaDA", [scaled("blocks.1.mlp.hook_in", 1.0), scaled("blocks.1.ln2.hook_in", 1e25)], "layer 1"),
    ("Llama", [scaled("ln_final.hook_in", 1e25)], "the normalisation model.norm"),
]


@pytest.mark.filterwarnings("ignore:A forward hook edited:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("family", "hooks", "where"), INNER)
def test_an_inner_normalisation_that_overflows_stops_the_run(
    tiny_model: Any, family: str, hooks: Any, where: str, dtype: torch.dtype
) -> None:
    """Its output would be 0, and every logit finite."""
    dlm = tiny_model(family).to(dtype)
    with dlm.hooks(fwd_hooks=hooks), pytest.raises(NotFinite, match=rf"step 0: .*since {where}\b") as caught:
        run(dlm, PROMPT, Plan(new_tokens=4))
    assert "original_component" not in str(caught.value)
    if dlm.is_causal:
        with dlm.hooks(fwd_hooks=hooks), pytest.raises(NotFinite, match=where):
            sl.log_likelihood(dlm, [PROMPT], [[6, 7]])


@pytest.mark.parametrize("what", ["module hook", "replaced forward", "another norm", "a later step"])
def test_whoever_makes_an_inner_normalisation_overflow_it_stops(tiny_model: Any, what: str) -> None:
    dlm, step = tiny_model("Qwen3"), 0
    attention = dlm.original_model.model.layers[1].self_attn
    inner = attention.q_proj.forward
    if what == "module hook":
        attention.q_proj.register_forward_hook(lambda module, args, out: out * 1e25)
    elif what == "replaced forward":
        attention.q_proj.forward = lambda stream: inner(stream) * 1e25
    elif what == "another norm":
        attention.q_norm = torch.nn.RMSNorm(8)
        attention.q_proj.register_forward_hook(lambda module, args, out: out * 1e25)
    else:
        step, seen = 2, []

        def late(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return out * (1e25 if len(seen) == 3 else 1)  # repeated to find the layer, it is small again

        attention.q_proj.register_forward_hook(late)
    with pytest.raises(NotFinite, match=rf"step {step}: .*since layer 1\b"):
        run(dlm, PROMPT, Plan(new_tokens=4))


def test_only_positions_that_are_there_count(tiny_model: Any) -> None:
    """What is huge at a pad, or in a row that is done, is nobody's."""
    dlm = tiny_model("Qwen3")

    def at_the_pad(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[1, 0] = 1e25
        return tensor

    prompts = [[3, 4, 5, 6], [7, 8]]
    plain = run(dlm, prompts, Plan(new_tokens=4))
    with dlm.hooks(fwd_hooks=[("blocks.0.attn.q.hook_out", at_the_pad)]):
        assert torch.equal(run(dlm, prompts, Plan(new_tokens=4)).tokens, plain.tokens)
        with pytest.raises(NotFinite, match=r"step 0: the logits of row 1, position 0"):
            run(dlm, [[3, 4, 5, 6], [7, 8, 9, 10]], Plan(new_tokens=4))


@pytest.mark.parametrize("family", [*FAMILIES, "Qwen3"])
def test_watching_changes_no_bit(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    tokens = torch.tensor([[3, 4, 5, 6, 7, 62]])
    plain, lengths = dlm(tokens), []
    norms.keep_watched(dlm)
    watched = norms.watching(lambda norm, tensor: lengths.append(norms.length(norm, tensor)), lambda: dlm(tokens))
    assert torch.equal(watched, plain)
    assert len(lengths) == dlm.n_layers * (4 if family == "Qwen3" else 2) + 1
    assert all(bool(each.isfinite().all()) for each in lengths)


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
