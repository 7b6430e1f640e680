"""MDLM: its modulations folded into Starcoder2, its files, its mask token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sinklens import HookedDLM, Plan, denoise
from sinklens.errors import CheckpointError
from sinklens.probes import LogitLens

TOKENS = torch.tensor([[5, 17, 63, 9, 30, 63, 44]])


@pytest.fixture
def folder(fidelity: Path, tmp_path: Path) -> Path:
    """A copy of the recorded checkpoint, to be spoilt."""
    return Path(shutil.copytree(fidelity / "mdlm" / "checkpoint", tmp_path / "mdlm"))


def by_hand(weights: dict[str, Tensor], tokens: Tensor, heads: int) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what each layer's attention adds to the residual stream: the paper's block, unfolded, in float64."""
    w = {name.removeprefix("backbone."): tensor.double() for name, tensor in weights.items()}
    clock = torch.cat([torch.ones(128), torch.zeros(128)]).double()
    hidden = F.silu(w["sigma_map.mlp.0.weight"] @ clock + w["sigma_map.mlp.0.bias"])
    constant = F.silu(w["sigma_map.mlp.2.weight"] @ hidden + w["sigma_map.mlp.2.bias"])
    x, added = w["vocab_embed.embedding"][tokens], []
    length, width = x.shape[1:]
    angle = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(0, width // heads, 2) / (width // heads))
    turn = torch.polar(torch.ones_like(angle).double(), angle.double())

    def rotated(t: Tensor) -> Tensor:  # dimension i and i + half are one complex number
        a, b = t.unflatten(-1, (heads, -1)).chunk(2, -1)
        z = torch.complex(a, b) * turn[:, None]
        return torch.cat([z.real, z.imag], -1)

    def modulation(where: str, parts: int) -> tuple[Tensor, ...]:
        return (w[f"{where}.adaLN_modulation.weight"] @ constant + w[f"{where}.adaLN_modulation.bias"]).chunk(parts)

    for layer in range(2):
        at = f"blocks.{layer}"
        shift, scale, gate, shift2, scale2, gate2 = modulation(at, 6)
        y = F.layer_norm(x, [width]) * w[f"{at}.norm1.weight"] * (1 + scale) + shift
        q, k, v = (y @ w[f"{at}.attn_qkv.weight"].T).chunk(3, -1)
        q, k, v = rotated(q), rotated(k), v.unflatten(-1, (heads, -1))
        pattern = (torch.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5).softmax(-1)
        added.append(gate * (torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(2) @ w[f"{at}.attn_out.weight"].T))
        x = x + added[-1]
        y = F.layer_norm(x, [width]) * w[f"{at}.norm2.weight"] * (1 + scale2) + shift2
        y = F.gelu(y @ w[f"{at}.mlp.0.weight"].T + w[f"{at}.mlp.0.bias"], approximate="tanh")
        x = x + gate2 * (y @ w[f"{at}.mlp.2.weight"].T + w[f"{at}.mlp.2.bias"])
    shift, scale = modulation("output_layer", 2)
    x = F.layer_norm(x, [width]) * w["output_layer.norm_final.weight"] * (1 + scale) + shift
    return x @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"], added


@torch.no_grad()
def test_the_folded_model_is_the_unfolded_one(official: Any, fidelity: Path) -> None:
    """Also what attention adds: the gate is in the output projection."""
    dlm = official("mdlm")
    weights = load_file(fidelity / "mdlm" / "checkpoint" / "model.safetensors")
    logits, added = by_hand(weights, TOKENS, 4)
    ours, cache = dlm.run_with_cache(TOKENS)
    torch.testing.assert_close(ours.double(), logits, atol=2e-5, rtol=1e-5)
    for layer, expected in enumerate(added):
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_out"].double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_lens_at_the_last_layer_is_the_models_own_prediction(official: Any) -> None:
    """With the bias of the head."""
    dlm = official("mdlm")
    run = denoise(
        dlm, TOKENS[0].tolist(), Plan(new_tokens=0, steps=1), probes=[LogitLens("probability")], progress=False
    )
    expected = dlm(TOKENS).softmax(-1).max(-1).values[0]
    ours = torch.from_numpy(run.record["lens_probability"].isel(prompt=0, step=0, layer=-1).values)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_last_row_is_the_mask_unless_another_is_named(folder: Path) -> None:
    assert HookedDLM.from_pretrained(str(folder)).ids.mask == 63
    assert HookedDLM.from_pretrained(str(folder), mask_token_id=7).ids.mask == 7


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"time_conditioning": True}, ["time_conditioning=True", "False"]),
        ({"n_blocks": 3}, ["model.layers.2.*", "3 layers"]),
        ({"hidden_dim": 64}, ["mismatched weights"]),
        ({"n_heads": 5}, ["hidden_dim=32 and n_heads=5"]),
        ({"vocab_size": 50}, ["mismatched weights"]),
        ({"hidden_dim": None}, ["lacks hidden_dim"]),
        ({"cross_attn": True}, ["cross_attn=True"]),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused(folder: Path, fields: dict[str, Any], quotes: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(str(folder), check=False)
    for quote in quotes:
        assert quote in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "quote"),
    [
        ("backbone.blocks.1.adaLN_modulation.bias", None, "missing weights blocks.1.adaLN_modulation.bias"),
        ("backbone.sigma_map.mlp.0.weight", None, "missing weights sigma_map.mlp.0.weight"),
        ("backbone.output_layer.linear.bias", None, "missing weights output_layer.linear.bias"),
        ("backbone.blocks.0.cross.weight", torch.ones(2), "unexpected weights backbone.blocks.0.cross.weight"),
        ("backbone.blocks.0.adaLN_modulation.bias", torch.ones(7), "do not fit each other"),
        ("backbone.rotary_emb.inv_freq", torch.tensor([1.0, 0.5, 0.25, 0.125]), "rotary frequencies from 1 to 0.125"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, name: str, change: Tensor | None, quote: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(name, None)
    if change is not None:
        weights[name] = change
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(str(folder), check=False)
    assert quote in str(caught.value)


@torch.no_grad()
def test_dtypes_are_those_of_the_checkpoint_or_asked_for(folder: Path) -> None:
    reference = HookedDLM.from_pretrained(str(folder))
    half = HookedDLM.from_pretrained(str(folder), dtype=torch.bfloat16)
    assert (reference.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert HookedDLM.from_pretrained(str(folder)).dtype == torch.bfloat16
