"""Mixtures of experts: stored expert by expert, refused where one is missing, routed as the official class does."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sinklens import HookedDLM
from sinklens.errors import CheckpointError, Unsupported
from sinklens.models import loading
from sinklens.models.experts import stacked

TOKENS = torch.arange(2, 14)[None]
GATE = "blocks.0.mlp.gate"
Make = Callable[..., Path]


@pytest.fixture
def changed(fidelity: Path, tmp_path: Path) -> Make:
    """A copy of a recorded checkpoint with other fields in its config.json (None drops one), in one file of weights."""

    def make(folder: str, weights: Any = None, **fields: Any) -> Path:
        target = tmp_path / folder
        shutil.copytree(fidelity / folder / "checkpoint", target)
        config = json.loads((target / "config.json").read_text()) | fields
        (target / "config.json").write_text(json.dumps({n: v for n, v in config.items() if v is not None}))
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(target.glob("*.safetensors*")):
            tensors |= load_file(file) if file.suffix == ".safetensors" else {}
            file.unlink()
        save_file(weights(tensors) if weights else tensors, target / "model.safetensors", {"format": "pt"})
        return target

    return make


def nothing_read(*_: Any, **__: Any) -> None:
    """Instead of reading weights."""
    raise AssertionError("weights were read")


@pytest.mark.parametrize(
    ("folder", "fields", "quotes"),
    [
        ("llada_moe", {"moe_router_enable_expert_bias": True}, ("moe_router_enable_expert_bias=True",)),
        ("llada_moe", {"shared_expert_intermediate_size": 16}, ("shared_expert_intermediate_size=16", "null")),
        ("llada_moe", {"clip_qkv": 8.0}, ("clip_qkv=8.0",)),
        ("llada_moe", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor=0.5",)),
        ("llada_moe", {"qk_layernorm": False}, ("qk_layernorm=False",)),
        ("llada_moe", {"qk_layernorm": None}, ("lacks qk_layernorm",)),
        ("llada_moe", {"moe_router_score_function": "sigmoid"}, ("'sigmoid'", "'softmax'")),
        ("llada_moe", {"routed_scaling_factor": 2.5}, ("routed_scaling_factor=2.5",)),
        ("llada_moe", {"moe_layer_freq": [0, 1]}, ("moe_layer_freq=[0, 1]",)),
        ("llada_moe", {"head_dim": 16}, ("head_dim=16",)),
        ("llada_moe", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("'linear'", "'default'")),
        ("llada_moe", {"num_experts_per_tok": 7}, ("num_experts_per_tok=7", "num_experts=6")),
        ("llada_moe", {"num_experts": 5}, ("mismatched", "experts.gate_up_proj")),
        ("llada_moe", {"expert_intermediate_size": 8}, ("mismatched", "experts.gate_up_proj")),
        ("llada_moe", {"expert_intermediate_size": 1.5}, ("expert_intermediate_size=1.5",)),
        ("llada_moe", {"expert_capacity": 2}, ("expert_capacity=2",)),
        ("rnd1", {"norm_topk_prob": None}, ("lacks norm_topk_prob",)),
        ("rnd1", {"norm_topk_prob": 1}, ("norm_topk_prob=1",)),
        ("rnd1", {"num_local_experts": 8}, ("num_experts=6", "num_local_experts=8")),
        ("rnd1", {"mlp_only_layers": [0]}, ("mlp_only_layers=[0]",)),
        ("rnd1", {"decoder_sparse_step": 2}, ("decoder_sparse_step=2",)),
        ("rnd1", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("'linear'", "'default'")),
    ],
)
def test_what_the_stock_class_cannot_honour_is_refused_before_weights_are_read(
    changed: Make, monkeypatch: pytest.MonkeyPatch, folder: str, fields: dict[str, Any], quotes: tuple[str, ...]
) -> None:
    monkeypatch.setattr(loading, "_weights", nothing_read)
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(str(changed(folder, **fields)), check=False)
    assert all(quote in str(caught.value) for quote in quotes), str(caught.value)


def test_experts_that_are_missing_or_of_another_size_are_named() -> None:
    layer = "model.layers.0.mlp.experts"
    shapes = {f"{layer}.{n}.{part}_proj.weight": (16, 32) for n in range(3) for part in ("gate", "up")}
    shapes |= {f"{layer}.{n}.down_proj.weight": (32, 16) for n in range(3)} | {"model.norm.weight": (32,)}
    found = stacked(shapes, "x")
    assert found == {
        "model.norm.weight": (32,),
        f"{layer}.gate_up_proj": (3, 32, 32),
        f"{layer}.down_proj": (3, 32, 16),
    }
    for name in (f"{layer}.1.up_proj.weight", f"{layer}.0.gate_proj.weight", f"{layer}.2.down_proj.weight"):
        with pytest.raises(CheckpointError, match=f"lacks the weight {name}"):
            stacked({key: shape for key, shape in shapes.items() if key != name}, "x")
        with pytest.raises(CheckpointError, match="different sizes"):
            stacked(shapes | {name: (8, 8)}, "x")


def test_a_checkpoint_without_one_expert_is_refused(changed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_weights", nothing_read)
    gone = "model.layers.1.mlp.experts.2.up_proj.weight"
    folder = changed("rnd1", lambda tensors: {key: value for key, value in tensors.items() if key != gone})
    with pytest.raises(CheckpointError, match=f"lacks the weight {gone}"):
        HookedDLM.from_pretrained(str(folder), check=False)


@torch.no_grad()
def test_llada_moe_never_lets_weights_sum_to_one_and_rnd1_always_does(official: Any, changed: Make) -> None:
    """The official LLaDA-MoE does not read norm_topk_prob; RND1 does, and it changes the logits."""
    for folder, said, same in (("llada_moe", True, True), ("rnd1", False, False)):
        ours = HookedDLM.from_pretrained(str(changed(folder, norm_topk_prob=said)))(TOKENS)
        assert torch.equal(ours, official(folder)(TOKENS)) == same


@torch.no_grad()
def test_routing_weights_are_the_softmax_of_the_router(official: Any) -> None:
    """Naively: softmax over the logits, the largest k kept, made to sum to 1 for RND1 alone."""
    for folder, normed in (("llada_moe", False), ("rnd1", True)):
        dlm = official(folder)
        _, cache = dlm.run_with_cache(TOKENS)
        chance = cache[f"{GATE}.hook_out"].softmax(-1)
        kept = chance * (chance >= chance.topk(2, -1).values[..., -1:])
        expected = kept / kept.sum(-1, keepdim=True) if normed else kept
        torch.testing.assert_close(cache[f"{GATE}.hook_expert_weights"], expected)
        assert torch.equal(cache[f"{GATE}.hook_expert_indices"], chance.topk(2, -1).indices)


@torch.no_grad()
def test_an_edit_of_the_routing_counts_and_one_of_its_logits_is_refused(official: Any) -> None:
    dlm = official("llada_moe")
    plain = dlm(TOKENS)

    def only_first(weights: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return torch.zeros_like(weights).index_fill(-1, torch.tensor([0]), 1.0)

    with dlm.hooks(fwd_hooks=[(f"{GATE}.hook_expert_weights", only_first)]):
        edited, cache = dlm.run_with_cache(TOKENS)
    experts = dlm.original_model.model.layers[0].mlp.experts
    gate, up = (cache["blocks.0.mlp.hook_in"] @ experts.gate_up_proj[0].T).chunk(2, -1)
    alone = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[0].T
    torch.testing.assert_close(cache["blocks.0.mlp.hook_out"], alone, atol=1e-5, rtol=1e-5)
    assert float((edited - plain).abs().max()) > 1e-2
    with (
        dlm.hooks(fwd_hooks=[(f"{GATE}.hook_out", lambda logits, *, hook: logits + 1)]),
        pytest.raises(Unsupported, match=r"gate\.hook_expert_weights"),
    ):
        dlm(TOKENS)
    with dlm.hooks(fwd_hooks=[(f"{GATE}.hook_out", lambda logits, *, hook: None)]):
        assert torch.equal(dlm(TOKENS), plain)


@torch.no_grad()
def test_the_baseline_is_transformers_own(tiny_stock: Any, tmp_path: Path) -> None:
    """Saved expert by expert, as transformers saves; logits of the class that AutoModel finds."""
    tiny_stock("Qwen3Moe", norm_topk_prob=True).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.5.up_proj.weight" in names
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="sdpa", experts_implementation="eager"
    ).eval()
    dlm = HookedDLM.from_pretrained(str(tmp_path))
    assert (dlm.family.name, dlm.is_causal) == ("Qwen3-MoE", True)
    assert torch.equal(dlm(TOKENS), stock(TOKENS).logits)


@torch.no_grad()
def test_every_expert_is_in_the_fingerprint_and_in_a_copy(official: Any) -> None:
    dlm = official("rnd1")
    other = copy.deepcopy(dlm)
    assert torch.equal(other(TOKENS), dlm(TOKENS))
    assert other.fingerprint() == dlm.fingerprint()
    other.original_model.model.layers[1].mlp.experts.down_proj[5].mul_(1.001)
    assert other.fingerprint() != dlm.fingerprint()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert other.to(dtype).check()["edit"] > 0
