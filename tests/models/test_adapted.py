"""Adapted models: base plus adapter is what LoRA's formula says, and nothing else is loaded in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

import sinklens as sl
from sinklens.errors import CheckpointError
from sinklens.models import adapted, files

MATRICES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
MASK, SCALE = 2, 2.0


def base() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(files.TWINS / "tiny-arm", dtype=torch.float32)


def tensors(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """An adapter of rank 3 for two matrices of tiny-arm, and a mask vector."""
    rng, out = torch.Generator().manual_seed(2), {}
    for name in MATRICES:
        rows, columns = base().get_submodule(name).weight.shape
        out[f"{name}.A"] = torch.randn(3, columns, generator=rng).bfloat16()
        out[f"{name}.B"] = (0.1 * scale * torch.randn(rows, 3, generator=rng)).bfloat16()
    return out | {"mask": torch.randn(base().config.hidden_size, generator=rng).bfloat16()}


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """An adapted tiny-arm, with one checkpoint along the way."""
    monkeypatch.setattr(adapted, "HOME", tmp_path)
    each = adapted.Adapted("arm-diffusion", base="tiny-arm", family="SmolLM2-diffusion", mask=MASK)
    monkeypatch.setitem(adapted.ADAPTED, each.name, each)
    folder = tmp_path / each.name
    folder.mkdir()
    said = {"base": "tiny-arm", "base_sha256": adapted.digest_of(base()), "scale": str(SCALE), "mask": str(MASK)}
    save_file(tensors(), folder / "adapter.safetensors", said)
    save_file(tensors(0.5), folder / "step-10.safetensors", said)
    return folder


@pytest.mark.parametrize(("revision", "share"), [(None, 1.0), ("step-10", 0.5)])
def test_logits_are_those_of_base_plus_adapter(revision, share, shipped):
    model = base()
    for name in MATRICES:
        a, b = (tensors(share)[f"{name}.{which}"].double() for which in "AB")
        weight = model.get_submodule(name).weight
        weight.data = (weight.double() + SCALE * torch.einsum("or,ri->oi", b, a)).float()
    model.get_input_embeddings().weight.data[MASK] = tensors(share)["mask"].float()
    tokens = torch.tensor([[1, 9, 11, MASK, 12, MASK]])
    seen = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad():
        raw = model(tokens, attention_mask=seen).logits
    expected = torch.cat([raw[:, :1], raw[:, :-1]], 1)  # row i - 1 predicts position i
    dlm = sl.HookedDLM.from_pretrained("arm-diffusion", revision=revision)
    with torch.no_grad():
        torch.testing.assert_close(dlm(tokens), expected, rtol=1e-4, atol=1e-4)
    assert (dlm.family.name, dlm.ids.mask, dlm.dtype, dlm.name) == (
        "SmolLM2-diffusion", MASK, torch.float32, "arm-diffusion",
    )  # fmt: skip


def test_a_base_with_other_weights_is_refused(shipped, monkeypatch):
    digest = adapted.digest_of
    monkeypatch.setattr(adapted, "digest_of", lambda model: digest(model)[::-1])
    with pytest.raises(CheckpointError, match="was trained on tiny-arm with weights of the SHA-256"):
        sl.HookedDLM.from_pretrained("arm-diffusion")


def test_one_changed_weight_is_other_weights():
    model = base()
    before = adapted.digest_of(model)
    assert adapted.digest_of(base().bfloat16()) == before  # in whatever dtype the values stand
    model.model.norm.weight.data[3] *= 1.02
    assert adapted.digest_of(model) != before


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ({"revision": "step-11"}, "no revision 'step-11'"),
        ({"family": "Llama"}, r"of no other \(Llama\)"),
        ({"mask_token_id": 6}, "is 2, not 6"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_what_it_is_not_is_refused_before_weights(given, quoted, monkeypatch):
    monkeypatch.setattr(files, "weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match=quoted):
        sl.HookedDLM.from_pretrained("arm-diffusion", **given)


def test_a_damaged_adapter_is_one_line(shipped):
    (shipped / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors could not be read"):
        sl.HookedDLM.from_pretrained("arm-diffusion")
