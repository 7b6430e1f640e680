"""Mixtures of experts: LLaDA-MoE, RND1 and its autoregressive twin Qwen3-MoE, all computed as Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import Config, even_heads, plain_rope, refuse, require, short, stock

# What the official LLaDAMoEModelLM computes as a Qwen3-MoE decoder; anything else is another model.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "qk_layernorm": (True,),
    "moe_router_enable_expert_bias": (False,),
    "moe_router_score_function": ("softmax",),
    "shared_expert_intermediate_size": (),
    "clip_qkv": (),
    "routed_scaling_factor": (1, 1.0),
    "partial_rotary_factor": (1, 1.0),
}
# What its routing does not read: weights are never made to sum to 1, whatever norm_topk_prob says.
UNREAD = ("norm_topk_prob", "router_num_group", "router_topk_group", "dense_intermediate_size")
NAMES = {"moe_intermediate_size": "expert_intermediate_size"}


def llada_moe(config: Config) -> dict[str, Any]:
    """LLaDA-MoE's config.json -> Qwen3MoeConfig arguments."""
    require(config, ("expert_intermediate_size", "num_experts", "num_experts_per_tok", "rope_theta", "qk_layernorm"))
    refuse(config, SUPPORTED)
    even_heads(config)
    dense = config.get("moe_layer_freq")
    if dense is not None and (not isinstance(dense, list) or any(layer != 1 for layer in dense)):
        raise CheckpointError(f"config.json has moe_layer_freq={short(dense)}; expected 1 for every layer: experts")
    taken = {*SUPPORTED, *UNREAD, *NAMES.values(), "moe_layer_freq"}
    rest = {name: value for name, value in config.items() if value is not None and name not in taken}
    heads = {"num_key_value_heads": config.get("num_attention_heads")}  # unless config.json says another number
    defaults = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "attention_bias": False} | heads
    experts = {"moe_intermediate_size": config["expert_intermediate_size"], "norm_topk_prob": False}
    return plain_rope(stock({**defaults, "tie_word_embeddings": False, **rest, **experts}, "Qwen3Moe", NAMES))


def rnd1(config: Config) -> dict[str, Any]:
    """RND1's config.json -> Qwen3MoeConfig arguments; it says false where others say null."""
    rest = {name: value for name, value in config.items() if name not in ("moe_backend", "num_diffusion_steps")}
    unsaid = {name: None for name in ("rope_scaling", "sliding_window") if rest.get(name) is False}
    return plain_rope(qwen3_moe(rest | unsaid))


def qwen3_moe(config: Config) -> dict[str, Any]:
    """A config.json in Qwen3-MoE's own field names; what routing needs must be there.

    transformers 5 writes num_local_experts where Qwen wrote num_experts.
    """
    config = {name: value for name, value in config.items() if value is not None}
    count = config.pop("num_local_experts", None)
    if count is not None and config.setdefault("num_experts", count) != count:
        raise CheckpointError(
            f"config.json says num_experts={short(config['num_experts'])} and num_local_experts={short(count)}; which "
            "is it?"
        )
    require(config, ("moe_intermediate_size", "num_experts", "num_experts_per_tok", "norm_topk_prob"))
    return stock(config, "Qwen3Moe")


LLADA_MOE = Family(
    name="LLaDA-MoE",
    model_types=("llada", "lladamoe"),
    architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    model_class="Qwen3MoeForCausalLM",
    causal=False,
    translate=llada_moe,
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=(Model("inclusionAI/LLaDA-MoE-7B-A1B-Base", 7.36e9), Model("inclusionAI/LLaDA-MoE-7B-A1B-Instruct", 7.36e9)),
    source="class LLaDAMoEModelLM (github ZHZisZZ/dllm); github ML-GSAI/LLaDA, generate.py",
)
# Its generate commits what is left of the canvas by entropy, an even split of it at every step, and leaves a pad behind
# the masks: the same here is a prompt with gaps and that pad, new_tokens=0.
RND1 = Family(
    name="RND1",
    model_types=("rnd1",),
    architectures=("RND1LM", "RND1"),
    model_class="Qwen3MoeForCausalLM",
    causal=False,
    translate=rnd1,
    shift=True,
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "llada", "remasking": "entropy"},
    models=(Model("radicalnumerics/RND1-Base-0910", 30.5e9),),
    source="github RadicalNumerics/RND1; class RND1LM, diffusion_sample",
)
QWEN3_MOE = Family(
    name="Qwen3-MoE",
    model_types=("qwen3_moe",),
    architectures=("Qwen3MoeForCausalLM",),
    model_class="Qwen3MoeForCausalLM",
    causal=True,
    translate=qwen3_moe,
    tokenizer="Qwen2Tokenizer",
    models=(Model("Qwen/Qwen3-30B-A3B", 30.5e9),),
    source="transformers Qwen3MoeForCausalLM",
)
