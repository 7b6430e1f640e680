"""iLLaDA-8B: a Llama decoder with Llama's own weight names, no LLaDA layout; decoded as LLaDA."""

from __future__ import annotations

from typing import Any

from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import Config, even_heads, plain_rope, refuse, require, stock

NEEDED = ("intermediate_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings")


def translate(config: Config) -> dict[str, Any]:
    """ILLaDA's config.json -> LlamaConfig arguments: RMSNorm, heads of equal size, rotary positions without scaling."""
    require(config, NEEDED)
    refuse(config, {"layer_norm_eps": ()})
    even_heads(config)
    rest = {name: value for name, value in config.items() if name not in ("layer_norm_eps", "resid_pdrop")}
    return plain_rope(stock({"attention_bias": False, "mlp_bias": False, **rest}, "Llama"))


ILLADA = Family(
    name="iLLaDA",
    model_types=("illada",),
    architectures=("ILLaDAForCausalLM",),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=translate,
    mask_tokens=("<[MASK]>",),
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=(
        Model("GSAI-ML/iLLaDA-8B-Base", 7.62e9, "Apache-2.0"),
        Model("GSAI-ML/iLLaDA-8B-Instruct", 7.62e9, "Apache-2.0"),
    ),
    source="class ILLaDAForCausalLM of the Hub repository; github ML-GSAI/LLaDA, generate.py with mask_id 5",
)
