"""GGUF files: what sinklens computes from one is what the stock class computes from the weights that went into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import sinklens as sl
from sinklens.errors import CheckpointError

gguf = pytest.importorskip("gguf")
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 40}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
KINDS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# llama.cpp's names, written down once more here: the names in the package are what is tested.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def stock(kind: str, *, tied: bool = False) -> Any:
    """A stock model with random weights and biases."""
    config = getattr(transformers, f"{KINDS[kind]}Config")(
        **SHAPE, **HEADS, tie_word_embeddings=tied, rms_norm_eps=1e-5, rope_theta=5000.0, max_position_embeddings=32
    )
    torch.manual_seed(3)
    model = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def halves_to_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as llama.cpp keeps Llama's: dimensions i and i + d/2 of a head side by side."""
    size = weight.shape[0] // heads
    order = [head * size + half * (size // 2) + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def write(path: Path, model: Any, kind: str, *, leave: str = "", **more: Any) -> Path:
    """A GGUF file with a model's weights in float32."""
    writer = gguf.GGUFWriter(path, kind)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    if kind == "qwen3":
        writer.add_key_length(16)
        writer.add_value_length(16)
    for name, value in more.items():
        key = name.replace("__", ".")
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for name, weight in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        values = weight.numpy()
        if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = HEADS["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            values = halves_to_pairs(values, heads)
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            stem = f"blk.{layer}.{NAMES[rest]}"
        else:
            stem = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[stem]
        if stem == "output" and config.tie_word_embeddings:
            continue
        if f"{stem}.{suffix}" != leave:
            writer.add_tensor(f"{stem}.{suffix}", np.ascontiguousarray(values))
    if "freqs" in more:
        writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_weights_that_went_in(kind, tied, tmp_path):
    model = stock(kind, tied=tied)
    dlm = sl.HookedDLM.from_pretrained(str(write(tmp_path / "model.gguf", model, kind)))
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(dlm(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert dlm.family.name == KINDS[kind]
    assert dlm.dtype == torch.float32


def test_dtype_and_family_are_as_asked(tmp_path):
    path = write(tmp_path / "model.gguf", stock("llama"), "llama")
    dlm = sl.HookedDLM.from_pretrained(str(path), dtype=torch.bfloat16)
    assert dlm.dtype == torch.bfloat16
    dlm.original_model.to(torch.float32)
    assert dlm.dtype == torch.float32  # a model that remembers being quantized refuses casts


@pytest.mark.parametrize(
    ("more", "quoted"),
    [
        ({"llama__rope__scaling__factor": 8.0}, "llama.rope.scaling.factor=8.0"),
        ({"llama__attention__sliding_window": 8.0}, "llama.attention.sliding_window=8.0"),
        ({"freqs": 1.0}, "rope_freqs"),
        ({"split__count": 2.0}, "split.count=2.0"),
    ],
)
def test_what_the_stock_class_would_not_honour_is_refused(more, quoted, tmp_path):
    path = write(tmp_path / "model.gguf", stock("llama"), "llama", **more)
    with pytest.raises(CheckpointError, match=quoted):
        sl.HookedDLM.from_pretrained(str(path))


def test_another_architecture_is_refused_by_name(tmp_path):
    path = write(tmp_path / "model.gguf", stock("llama"), "gemma")
    with pytest.raises(CheckpointError, match="'gemma'"):
        sl.HookedDLM.from_pretrained(str(path))


@pytest.mark.parametrize("leave", ["blk.1.attn_k.weight", "output_norm.weight"])
def test_a_missing_tensor_is_refused_before_weights_are_read(leave, tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", stock("llama"), "llama", leave=leave)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="missing weights"):
        sl.HookedDLM.from_pretrained(str(path))


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(20))
    (tmp_path / "b.gguf").write_text("no")
    whole = write(tmp_path / "c.gguf", stock("llama"), "llama").read_bytes()
    (tmp_path / "d.gguf").write_bytes(whole[: len(whole) // 2])
    for name in ("a", "b", "d", "nowhere"):
        with pytest.raises(CheckpointError, match=f"{name}.gguf"):
            sl.HookedDLM.from_pretrained(str(tmp_path / f"{name}.gguf"))
    with pytest.raises(CheckpointError, match="no revision 'main'"):
        sl.HookedDLM.from_pretrained(str(tmp_path / "c.gguf"), revision="main")
