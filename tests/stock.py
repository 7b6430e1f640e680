"""A checkpoint as transformers' own class computes it: read, built, filled and run without sinklens."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import sinklens

TWINS = Path(sinklens.__file__).parent / "twins"
FIDELITY = Path(__file__).parent / "data" / "fidelity"
KINDS = {  # model_type: stock class, sees both ways, predicts position i at i - 1
    "llada": ("Llama", True, False),
    "mmada": ("Llama", True, False),
    "Dream": ("Qwen2", True, True),
    "dream": ("Qwen2", True, True),
    "a2d-qwen3": ("Qwen3", True, False),
    "a2d-qwen2": ("Qwen2", True, False),
    "a2d-llama": ("Llama", True, False),
    "llama": ("Llama", False, False),
    "qwen2": ("Qwen2", False, False),
    "qwen3": ("Qwen3", False, False),
}
LLADA = {  # as LLaDA's configuration_llada.py names them
    "d_model": "hidden_size",
    "mlp_hidden_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "max_sequence_length": "max_position_embeddings",
}
LLADA_WEIGHTS = {  # from the back, for two of its names begin alike
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
    "model.transformer.blocks": "model.layers",
    ".attn_norm": ".input_layernorm",
    ".ff_norm": ".post_attention_layernorm",
    ".q_proj": ".self_attn.q_proj",
    ".k_proj": ".self_attn.k_proj",
    ".v_proj": ".self_attn.v_proj",
    ".attn_out": ".self_attn.o_proj",
    ".ff_proj": ".mlp.gate_proj",
    ".up_proj": ".mlp.up_proj",
    ".ff_out": ".mlp.down_proj",
}
OTHER = {  # what LLaDA's modeling_llada.py computes otherwise than a Llama decoder, unless it has this value
    "block_type": "llama",
    "alibi": False,
    "rope": True,
    "weight_tying": False,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "multi_query_attention": False,
    "block_group_size": 1,
    "bias_for_layer_norm": False,
    "layer_norm_with_affine": True,
    "rope_full_precision": True,
}
# What no forward in evaluation reads, like null: what it is called, how it was trained, what it returns, special ids.
ELSEWHERE = (
    "architectures auto_map dtype torch_dtype transformers_version initializer_range attention_dropout use_cache "
    "output_attentions output_hidden_states return_dict id2label label2id num_labels problem_type bos_token_id "
    "eos_token_id pad_token_id mask_token_id unk_token_id pretraining_tp gradient_checkpointing is_causal"
)


def logits(folder: Path, tokens: Tensor) -> Tensor:
    """Logits in float32 with eager attention, row i for position i (of an autoregressive model for i + 1)."""
    fields = json.loads((folder / "config.json").read_text())
    decoder, both_ways, shifted = KINDS[fields["model_type"]]
    fields = {name: value for name, value in fields.items() if name not in ELSEWHERE.split() and value is not None}
    if decoder == "Llama" and both_ways:
        other = [name for name, value in OTHER.items() if fields.get(name) not in (None, value)]
        assert not other, f"{other}: no Llama decoder"
        fields = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096} | {
            LLADA.get(name, name): value for name, value in fields.items()
        }
        fields["vocab_size"] = fields.pop("embedding_size", fields["vocab_size"])
    del fields["model_type"]
    config = getattr(transformers, f"{decoder}Config").from_dict(fields)
    model = getattr(transformers, f"{decoder}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    tensors = weights(folder)
    if config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    model.load_state_dict(tensors, strict=True)
    size = tokens.shape[1]
    mask = torch.zeros((1, 1, size, size)) if both_ways else None
    with torch.no_grad():
        found = model(tokens, attention_mask=mask, use_cache=False).logits
    return torch.cat([found[:, :1], found[:, :-1]], 1) if shifted else found


def same(found: Tensor, expected: Tensor) -> None:
    """Fails unless logits are equal within float32 rounding."""
    scale = float(expected.nan_to_num(0, 0, 0).abs().max().clamp(min=1))
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-5 * scale, equal_nan=True)


def head_size(folder: Path) -> int:
    """Dimensions of a head of a folder."""
    fields = json.loads((folder / "config.json").read_text())
    fields |= {LLADA[name]: value for name, value in fields.items() if name in LLADA}
    return fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors in float32, by its stock name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for key, tensor in load_file(file).items():
            name = key
            if name.startswith("model.transformer"):
                for old, new in LLADA_WEIGHTS.items():
                    name = name.replace(old, new)
            found[name] = tensor.float()
    return found


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors with stock names as the only weights of a folder."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


RECORDED = ("a2d_llama", "a2d_qwen2", "a2d_qwen3", "dream", "llada", "mmada")
COUNT = 12


@lru_cache
def checkpoints() -> tuple[Path, ...]:
    """Folders to start from: the twins, the recorded ones, and the baselines with and without biases, tied and not."""
    made = [
        _made("Llama", attention_bias=True, mlp_bias=True),
        _made("Llama", tie_word_embeddings=True, num_key_value_heads=2, head_dim=4),
        _made("Qwen2", tie_word_embeddings=True, num_key_value_heads=2),
        _made("Qwen3", attention_bias=True, num_key_value_heads=2, head_dim=8),
    ]
    recorded = [FIDELITY / name / "checkpoint" for name in RECORDED]
    return (TWINS / "tiny-dlm", TWINS / "tiny-arm", *recorded, *made)


def _made(decoder: str, **own: Any) -> Path:
    """A random model with weights so large that every part of it matters."""
    folder = Path(tempfile.mkdtemp())
    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **own,
    }
    model = getattr(transformers, f"{decoder}ForCausalLM")(getattr(transformers, f"{decoder}Config")(**fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.4 * noise)
    model.save_pretrained(folder)
    fields |= {"model_type": decoder.lower(), "architectures": [f"{decoder}ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder
