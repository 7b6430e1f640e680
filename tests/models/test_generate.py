"""Generation of baselines is transformers' own, token for token; a diffusion model has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM
from sinklens.errors import Unsupported
from sinklens.models.special_ids import SpecialIds

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


def test_every_eos_of_the_checkpoint_ends_what_is_generated(
    tiny_stock: Callable[..., Any], tiny_model: Callable[..., HookedDLM]
) -> None:
    """The token that the plain model writes fifth is made a second EOS, which no tokenizer names."""
    dlm = tiny_model("Llama")
    want = expected(tiny_stock("Llama"), IDS[:1])[0].tolist()
    second = want[8]
    length = 4 + want[4:].index(second) + 1
    dlm.ids = SpecialIds(None, (1, second), 0, 1)
    ways: list[Callable[..., Any]] = [
        lambda: dlm.generate(IDS[:1], NEW, do_sample=False, verbose=False),
        lambda: list(dlm.generate_stream(IDS[:1], NEW, do_sample=False, verbose=False))[-1],
    ]
    assert torch.as_tensor(ways[0]())[0].tolist() == want[:length]
    last = torch.as_tensor(ways[1]()).flatten().tolist()
    assert last[-1] == second


def test_transformers_own_generation_without_a_tokenizer_is_refused(tiny_model: Callable[..., HookedDLM]) -> None:
    with pytest.raises(Unsupported, match="has no tokenizer"):
        tiny_model("Llama").hf_generate(IDS)


def test_generation_after_a_cast_is_that_of_a_model_that_was_loaded_so() -> None:
    ids = torch.randint(2, 60, (1, 24), generator=torch.Generator().manual_seed(1))
    loaded = sl.HookedDLM.from_pretrained("tiny-arm", dtype=torch.bfloat16)
    cast = sl.HookedDLM.from_pretrained("tiny-arm")
    cast.to(torch.bfloat16)
    cast.generate(ids, 1, do_sample=False, verbose=False)
    assert torch.equal(cast.original_model.model.rotary_emb.inv_freq, loaded.original_model.model.rotary_emb.inv_freq)
