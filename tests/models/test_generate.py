"""Generation of baselines is transformers' own, token for token; a diffusion model has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM
from sinklens.errors import Unsupported

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
NEW = 12


def expected(stock: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    return stock.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=1, eos_token_id=None, **more)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_a_baseline_generates_what_the_plain_model_does(
    tiny_stock: Callable[..., Any], tiny_model: Callable[..., HookedDLM], family: str, hooked: bool
) -> None:
    """With the cache; a hook that only looks changes no token."""
    dlm, want, seen = tiny_model(family), expected(tiny_stock(family), IDS), []

    def look(pattern: torch.Tensor, *, hook: Any) -> None:
        seen.append(pattern.shape)

    with dlm.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", look)] if hooked else []):
        for row in range(2):
            got = dlm.generate(IDS[row : row + 1], NEW, do_sample=False, stop_at_eos=False, verbose=False)
            assert torch.equal(torch.as_tensor(got), want[row : row + 1])
    assert bool(seen) == hooked
    assert torch.equal(expected(dlm.original_model, IDS), want)


def test_the_wrapped_model_generates_padded_rows_as_the_plain_one(
    tiny_stock: Callable[..., Any], tiny_model: Callable[..., HookedDLM]
) -> None:
    padded, mask = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    want = expected(tiny_stock("Llama"), padded, attention_mask=mask)
    assert torch.equal(expected(tiny_model("Llama").original_model, padded, attention_mask=mask), want)


def test_generation_from_text_is_that_of_its_ids() -> None:
    arm = sl.HookedDLM.from_pretrained("tiny-arm")
    text = sl.tasks.Echo(n=1, seed=1)[0].prompt
    ids = torch.tensor([arm.encode(text)])
    plain = arm.original_model.generate(ids, max_new_tokens=NEW, do_sample=False)
    continued = arm.decode(plain[0, ids.shape[1] :])
    for way in (arm.generate, arm.hf_generate):
        got = way(text, max_new_tokens=NEW, do_sample=False, **({"verbose": False} if way == arm.generate else {}))
        assert continued.strip()
        assert got.endswith(continued)


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "A2D-Qwen3"])
def test_a_diffusion_model_does_not_write_from_left_to_right(tiny_model: Callable[..., HookedDLM], family: str) -> None:
    dlm = tiny_model(family)
    for way in (dlm.generate, dlm.hf_generate, dlm.original_model.generate):
        with pytest.raises(Unsupported, match=r"sinklens\.denoise"):
            way(IDS, max_new_tokens=NEW)
