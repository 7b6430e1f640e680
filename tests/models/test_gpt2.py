"""GPT-2 and DiffuGPT: their files, their config, one projection for queries, keys and values, absolute positions."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, denoise
from sinklens.errors import CheckpointError, ScopeError, Unsupported
from sinklens.interventions import SinkToken

TOKENS = torch.tensor([[5, 17, 62, 9, 30, 2, 44]])
FAMILIES = ["GPT-2", "DiffuGPT"]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """Random models of a family, one per family; for tests that change nothing."""
    return lru_cache(tiny_model)


def saved(stock: Any, folder: Path, prefix: str = "transformer.", **fields: Any) -> str:
    """A GPT-2 in a folder, as OpenAI's own files have it where `prefix` is ""."""
    stock.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("transformer.", prefix): tensor for name, tensor in weights.items()}
    if not prefix:  # the causal mask, which old versions stored
        weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril() for i in range(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return str(folder)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@torch.no_grad()
def test_both_layouts_of_gpt2_are_transformers_own(tiny_stock: Any, tmp_path: Path, prefix: str) -> None:
    stock = tiny_stock("GPT2", tie_word_embeddings=True)
    dlm = HookedDLM.from_pretrained(saved(stock, tmp_path, prefix, n_ctx=64))
    assert dlm.family.name == "GPT-2"
    assert dlm.is_causal
    torch.testing.assert_close(dlm(TOKENS), stock(TOKENS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"n_ctx": 32}, ["n_ctx=32 and n_positions=64"]),
        ({"add_cross_attention": True}, ["add_cross_attention=True"]),
        ({"activation_function": "swiglu"}, ["activation_function='swiglu'", "'gelu_new'"]),
        ({"n_head": 5}, ["n_embd=32 and n_head=5"]),
        ({"n_embd": 2**40}, ["n_embd=1099511627776"]),
        ({"layer_norm_epsilon": float("nan")}, ["layer_norm_epsilon=nan"]),
        ({"scale_attn_weights": "yes"}, ["scale_attn_weights='yes'", "true or false"]),
        ({"n_layer": 3}, ["transformer.h.2.*", "3 layers"]),
        ({"n_inner": 49}, ["mismatched"]),
        ({"hidden_size": 32}, ["hidden_size=32", "GPT2 decoder does not know"]),
        ({"n_embd": "absent"}, ["lacks n_embd"]),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused_by_name(
    tiny_stock: Any, tmp_path: Path, fields: dict[str, Any], quotes: list[str]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(saved(tiny_stock("GPT2"), tmp_path, **fields), check=False)
    for quote in quotes:
        assert quote in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"layer_norm_epsilon": 0.5},
        {"activation_function": "relu"},
        {"n_inner": 48},
    ],
)
@torch.no_grad()
def test_fields_that_change_a_forward_are_passed_on(tiny_stock: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    """On both paths, and with every component in place; the calibration compares them, too."""
    stock = tiny_stock("GPT2", **fields)
    dlm = HookedDLM.from_pretrained(saved(stock, tmp_path))
    expected = transformers.GPT2LMHeadModel(stock.config).eval()
    expected.load_state_dict(stock.state_dict())
    theirs = expected(TOKENS).logits
    assert (theirs - tiny_stock("GPT2")(TOKENS).logits).abs().max() > 1e-2
    torch.testing.assert_close(dlm(TOKENS), theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dlm.run_with_cache(TOKENS)[0], theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_parts_of_the_projection_are_what_attention_multiplies(model: Any, family: str) -> None:
    """W_Q and its like, per head, times the input, in plain torch; nothing is rotated."""
    dlm = model(family)
    _, cache = dlm.run_with_cache(TOKENS)
    for layer in range(2):
        stream = cache[f"blocks.{layer}.ln1.hook_out"]
        for part, rotated in (("Q", "hook_rot_q"), ("K", "hook_rot_k"), ("V", None)):
            weight, bias = getattr(dlm, f"W_{part}")[layer], getattr(dlm, f"b_{part}")[layer]
            expected = torch.einsum("bpd,hdk->bphk", stream, weight) + bias
            shown = cache[f"blocks.{layer}.attn.{part.lower()}.hook_out"]
            torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)
            assert rotated is None or torch.equal(cache[f"blocks.{layer}.attn.{rotated}"], shown)
        mixed = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], cache["v", layer])
        out = torch.einsum("bqhd,hdm->bqm", mixed, dlm.W_O[layer]) + dlm.b_O[layer]
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_out"], out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", "qkv")
@torch.no_grad()
def test_an_edit_of_a_part_is_an_edit_of_its_columns(model: Any, part: str) -> None:
    """Zeroed at its hook point, and zeroed in the weights."""
    dlm = model("DiffuGPT")
    plain = dlm(TOKENS)
    ours = dlm.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.0.attn.{part}.hook_out", lambda t, *, hook: t * 0)])
    projection = dlm.original_model.transformer.h[0].attn.c_attn
    kept = [tensor.clone() for tensor in (projection.weight, projection.bias)]
    for tensor in (projection.weight, projection.bias):
        tensor.chunk(3, -1)["qkv".index(part)].zero_()
    theirs = dlm(TOKENS)
    for tensor, before in zip((projection.weight, projection.bias), kept, strict=True):
        tensor.copy_(before)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - plain).abs().max() > 1e-2


def test_weights_are_those_that_stand_there_now(tiny_model: Any) -> None:
    dlm = tiny_model("GPT-2")
    before = dlm.W_Q.clone()
    with torch.no_grad():
        dlm.original_model.transformer.h[0].attn.c_attn.weight.mul_(2)
    torch.testing.assert_close(dlm.W_Q[0], 2 * before[0])
    fresh = transformers.pytorch_utils.Conv1D(96, 32)
    dlm.original_model.transformer.h[1].attn.c_attn = fresh
    torch.testing.assert_close(dlm.W_Q[1], fresh.weight[:, :32].unflatten(-1, (4, 8)).transpose(0, 1))


@torch.no_grad()
def test_an_adapter_on_the_projection_is_seen_by_its_parts(tiny_model: Any) -> None:
    dlm = tiny_model("DiffuGPT")
    target = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    peft.inject_adapter_in_model(target, dlm.original_model)
    kept: list[Tensor] = []
    with dlm.hooks(fwd_hooks=[("blocks.0.attn.q.hook_out", lambda t, *, hook: kept.append(t.clone()))]):
        logits = dlm(TOKENS)
    torch.testing.assert_close(logits, dlm(TOKENS))
    stream = dlm.run_with_cache(TOKENS)[1]["blocks.0.ln1.hook_out"]
    adapted = dlm.original_model.transformer.h[0].attn.c_attn(stream)[..., :32]
    torch.testing.assert_close(kept[0], adapted.unflatten(-1, (4, 8)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_would_rebuild_the_projection_is_refused(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    for way in (dlm.enable_compatibility_mode, dlm.process_weights):
        with pytest.raises(Unsupported, match="one projection for queries, keys and values"):
            way()
    for switch in ("attn_result", "split_qkv_input", "attn_in"):
        getattr(dlm, f"set_use_{switch}")(True)
        with pytest.raises(Unsupported, match=f"use_{switch}=True rebuilds"):
            dlm(TOKENS)
        getattr(dlm, f"set_use_{switch}")(False)
    dlm(TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_before_the_first_position_has_no_place(model: Any, family: str, no_forward: None) -> None:
    with pytest.raises(ScopeError, match="no position before the first"):
        denoise(model(family), [5, 6], Plan(new_tokens=2), interventions=[SinkToken(3)], progress=False)


@torch.no_grad()
def test_diffugpt_sees_both_ways_and_gpt2_does_not(model: Any) -> None:
    other = torch.cat([TOKENS[:, :-1], torch.tensor([[7]])], 1)
    for family, sees in (("GPT-2", False), ("DiffuGPT", True)):
        dlm = model(family)
        first = (dlm(TOKENS) - dlm(other))[0, 0].abs().max()
        assert bool(first > 1e-3) == sees


def test_diffugpt_is_known_by_name_only_and_loads_into_nothing_else(fidelity: Path) -> None:
    folder = str(fidelity / "diffugpt" / "checkpoint")
    with pytest.raises(CheckpointError, match=r"GPT-2 layout: missing weights transformer\.wte\.weight"):
        HookedDLM.from_pretrained(folder, family="GPT-2")
    dlm = HookedDLM.from_pretrained(folder, family="DiffuGPT")
    assert dlm.ids.mask == 41  # an ordinary word, which the tokenizer names
    assert dlm.family.shift
    assert not dlm.is_causal


def test_diffugpt_texts_begin_with_bos_once(official: Any) -> None:
    dlm = official("diffugpt", family="DiffuGPT")
    assert dlm.tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert dlm.encode("w5 w6") == dlm.encode("w63 w5 w6") == dlm.to_tokens("w5 w6")[0].tolist() == [63, 5, 6]
    assert dlm.encode("") == [63]
    assert dlm.encode([5, 6]) == [5, 6]  # ids are the prompt as it is
    assert dlm.encode_piece("w5") == [5]
    plan = Plan(new_tokens=4, temperature=0.95, top_p=0.9, steps=8)
    run = denoise(dlm, "w5 w6", plan, interventions=[MaskSinks(PreviousStep(top_k=1))], progress=False)
    assert run.tokens[0, :3].tolist() == [63, 5, 6]
    assert (run.tokens != dlm.ids.mask).all()
