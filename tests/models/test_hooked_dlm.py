"""HookedDLM: calibration, alignment, padding, and what TransformerLens's tools ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import ActivationCache
from transformer_lens.head_detector import detect_head
from transformer_lens.model_protocol import TransformerLensModel

from sinklens import HookedDLM
from sinklens.errors import CheckFailed, Unsupported
from sinklens.models import attention
from sinklens.models.families import FAMILIES
from sinklens.sinks import Sight

NAMES = [family.name for family in FAMILIES]
SHIFTED = ("Dream", "CoDA", "open-dcoder", "DiffuLLaMA", "RND1", "DiffuGPT", "SmolLM2-diffusion")
TOKENS = torch.tensor([[5, 17, 62, 9, 30, 2, 44]])
PATTERN = "blocks.0.attn.hook_pattern"


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Callable[[str], HookedDLM]:
    """A random model of a family, made once."""
    return lru_cache(tiny_model)


def nothing(tensor: Tensor, *, hook: Any) -> None:
    """A hook that only looks."""


# Calibration.


@pytest.mark.parametrize("family", NAMES)
def test_check_passes_and_says_how_far_off_it_is(model: Any, family: str) -> None:
    found = model(family).check()
    assert set(found) >= {"row_sums", "reference", "edit", "padding"}
    assert found["row_sums"] < 1e-5
    assert found["reference"] < 1e-5
    assert found["padding"] < 1e-5
    assert found["edit"] > 1e-2


def broken_attend(defect: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention in the open with one defect."""

    def attend(
        points: Any, received: Any, q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float, *, path: str
    ) -> tuple[Tensor, Tensor]:
        scores_point, pattern_point = points
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
        if defect == "mask ignored":
            sight = Sight(torch.ones_like(sight.valid))
        if defect == "causal":
            sight = Sight(sight.valid, "causal")
        scores = (q @ k.transpose(-2, -1) * scale).masked_fill(~sight.rows(slice(None))[:, None], float("-inf"))
        pattern = scores_point(scores).softmax(-1).nan_to_num()
        if defect == "edit discarded":
            pattern_point(pattern)
        elif defect == "rows not normalised":
            pattern = pattern_point(pattern * 0.9)
        elif defect == "wrong shape":
            pattern = pattern_point(pattern[:, :1]).expand_as(pattern)
        else:
            pattern = pattern_point(pattern)
        return pattern @ v, pattern

    return attend


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("edit discarded", r"an edit of blocks\.0\.attn\.hook_pattern did not change the logits"),
        ("rows not normalised", "pattern rows sum to 1"),
        ("wrong shape", r"did not carry a pattern of shape \(1, 4, 8, 8\)"),
        ("causal", "hooked logits differ from the unhooked transformers model"),
        ("mask ignored", "left padding"),
    ],
)
def test_check_fails_on_a_broken_bridge(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, defect: str, message: str
) -> None:
    dlm = tiny_model("LLaDA")
    monkeypatch.setattr(attention.blocks, "attend", broken_attend(defect))
    with pytest.raises(CheckFailed, match=message):
        dlm.check()


def test_the_broken_path_without_a_defect_passes(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    dlm = tiny_model("LLaDA")
    monkeypatch.setattr(attention.blocks, "attend", broken_attend("nothing"))
    dlm.check()


def test_check_fails_when_the_pattern_path_is_never_taken(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm = tiny_model("LLaDA")
    monkeypatch.setattr(attention.Points, "is_open", False)
    with pytest.raises(CheckFailed, match="did not carry a pattern"):
        dlm.check()


def test_check_sees_padding_that_leaks_on_the_fused_path(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks away from the pattern (a steering vector, say) run the bridge's fused attention."""
    dlm = tiny_model("LLaDA")

    fused = attention.sdpa_attention_forward

    def leaky(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return fused(module, q, k, v, None, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", leaky)
    with pytest.raises(CheckFailed, match="left padding"):
        dlm.check()


def test_a_broken_checkpoint_can_be_loaded_only_unchecked(fidelity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(fidelity / "dream" / "checkpoint")
    monkeypatch.setattr(attention.blocks, "attend", broken_attend("edit discarded"))
    with pytest.raises(CheckFailed, match="dream"):
        HookedDLM.from_pretrained(folder)
    assert HookedDLM.from_pretrained(folder, check=False).n_layers == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_check_passes_in_other_precisions(tiny_model: Any, dtype: torch.dtype) -> None:
    dlm = tiny_model("Dream").to(dtype)
    assert dlm.dtype == dtype
    assert dlm.check()["row_sums"] < 1e-2


# Logits.


@pytest.mark.parametrize("family", NAMES)
def test_left_padding_changes_nothing(model: Any, family: str) -> None:
    """On the plain path, on the bridge's fused path and on its pattern path."""
    dlm = model(family)
    padded, mask = F.pad(TOKENS, (3, 0), value=1), F.pad(torch.ones_like(TOKENS), (3, 0)).bool()
    alone = dlm(TOKENS)
    for point in (None, "hook_out", "hook_pattern"):
        with dlm.hooks(fwd_hooks=[(f"blocks.0.attn.{point}", nothing)] if point else []):
            ours = dlm(padded, attention_mask=mask)[:, 3:]
        # Aligned Dream logits of the first real position come from the padding before it.
        torch.testing.assert_close(ours[:, 1:], alone[:, 1:], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_logits_are_aligned_where_a_family_shifts_them(model: Any, family: str) -> None:
    """Row i scores position i, wherever logits come from; the transformers model itself stays raw."""
    dlm = model(family)
    number = torch.arange(TOKENS.shape[1]) // (dlm.in_blocks.length if dlm.in_blocks else TOKENS.shape[1])
    in_blocks = None if dlm.in_blocks is None else (number <= number[:, None])[None, None]
    raw = dlm.original_model(TOKENS, attention_mask=in_blocks).logits
    expected = torch.cat([raw[:, :1], raw[:, :-1]], 1) if family in SHIFTED else raw
    close = {"atol": 5e-5, "rtol": 1e-5}
    torch.testing.assert_close(dlm(TOKENS), expected, **close)
    torch.testing.assert_close(dlm.run_with_cache(TOKENS)[0], expected, **close)
    torch.testing.assert_close(dlm.run_with_cache(TOKENS, return_type="logits")[0], expected, **close)
    torch.testing.assert_close(dlm.run_with_hooks(TOKENS, fwd_hooks=[(PATTERN, nothing)]), expected, **close)
    assert dlm.run_with_hooks(TOKENS, return_type=None) is None


def test_an_integer_mask_is_a_boolean_one(model: Any) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    assert torch.equal(model("LLaDA")(TOKENS, attention_mask=mask), model("LLaDA")(TOKENS, attention_mask=mask.bool()))


# Hooks.


@pytest.mark.parametrize("family", ["LLaDA", "Qwen3"])
def test_hooked_says_whether_anybody_looks(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    assert not dlm.hooked
    with dlm.hooks(fwd_hooks=[(PATTERN, nothing)]):
        assert dlm.hooked
    assert not dlm.hooked
    with dlm.hooks(bwd_hooks=[(PATTERN, nothing)]):
        assert dlm.hooked
    assert not dlm.hooked
    dlm.add_hook(PATTERN, nothing)
    assert dlm.hooked
    dlm.reset_hooks()
    assert not dlm.hooked


@pytest.mark.parametrize("family", ["LLaDA", "Qwen3"])
def test_nobody_looks_any_more_after_run_with_cache(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    dlm.run_with_cache(TOKENS)
    assert not dlm.hooked


def test_unhooked_after_an_error_inside_a_hook(tiny_model: Any) -> None:
    def fails(tensor: Tensor, *, hook: Any) -> None:
        raise ZeroDivisionError

    dlm = tiny_model("LLaDA")
    with pytest.raises(ZeroDivisionError):
        dlm.run_with_hooks(TOKENS, fwd_hooks=[(PATTERN, fails)])
    assert not dlm.hooked


def test_a_plain_module_hook_counts_as_hooked(tiny_model: Any) -> None:
    """A hook of torch's own on a module of the bridge must be seen, and so must change what dlm() gives."""
    dlm = tiny_model("LLaDA")
    plain = dlm(TOKENS)
    handle = dlm.blocks[0].attn.register_forward_hook(lambda module, args, out: (out[0] * 0, *out[1:]))
    try:
        assert dlm.hooked
        assert not torch.allclose(dlm(TOKENS), plain)
    finally:
        handle.remove()
    assert not dlm.hooked


@pytest.mark.parametrize("family", NAMES)
def test_hook_table_lists_pattern_and_scores_of_every_layer(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    table = dlm.hook_table()
    for layer in range(dlm.n_layers):
        for point in ("hook_pattern", "hook_attn_scores"):
            assert table[f"blocks.{layer}.attn.{point}"] == (1, dlm.n_heads, 5, 5)
    assert "blocks.0.attn.hook_result" not in table  # off by default, so it never fires
    assert not dlm.hooked


def test_hook_table_of_a_context_shorter_than_five(tiny_model: Any) -> None:
    assert tiny_model("LLaDA", max_position_embeddings=4).hook_table()[PATTERN] == (1, 4, 4, 4)


# TransformerLens.


@pytest.mark.parametrize("family", NAMES)
def test_it_is_a_transformer_lens_model(model: Any, family: str) -> None:
    dlm = model(family)
    assert isinstance(dlm, TransformerLensModel)
    assert dlm.cfg.n_layers == dlm.n_layers == 2
    assert dlm.cfg.n_heads == dlm.n_heads == 4
    assert dlm.cfg.attention_dir == ("causal" if dlm.is_causal else "bidirectional")
    assert dlm.n_ctx == 64 - dlm.family.first_position(dlm.original_model.config)


def test_run_with_cache_gives_an_activation_cache(model: Any) -> None:
    dlm = model("LLaDA")
    logits, cache = dlm.run_with_cache(TOKENS)
    assert isinstance(cache, ActivationCache)
    assert cache["pattern", 1].shape == (1, 4, 7, 7)
    stacked = cache.decompose_resid(return_labels=False)
    final = cache["ln_final.hook_in"]
    torch.testing.assert_close(stacked.sum(0), final, atol=1e-4, rtol=1e-4)
    assert logits.shape == (1, 7, 64)


def test_head_detector_is_refused_where_attention_looks_ahead(official: Any) -> None:
    """Its patterns are lower triangles. What it gives for baselines is in tests/compose."""
    dlm = official("a2d_qwen3")
    text = dlm.tokenizer.decode([5, 9, 13, 21])
    length = dlm.to_tokens(text).shape[1]
    for wanted in ("induction_head", torch.ones(length, length).tril()):
        with pytest.raises(Unsupported, match="lower triangles"):
            detect_head(dlm, text, wanted, error_measure="mul")


def test_what_it_lacks_is_an_attribute_error(model: Any) -> None:
    assert model("LLaDA").W_Q.shape[0] == 2  # the bridge's
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model("LLaDA").no_such_thing


# Text.


def test_encode_takes_ids_of_the_vocabulary(model: Any) -> None:
    dlm = model("LLaDA")
    assert dlm.encode([3, 4]) == dlm.encode(torch.tensor([3, 4])) == [3, 4]
    for wrong in (64, -1):
        with pytest.raises(ValueError, match=rf"token id {wrong} is outside the vocabulary of 64"):
            dlm.encode([3, wrong])


def test_encode_of_text_needs_a_tokenizer(model: Any, official: Any) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer.*'some text'"):
        model("LLaDA").encode("some text")
    dlm = official("a2d_qwen3")
    assert dlm.encode(dlm.tokenizer.decode([5, 9, 13])) == [5, 9, 13]
    assert len(dlm.token_strings([5, 9])) == 2
