"""LLaDA: LLaDA-8B Base and Instruct, LLaDA-1.5, iLLaDA, UltraLLaDA."""

from __future__ import annotations

from typing import Any

from sinklens.models.families.base import Config, Family, pick, refuse, require

# What the official LLaDAModelLM computes as a Llama decoder; anything else is another model.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "alibi": (False, None),
    "rope": (True,),
    "weight_tying": (False,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "attention_layer_norm": (False, None),
    "input_emb_norm": (False, None),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "scale_logits": (False, None),
    "multi_query_attention": (False, None),
    "block_group_size": (1, None),
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


def translate(config: Config) -> dict[str, Any]:
    """LLaDA's config.json -> LlamaConfig arguments."""
    require(config, ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "vocab_size"))
    refuse(config, SUPPORTED)
    return {
        # The embedding may be larger than the vocabulary (MMaDA's image codes); the weights have its size.
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": config["mlp_hidden_size"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config.get("n_kv_heads") or config["n_heads"],
        "max_position_embeddings": config.get("max_sequence_length", 4096),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10000.0),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        **pick(config, ("rope_scaling",)),
    }


LLADA = Family(
    name="LLaDA",
    model_types=("llada",),
    decoder="Llama",
    causal=False,
    translate=translate,
    key_mapping=KEY_MAPPING,
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=(
        "GSAI-ML/LLaDA-8B-Base",
        "GSAI-ML/LLaDA-8B-Instruct",
        "GSAI-ML/LLaDA-1.5",
        "iLLaDA-8B",
        "UltraLLaDA",
    ),
    source="github ML-GSAI/LLaDA; class LLaDAModelLM",
)
