"""Rotary frequencies do not depend on what was run or cast before: each forward equals that of a fresh model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM

TYPES: list[dict[str, Any]] = [
    {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [2.0, 4.0, 6.0, 8.0],
        "original_max_position_embeddings": 32,
        "factor": 2.0,
    },
]
LENGTHS = (64, 100, 64, 20, 80, 63)  # n_ctx is 64


@pytest.mark.parametrize("family", ["Llama", "LLaDA"])
@pytest.mark.parametrize("rope", TYPES, ids=lambda rope: rope["rope_type"])
def test_a_forward_does_not_depend_on_those_before(
    tiny_stock: Callable[..., Any], tiny_model: Callable[..., HookedDLM], family: str, rope: dict[str, Any]
) -> None:
    dlm = tiny_model(family, rope_parameters=rope)
    tokens = torch.randint(0, 60, (1, 100), generator=torch.Generator().manual_seed(0))
    for length in LENGTHS:
        fresh = tiny_stock("Llama", rope_parameters=rope, is_causal=dlm.is_causal)
        for module in fresh.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = dlm.is_causal
        with torch.no_grad():
            expected = fresh(tokens[:, :length], use_cache=False).logits
            torch.testing.assert_close(dlm(tokens[:, :length]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rope", TYPES, ids=lambda rope: rope["rope_type"])
@torch.no_grad()
def test_a_call_of_the_wrapped_model_does_not_depend_on_those_before(
    tiny_stock: Callable[..., Any], tiny_model: Callable[..., HookedDLM], rope: dict[str, Any]
) -> None:
    """Model, decoder and rotary embedding called by themselves, copies of them, and transformers' own writing."""
    dlm = tiny_model("Llama", rope_parameters=rope)
    tokens = torch.randint(0, 60, (1, 100), generator=torch.Generator().manual_seed(0))
    model: Any = dlm.original_model
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    for length in LENGTHS:
        fresh, now = tiny_stock("Llama", rope_parameters=rope), tokens[:, :length]
        place = torch.arange(length)[None]
        expected = fresh(now, use_cache=False)
        for each in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(dlm).original_model):
            torch.testing.assert_close(each(now, use_cache=False).logits, expected.logits, atol=1e-5, rtol=1e-5)
        hidden = model.model(now, use_cache=False).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), expected.logits, atol=1e-5, rtol=1e-5)
        fresh = tiny_stock("Llama", rope_parameters=rope)
        for ours, theirs in zip(
            model.model.rotary_emb(hidden, place), fresh.model.rotary_emb(hidden, place), strict=True
        ):
            assert torch.equal(ours, theirs)
        fresh = tiny_stock("Llama", rope_parameters=rope)
        assert torch.equal(model.generate(now, **options), fresh.generate(now, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", ["to", "half", "before"])
def test_a_cast_model_is_the_loaded_one(dtype: torch.dtype, cast: str) -> None:
    loaded = sl.HookedDLM.from_pretrained("tiny-dlm", dtype=dtype)
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    if cast == "before":
        model, family = dlm.original_model.to(dtype), dlm.family
        dlm = sl.HookedDLM.from_transformers(model, dlm.tokenizer, family, ids=dlm.ids)
    elif cast == "half":
        dlm = dlm.half() if dtype == torch.float16 else dlm.bfloat16()
    else:
        dlm = dlm.to(dtype)
    tokens = torch.randint(0, 60, (2, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(dlm.original_model(tokens).logits, loaded(tokens))
    assert torch.equal(dlm(tokens), loaded(tokens))
    assert cast == "before" or dlm.fingerprint() == loaded.fingerprint()  # wrapped in memory it has another name
    assert torch.equal(dlm.original_model.model.rotary_emb.inv_freq, loaded.original_model.model.rotary_emb.inv_freq)


def test_a_cast_there_and_back_keeps_the_frequencies() -> None:
    dlm, fresh = (sl.HookedDLM.from_pretrained("tiny-dlm") for _ in range(2))
    dlm.to(torch.float64)
    dlm.to(torch.float32)
    assert torch.equal(dlm(torch.tensor([[3, 4, 5]])), fresh(torch.tensor([[3, 4, 5]])))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_cast_to_half_and_back_leaves_frequencies_that_nobody_rounded(half: torch.dtype) -> None:
    dlm, fresh = (sl.HookedDLM.from_pretrained("tiny-dlm") for _ in range(2))
    dlm.to(half)
    dlm.to(torch.float32)
    fresh.original_model.load_state_dict(
        {name: w.to(half).float() for name, w in fresh.original_model.state_dict().items()}
    )
    tokens = torch.randint(0, 60, (2, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(dlm(tokens), fresh(tokens))


def test_frequencies_that_somebody_has_set_stay() -> None:
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    dlm.original_model.model.rotary_emb.inv_freq = torch.zeros_like(dlm.original_model.model.rotary_emb.inv_freq)
    dlm(torch.tensor([[3, 4, 5]]))
    assert not dlm.original_model.model.rotary_emb.inv_freq.any()
