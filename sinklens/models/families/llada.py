"""LLaDA: LLaDA-8B Base and Instruct, LLaDA-1.5, UltraLLaDA."""

from __future__ import annotations

from typing import Any

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import Config, refuse, require, short, size, stock

# What the official LLaDAModelLM computes as a Llama decoder; anything else is another model.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "alibi": (False,),
    "rope": (True,),
    "weight_tying": (False,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "scale_logits": (False,),
    "multi_query_attention": (False,),
    "block_group_size": (1,),
    "bias_for_layer_norm": (False,),
    "layer_norm_with_affine": (True,),
    "rope_full_precision": (True,),
    "tie_word_embeddings": (False,),
}
KEY_MAPPING = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}


# What LLaDA's config.json calls a stock field.
NAMES = {
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length",
}
# Only in training, only where another field says so, or (MMaDA) about image codes, whose size the embedding has.
INERT = (
    "alibi_bias_max attention_layer_norm_with_affine embedding_dropout residual_dropout flash_attention "
    "init_cutoff_factor init_device init_fn init_std mlp_ratio precision codebook_size llm_vocab_size new_vocab_size "
    "num_new_special_tokens num_vq_tokens w_clip_vit pretrained_model_path"
)


def translate(config: Config) -> dict[str, Any]:
    """LLaDA's config.json -> LlamaConfig arguments."""
    require(config, ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "vocab_size"))
    refuse(config, SUPPORTED)
    taken = {*INERT.split(), *SUPPORTED, *NAMES.values(), "embedding_size", "vocab_size"}
    rest = {name: value for name, value in config.items() if name not in taken}
    wrong = [name for name in NAMES if name in rest]
    if wrong:
        raise CheckpointError(
            f"config.json has {wrong[0]}={short(rest[wrong[0]])}, which this layout calls {NAMES[wrong[0]]}"
        )
    # The embedding may be larger than the vocabulary (MMaDA's image codes); the weights have its size.
    rows = "vocab_size" if config.get("embedding_size") is None else "embedding_size"
    renamed = {
        "max_position_embeddings": 4096,
        **{stocks: config[own] for stocks, own in NAMES.items() if config.get(own) is not None},
        "vocab_size": size(rows, config[rows]),
    }
    defaults = {"rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
    return stock({**defaults, **rest, **renamed}, "Llama", NAMES)


LLADA = Family(
    name="LLaDA",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=translate,
    key_mapping=KEY_MAPPING,
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=(
        Model("GSAI-ML/LLaDA-8B-Base", 8e9, "MIT"),
        Model("GSAI-ML/LLaDA-8B-Instruct", 8e9, "MIT"),
        Model("GSAI-ML/LLaDA-1.5", 8e9),
        Model("UltraLLaDA", 8e9),
    ),
    source="github ML-GSAI/LLaDA; class LLaDAModelLM",
)
