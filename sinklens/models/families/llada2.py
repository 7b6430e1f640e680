"""LLaDA2: a mixture of experts that sees block by block, computed as GLM-4-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import SUPPORTED, Config, flag, only, positive, refuse, require, short, size
from sinklens.sinks import Blocks

# What the official LLaDA2MoeModelLM computes as a GLM-4-MoE decoder; anything else is another model.
KNOWN: dict[str, tuple[Any, ...]] = {
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "norm_head": (False,),
    "use_qk_norm": (True,),
    "score_function": ("sigmoid",),
    "moe_router_enable_expert_bias": (True,),
    "norm_topk_prob": (True,),
    "rope_scaling": (),
    "partial_rotary_factor": (0.5,),
    "num_nextn_predict_layers": (0,),
}
SIZES = {  # what GLM-4-MoE calls them
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
    "moe_intermediate_size": "moe_intermediate_size",
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "n_group": "n_group",
    "topk_group": "topk_group",
}
SHARED = "moe_shared_expert_intermediate_size"
INERT = ("embedding_dropout", "output_dropout", "router_dtype", "output_router_logits", SHARED)
NAMES = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"\.attention\.dense\.": ".self_attn.o_proj.",
    r"\.attention\.query_layernorm\.": ".self_attn.q_norm.",
    r"\.attention\.key_layernorm\.": ".self_attn.k_norm.",
    r"\.mlp\.gate\.expert_bias$": ".mlp.gate.e_score_correction_bias",
}


def translate(config: Config) -> dict[str, Any]:
    """LLaDA2's config.json -> Glm4MoeConfig arguments."""
    config = {name: value for name, value in config.items() if value is not None}
    require(
        config, (*SIZES, "rms_norm_eps", "rope_theta", "routed_scaling_factor", "first_k_dense_replace", "head_dim")
    )
    refuse(config, {name: values for name, values in SUPPORTED.items() if name != "partial_rotary_factor"} | KNOWN)
    more = ("rms_norm_eps", "routed_scaling_factor", "first_k_dense_replace", "head_dim", "tie_word_embeddings")
    only(config, "Glm4Moe", (*SIZES, *KNOWN, *INERT, *more))
    sizes = {called: size(name, config[name]) for name, called in SIZES.items()}
    shared = config.get(SHARED, sizes["moe_intermediate_size"])
    if shared != sizes["moe_intermediate_size"]:
        raise CheckpointError(
            f"config.json has {SHARED}={short(shared)}; expected that of the experts, {sizes['moe_intermediate_size']}"
        )
    dense = config["first_k_dense_replace"]
    if not isinstance(dense, int) or isinstance(dense, bool) or not 0 <= dense <= sizes["num_hidden_layers"]:
        raise CheckpointError(f"config.json has first_k_dense_replace={short(dense)}; expected a number of layers")
    heads, keys, experts, groups = (
        sizes[name] for name in ("num_attention_heads", "num_key_value_heads", "n_routed_experts", "n_group")
    )
    if heads % keys or experts % groups or sizes["topk_group"] > groups or sizes["num_experts_per_tok"] > experts:
        raise CheckpointError(
            f"config.json has {heads} heads of {keys} key heads, and {experts} experts in {groups} groups, of which "
            f"{sizes['topk_group']} and {sizes['num_experts_per_tok']} are chosen; these do not divide each other"
        )
    return {
        **sizes,
        "first_k_dense_replace": dense,
        "head_dim": size("head_dim", config["head_dim"]),
        "rms_norm_eps": positive("rms_norm_eps", config["rms_norm_eps"]),
        "routed_scaling_factor": positive("routed_scaling_factor", config["routed_scaling_factor"]),
        "tie_word_embeddings": flag("tie_word_embeddings", config.get("tie_word_embeddings", False)),
        "norm_topk_prob": True,
        "use_qk_norm": True,
        "attention_bias": False,
        "num_mtp_layers": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": positive("rope_theta", config["rope_theta"]),
            "partial_rotary_factor": 0.5,
        },
    }


def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LLaDA2's weights with queries, keys and values apart."""
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, found, _ = name.partition(".attention.query_key_value.weight")
        if not found:
            out[name] = weight
            continue
        queries = weights[f"{layer}.attention.dense.weight"].shape[1]
        keys = (len(weight) - queries) // 2
        for part, rows in zip("qkv", torch.split(weight, [queries, keys, keys]), strict=True):
            out[f"{layer}.self_attn.{part}_proj.weight"] = rows.contiguous()
    return out


# 2.1 has the same config.json and replaces tokens that are committed already (`signs`): its own sampler is not there.
LLADA2 = Family(
    name="LLaDA2",
    model_types=("llada2_moe",),
    architectures=("LLaDA2MoeModelLM",),
    model_class="Glm4MoeForCausalLM",
    causal=False,
    translate=translate,
    key_mapping=NAMES,
    fold=fold,
    blocks=Blocks(32),
    plan={"sampler": "sdar", "remasking": "low_confidence"},
    models=(Model("inclusionAI/LLaDA2.0-mini", 16.26e9),),
    source="github ZHZisZZ/dllm; class LLaDA2MoeModelLM, LLaDA2Sampler",
)
