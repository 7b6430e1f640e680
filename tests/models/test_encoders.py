"""Encoders against transformers' own eager attention and heads: hook points, probes, edits, positions, refusals."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

from sinklens import HookedDLM, MaskSinks, Plan, Scope, denoise, probes
from sinklens.errors import PromptError, ScopeError, Unsupported
from sinklens.interventions import Fixed, SinkToken, ZeroValue
from sinklens.models.families import FAMILIES

NAMES = [family.name for family in FAMILIES if family.model_class.endswith("ForMaskedLM")]
EMBEDDED = [family.name for family in FAMILIES if family.positions != "rotary"]
TOKENS = torch.tensor([[5, 17, 62, 9, 30, 62, 2, 44, 11, 50]])
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
LOGITS = {"atol": 2e-4, "rtol": 1e-4}  # of size 30


@pytest.fixture(scope="module")
def pair(tiny_model: Any, tiny_stock: Any) -> Any:
    """A HookedDLM, and the stock model with the same weights, whose attention is eager."""

    @lru_cache
    def make(name: str) -> tuple[HookedDLM, Any]:
        dlm = tiny_model(name, layers=4)
        stock = tiny_stock(dlm.family.layout, layers=4)
        stock.config.is_causal = False
        stock.set_attn_implementation("eager")
        return dlm, stock

    return make


def measured(dlm: HookedDLM, probe: Any, tokens: Tensor = TOKENS) -> Tensor:
    """What a probe says of one forward."""
    seen: dict[Any, Any] = {}
    with torch.no_grad(), dlm.hooks(fwd_hooks=probe.fwd_hooks(dlm, seen=seen)):
        dlm(tokens)
    return probe.values(seen)


def head(stock: Any, name: str) -> Any:
    """What the stock class puts behind its layers."""
    if name == "ModernBERT":
        return lambda stream: stock.decoder(stock.head(stock.model.final_norm(stream)))
    if name in ("ESM-2", "DPLM"):
        return lambda stream: stock.lm_head(stock.esm.encoder.emb_layer_norm_after(stream))
    return stock.cls if name == "BERT" else stock.lm_head


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_stream_and_patterns_are_those_of_the_stock_class(pair: Any, name: str) -> None:
    dlm, stock = pair(name)
    expected = stock(TOKENS, output_attentions=True, output_hidden_states=True)
    logits, cache = dlm.run_with_cache(TOKENS)
    torch.testing.assert_close(dlm(TOKENS), expected.logits, **LOGITS)
    torch.testing.assert_close(logits, expected.logits, **LOGITS)
    assert len(expected.attentions) == dlm.n_layers
    for layer, attention in enumerate(expected.attentions):
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_pattern"], attention, **CLOSE)
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_in"], expected.hidden_states[layer], **CLOSE)
    for layer in range(dlm.n_layers - 1):  # transformers gives the last one after the final norm, if there is one
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_out"], expected.hidden_states[layer + 1], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_row_is_the_same_alone_and_padded_on_either_side(pair: Any, name: str) -> None:
    dlm, stock = pair(name)
    expected = stock(TOKENS).logits
    for place in (slice(0, 10), slice(4, 14)):
        tokens, mask = torch.full((2, 14), 1), torch.zeros(2, 14, dtype=torch.bool)
        tokens[0], mask[0] = torch.arange(3, 17), True
        tokens[1, place], mask[1, place] = TOKENS[0], True
        for way in (dlm, lambda *a, **k: dlm.run_with_cache(*a, **k)[0]):
            torch.testing.assert_close(way(tokens, attention_mask=mask)[1, place], expected[0], **LOGITS)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_probes_are_what_eager_attention_and_the_weights_give(pair: Any, name: str) -> None:
    dlm, stock = pair(name)
    attentions = torch.stack(stock(TOKENS, output_attentions=True).attentions, 1)
    torch.testing.assert_close(measured(dlm, probes.ReceivedAttention()), attentions.sum(-2), **CLOSE)
    entropy = -(attentions * attentions.clamp(min=1e-30).log()).sum(-1)
    torch.testing.assert_close(measured(dlm, probes.AttentionEntropy()), entropy, **CLOSE)
    norms, written = [], []
    for layer in range(dlm.n_layers):
        values, out = values_and_output(dlm, stock, name, layer)
        norms.append(values.norm(dim=-1).mT)  # [head, key]
        lengths = torch.einsum("khd,hdm->khm", values, out).norm(dim=-1).mT
        written.append(attentions[0, layer].sum(-2) * lengths)
    torch.testing.assert_close(measured(dlm, probes.ValueNorm())[0], torch.stack(norms), **CLOSE)
    torch.testing.assert_close(measured(dlm, probes.Contribution())[0], torch.stack(written), **LOGITS)


def values_and_output(dlm: HookedDLM, stock: Any, name: str, layer: int) -> tuple[Tensor, Tensor]:
    """Values [key, head, d] and output projection [head, d, d_model] of a layer, from the stock weights."""
    stream = stock(TOKENS, output_hidden_states=True).hidden_states[layer][0]
    if name == "ModernBERT":
        modern = stock.model.layers[layer]
        values = modern.attn.Wqkv(modern.attn_norm(stream)).view(len(stream), 3, dlm.n_heads, -1)[:, 2]
        return values, modern.attn.Wo.weight.mT.view(dlm.n_heads, -1, stream.shape[-1])
    own = stock.base_model.encoder.layer[layer].attention
    stream = own.LayerNorm(stream) if name in ("ESM-2", "DPLM") else stream
    values = own.self.value(stream).view(len(stream), dlm.n_heads, -1)
    return values, own.output.dense.weight.mT.view(dlm.n_heads, -1, stream.shape[-1])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_scores_are_queries_times_keys(pair: Any, name: str) -> None:
    """||q|| ||k|| cos, as QKDecomposition, QueryNorm and KeyNorm have them, is the score before scaling."""
    dlm, _ = pair(name)
    points = ("hook_rot_q", "hook_rot_k", "hook_attn_scores")
    cache = dlm.run_with_cache(TOKENS)[1]
    query, key = measured(dlm, probes.QueryNorm()), measured(dlm, probes.KeyNorm())
    for layer in range(dlm.n_layers):
        q, k, scores = (cache[f"blocks.{layer}.attn.{point}"][0] for point in points)
        products = torch.einsum("qhd,khd->hqk", q, k) * dlm.blocks[layer].attn.scaling
        seen = scores.isfinite()
        torch.testing.assert_close(products[seen], scores[seen], **CLOSE)
        torch.testing.assert_close(query[0, layer], q.norm(dim=-1).mT, **CLOSE)
        torch.testing.assert_close(key[0, layer], k.norm(dim=-1).mT, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_lens_runs_the_models_own_head(pair: Any, name: str) -> None:
    dlm, stock = pair(name)
    cache = dlm.run_with_cache(TOKENS)[1]
    token, share = (measured(dlm, probes.LogitLens(what)) for what in ("token", "probability"))
    for layer in range(dlm.n_layers):
        best = head(stock, name)(cache[f"blocks.{layer}.hook_out"]).softmax(-1).max(-1)
        assert torch.equal(token[:, layer].long(), best.indices)
        torch.testing.assert_close(share[:, layer], best.values, **CLOSE)
    assert torch.equal(token[:, -1].long(), stock(TOKENS).logits.argmax(-1))
    with dlm.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, *, hook: logits * 0)]):  # the lens calls no hook
        assert torch.equal(measured(dlm, probes.LogitLens()), token)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_masked_key_is_as_if_the_mask_of_the_stock_class_hid_it(pair: Any, name: str) -> None:
    dlm, stock = pair(name)
    others, tokens = torch.arange(10) != 3, TOKENS.masked_fill(TOKENS == 62, 20)  # of masks ESM counts those it sees
    places = torch.arange(10)[None] + dlm.family.first_position(stock.config)
    expected = stock(tokens, attention_mask=others[None].long(), position_ids=places).logits
    for path in ("pattern", "blocks"):
        dlm.attention = path
        with dlm.hooks(fwd_hooks=MaskSinks(Fixed([3])).fwd_hooks(dlm)):
            ours = dlm(tokens)
        dlm.attention = "auto"
        torch.testing.assert_close(ours[:, others], expected[:, others], **LOGITS)
    assert float((expected - stock(tokens).logits)[:, others].abs().max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_value_of_zero_is_a_weight_of_zero(pair: Any, name: str) -> None:
    dlm, _ = pair(name)

    def cut(pattern: Tensor, *, hook: Any) -> Tensor:
        return pattern.index_fill(-1, torch.tensor([3]), 0.0)

    with dlm.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", cut) for layer in range(dlm.n_layers)]):
        expected = dlm(TOKENS)
    with dlm.hooks(fwd_hooks=ZeroValue(Fixed([3])).fwd_hooks(dlm)):
        torch.testing.assert_close(dlm(TOKENS), expected, **LOGITS)
    assert float((expected - dlm(TOKENS)).abs().max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_what_assumes_a_decoder_is_refused(tiny_model: Any, name: str) -> None:
    dlm = tiny_model(name)
    for call in (dlm.enable_compatibility_mode, dlm.process_weights):
        with pytest.raises(Unsupported, match=f"encoder \\({name}\\)"):
            call()
    with pytest.raises(ValueError, match=r"readout path|compatibility mode"):
        direct_logit_attribution(dlm, TOKENS, answer_tokens=7)
    with pytest.raises(Unsupported, match="head that is no projection"):
        dlm.tokens_to_residual_directions(torch.tensor([7]))
    for switch in ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"):
        setattr(dlm.cfg, switch, True)
        with pytest.raises(Unsupported, match=switch):
            dlm(TOKENS)
        setattr(dlm.cfg, switch, False)


@torch.no_grad()
def test_masks_that_stand_at_pads_count_for_nothing(tiny_model: Any) -> None:
    """ESM scales embeddings by the share of masks; the stock class counts those at pads."""
    dlm = tiny_model("ESM-2")
    tokens = torch.cat([torch.full((1, 3), dlm.ids.mask), TOKENS], 1)
    mask = torch.arange(13)[None] >= 3
    torch.testing.assert_close(dlm(tokens, attention_mask=mask)[:, 3:], dlm(TOKENS), **LOGITS)


def test_embeddings_do_not_say_how_many_tokens_are_masks(tiny_model: Any) -> None:
    dlm = tiny_model("ESM-2")
    with pytest.raises(Unsupported, match="how many tokens are masks; give token ids"):
        dlm(dlm.original_model.get_input_embeddings()(TOKENS))


@pytest.mark.parametrize("name", NAMES)
def test_a_token_before_the_first_position_is_refused(tiny_model: Any, name: str) -> None:
    dlm, plan = tiny_model(name), Plan(new_tokens=0, sampler="llada")  # DPLM's own sampler needs a tokenizer
    with pytest.raises(ScopeError, match="no position before the first"):
        denoise(dlm, TOKENS, plan, interventions=[SinkToken(5, where=Scope(layers=[0]))])


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_positions_end_and_begin(tiny_model: Any, name: str) -> None:
    dlm = tiny_model(name)
    base = dlm.original_model.base_model
    rows = (base.wpe if name in ("GPT-2", "DiffuGPT") else base.embeddings.position_embeddings).weight
    assert dlm.n_ctx == len(rows) - dlm.family.first_position(dlm.original_model.config)
    dlm(torch.full((1, dlm.n_ctx), 5))
    with pytest.raises(PromptError, match=f"{dlm.n_ctx + 1} tokens exceed the {dlm.n_ctx} positions"):
        dlm(torch.full((1, dlm.n_ctx + 1), 5))


@pytest.mark.parametrize("name", NAMES)
def test_a_fingerprint_and_a_copy_are_made(tiny_model: Any, name: str) -> None:
    dlm = tiny_model(name)
    twin = copy.deepcopy(dlm)
    assert torch.equal(twin(TOKENS), dlm(TOKENS))
    assert twin.fingerprint() == dlm.fingerprint() != tiny_model(name, seed=1).fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_every_named_hook_point_fires(tiny_model: Any, name: str) -> None:
    dlm = tiny_model(name)
    fires = dlm.hook_table()
    named = {f"blocks.0.{point}" for point in dlm.hook_meanings()}
    assert named <= set(fires)
    assert fires["blocks.0.attn.v.hook_out"] == fires["blocks.0.attn.hook_rot_k"] == (1, 5, 4, 8)


@pytest.mark.parametrize("name", NAMES)
def test_the_hook_points_of_an_mlp_carry_what_goes_in_and_what_it_adds(tiny_model: Any, name: str) -> None:
    """Alone, so that nothing else puts the components in; and an edit there is the edit of `hook_mlp_out`."""
    dlm, seen = tiny_model(name), {}

    def keep(tensor: torch.Tensor, *, hook: Any) -> None:
        seen[hook.name] = tensor

    for point in ("mlp.hook_in", "mlp.in.hook_in", "mlp.hook_out", "mlp.out.hook_out"):
        dlm.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.1.{point}", keep)])
    assert torch.equal(seen["blocks.1.mlp.hook_in"], seen["blocks.1.mlp.in.hook_in"])
    assert torch.equal(seen["blocks.1.mlp.hook_out"], seen["blocks.1.mlp.out.hook_out"])

    def doubled(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return 2 * tensor

    edited = [
        dlm.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.1.{p}", doubled)]) for p in ("mlp.hook_out", "hook_mlp_out")
    ]
    assert torch.equal(*edited)
    assert not torch.equal(edited[0], dlm(TOKENS))
