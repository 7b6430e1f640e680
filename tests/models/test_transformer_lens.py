"""TransformerLens's own tools take a HookedDLM for the bridge that it is: the right number, or a refusal."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

from sinklens import HookedDLM
from sinklens.errors import Unsupported
from sinklens.models.attention import RECEIVED
from sinklens.models.families import FAMILIES
from sinklens.tasks import Echo

NAMES = [family.name for family in FAMILIES]
DIFFUSION = [family.name for family in FAMILIES if not family.causal]
CAUSAL = [family.name for family in FAMILIES if family.causal]
TOKENS = torch.tensor([[5, 17, 62, 9, 30, 2, 44]])
PATTERN = "blocks.0.attn.hook_pattern"


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """A random model of a family, made once."""
    return lru_cache(tiny_model)


def nothing(tensor: Tensor, *, hook: Any) -> None:
    """A hook that only looks."""


def aligned(dlm: HookedDLM, tokens: Tensor = TOKENS, mask: Tensor | None = None) -> Tensor:
    """Rows for their own position, from the transformers model itself."""
    more = {} if mask is None else {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
    raw = dlm.original_model(tokens, attention_mask=in_blocks(dlm, tokens, mask), **more).logits
    return torch.cat([raw[:, :1], raw[:, :-1]], 1) if dlm.family.shift else raw


def in_blocks(dlm: HookedDLM, tokens: Tensor, mask: Tensor | None = None) -> Tensor | None:
    """The mask that the transformers model is to be told: that of blocks is written out."""
    if dlm.in_blocks is None:
        return mask
    number = torch.arange(tokens.shape[1]) // dlm.in_blocks.length
    return (number <= number[:, None])[None, None].expand(len(tokens), 1, -1, -1)


@pytest.mark.parametrize("family", NAMES)
def test_it_is_a_bridge(model: Any, family: str) -> None:
    assert isinstance(model(family), TransformerBridge)


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_every_way_to_logits_has_the_same_rows(model: Any, family: str) -> None:
    dlm, hooks = model(family), [(PATTERN, nothing)]
    expected = aligned(dlm)
    ways = {
        "call": dlm(TOKENS),
        "forward": dlm.forward(TOKENS),
        "return_type": dlm(TOKENS, "logits"),
        "one row of ids": dlm(TOKENS[0]),
        "cache": dlm.run_with_cache(TOKENS)[0],
        "cache of one point": dlm.run_with_cache(TOKENS, names_filter=PATTERN)[0],
        "cached unembedding": dlm.run_with_cache(TOKENS)[1]["unembed.hook_out"],
        "hooks": dlm.run_with_hooks(TOKENS, fwd_hooks=hooks),
        "hooks elsewhere": dlm.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_out", nothing)]),
    }
    if dlm.family.name not in ("ESM-2", "DPLM"):
        ways["embeddings"] = dlm(dlm.original_model.get_input_embeddings()(TOKENS))
    if dlm.is_causal:
        ways["both"] = dlm.run_with_hooks(TOKENS, return_type="both", fwd_hooks=hooks)[0]
    for way, ours in ways.items():
        torch.testing.assert_close(ours, expected, atol=5e-5, rtol=1e-5, msg=way)


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_rows_with_padding(model: Any, family: str) -> None:
    """The first real position of a row has nothing before it, and keeps its own logits."""
    dlm, pads = model(family), 2
    tokens = torch.cat([torch.ones(1, pads, dtype=torch.long), TOKENS], 1)
    mask = torch.arange(tokens.shape[1])[None] >= pads
    expected = dlm(TOKENS)
    for ours in (
        dlm(tokens, attention_mask=mask),
        dlm.run_with_cache(tokens, attention_mask=mask)[0],
        dlm.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[(PATTERN, nothing)]),
        dlm.run_with_cache(tokens, attention_mask=mask)[1]["unembed.hook_out"],
    ):
        torch.testing.assert_close(ours[:, pads:], expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_stopping_at_a_layer_gives_the_stream_there_unmoved(model: Any, family: str) -> None:
    dlm = model(family)
    stream = dlm.run_with_cache(TOKENS)[1]["blocks.1.hook_in"]
    torch.testing.assert_close(dlm(TOKENS, stop_at_layer=1), stream, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(dlm.run_with_cache(TOKENS, stop_at_layer=1)[0], stream, atol=5e-5, rtol=1e-5)
    on = dlm(stream, start_at_layer=1)
    torch.testing.assert_close(on, aligned(dlm), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", DIFFUSION)
def test_what_has_no_meaning_for_a_diffusion_model_is_refused(model: Any, family: str) -> None:
    dlm = model(family)
    for wrong in ("loss", "both", "predictions", "logits_and_cache"):
        with pytest.raises(Unsupported, match=f"return_type='{wrong}'.*diffusion model"):
            dlm(TOKENS, wrong)
        with pytest.raises(Unsupported, match=f"return_type='{wrong}'"):
            dlm.run_with_hooks(TOKENS, return_type=wrong)
    for name in ("generate", "hf_generate", "generate_stream", "diffusion_generate"):
        with pytest.raises(Unsupported, match=r"sinklens\.denoise"):
            getattr(dlm, name)(TOKENS)
    with pytest.raises(Unsupported, match="key-value cache"):
        dlm(TOKENS, use_cache=True)
    with pytest.raises(Unsupported, match=r"logits_to_keep.*take the rows"):  # Dream's would be moved by one among them
        dlm(TOKENS, logits_to_keep=2)
    with pytest.raises(TypeError, match="attention_mask="):
        dlm(TOKENS, torch.ones_like(TOKENS))


@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_a_baseline_has_transformers_loss(model: Any, family: str) -> None:
    dlm = model(family)
    expected = dlm.original_model(TOKENS, labels=TOKENS).loss
    torch.testing.assert_close(dlm(TOKENS, "loss"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_by_position_puts_every_row_where_it_belongs(model: Any, family: str) -> None:
    dlm = model(family)
    rows, logits = dlm.by_position(dlm(TOKENS)), dlm(TOKENS)
    if dlm.is_causal:
        assert torch.equal(rows[:, 1:], logits)
        assert rows.shape[1] == TOKENS.shape[1] + 1
    else:
        assert torch.equal(rows, logits)


@pytest.mark.parametrize("family", ["Llama", "LLaDA", "Qwen3", "A2D-Qwen3"])
@torch.no_grad()
def test_direct_logit_attribution_sums_to_the_logit(tiny_model: Any, family: str) -> None:
    """Called with the HookedDLM itself; before compatibility mode it is refused by TransformerLens."""
    dlm = tiny_model(family)
    with pytest.raises(ValueError, match="compatibility mode"):
        direct_logit_attribution(dlm, TOKENS, answer_tokens=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dlm.enable_compatibility_mode()
    for position in (-1, 3):
        logit = dlm(TOKENS)[0, position, 7]
        found = direct_logit_attribution(dlm, TOKENS, answer_tokens=7, pos=position)
        torch.testing.assert_close(found.attribution.sum(), logit, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_direct_logit_attribution_of_shifted_logits_is_refused(tiny_model: Any) -> None:
    """The residual stream at a row predicts the next position; its sum would be the logit of another row."""
    dlm = tiny_model("Dream")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dlm.enable_compatibility_mode()
    with pytest.raises(Unsupported, match="stream at i - 1"):
        direct_logit_attribution(dlm, TOKENS, answer_tokens=7)
    with pytest.raises(Unsupported, match="stream at i - 1"):
        direct_logit_attribution(dlm, answer_tokens=7, cache=dlm.run_with_cache(TOKENS)[1])


@pytest.mark.parametrize("family", ["Llama", "LLaDA"])
@torch.no_grad()
def test_compatibility_mode_keeps_probabilities(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    before = dlm(TOKENS).log_softmax(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dlm.enable_compatibility_mode()
    torch.testing.assert_close(dlm(TOKENS).log_softmax(-1), before, atol=1e-3, rtol=1e-3)
    hooked = dlm.run_with_hooks(TOKENS, fwd_hooks=[(PATTERN, nothing)])
    torch.testing.assert_close(hooked.log_softmax(-1), before, atol=1e-3, rtol=1e-3)
    edited = dlm.run_with_hooks(TOKENS, fwd_hooks=[(PATTERN, lambda pattern, *, hook: pattern.roll(1, -1))])
    assert float((edited - hooked).abs().max()) > 1e-2


@pytest.mark.parametrize("flag", ["attn_result", "split_qkv_input", "attn_in", "hook_mlp_in"])
@pytest.mark.parametrize("family", ["Llama", "LLaDA"])
@torch.no_grad()
def test_transformer_lens_switches_change_no_number(tiny_model: Any, family: str, flag: str) -> None:
    dlm = tiny_model(family)
    before, point = dlm(TOKENS), {
        "attn_result": "attn.hook_result", "split_qkv_input": "attn.hook_q_input", "attn_in": "attn.hook_attn_in",
        "hook_mlp_in": "hook_mlp_in",
    }[flag]  # fmt: skip
    getattr(dlm, f"set_use_{flag}")(True)
    kept = []

    def keep(tensor: Tensor, *, hook: Any) -> None:
        kept.append(tensor)

    with dlm.hooks(fwd_hooks=[(f"blocks.0.{point}", keep)]):
        torch.testing.assert_close(dlm(TOKENS), before, atol=5e-5, rtol=1e-5)
    assert len(kept) == 1
    patterns = dlm.run_with_cache(TOKENS)[1]["pattern", 0]
    torch.testing.assert_close(patterns.sum(-1), torch.ones_like(patterns.sum(-1)), atol=1e-5, rtol=0)
    assert bool((patterns.triu(1) > 0).any()) == (not dlm.is_causal)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@torch.no_grad()
def test_text_reaches_hooks_as_its_tokens_do(name: str) -> None:
    """Whatever form the input has, attention knows the tokens, and which of a padded batch are real."""
    dlm, kept = HookedDLM.from_pretrained(name), {}
    words = Echo(1, seed=3)[0].prompt.split(" ")
    texts = [" ".join(words), " ".join(words[:5])]
    ids = [dlm.encode(text) for text in texts]
    rows = torch.tensor([[dlm.ids.pad] * (len(ids[0]) - len(row)) + row for row in ids])
    mask = torch.tensor([[False] * (len(ids[0]) - len(row)) + [True] * len(row) for row in ids])

    def keep(tensor: Tensor, *, hook: Any) -> None:
        kept.setdefault(hook.name, []).append(tensor.clone())

    hooks = [(f"blocks.1.attn.{point}", keep) for point in RECEIVED]
    for expected, given in (
        ((torch.tensor(ids[:1]), None), (texts[0], torch.tensor(ids[0]))),
        ((rows, mask), (texts,)),
    ):
        kept.clear()
        logits = dlm.run_with_hooks(expected[0], attention_mask=expected[1], fwd_hooks=hooks)
        for form in given:
            ours = dlm.run_with_hooks(form, fwd_hooks=hooks)
            torch.testing.assert_close(ours[:, -5:], logits[:, -5:], atol=5e-5, rtol=1e-5)
        assert len(kept) == len(RECEIVED)
        for first, *others in kept.values():
            assert len(others) == len(given)
            for other in others:
                torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-5)
