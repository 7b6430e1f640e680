"""CoDA: a Qwen3 decoder turned bidirectional, with logits shifted by one and Dream's sampler.

The official class ignores every attention mask, so that its padded batches see their pads; sinklens masks them.
"""

from __future__ import annotations

from typing import Any

from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import Config, plain_rope, require, stock

NEEDED = ("intermediate_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta")
TRAINING = (  # how its training chose what to mask, and which kernel ran it
    "attention_kernel",
    "block_masking_probability",
    "mask_block_sizes",
    "prefix_probability",
    "sampling_eps",
    "truncate_probability",
)


def translate(config: Config) -> dict[str, Any]:
    """CoDA's config.json -> Qwen3Config arguments. It does not say that the head is a matrix of its own: it is."""
    require(config, NEEDED)
    rest = {name: value for name, value in config.items() if value is not None and name not in TRAINING}
    return plain_rope(stock({"tie_word_embeddings": False, "attention_bias": False, **rest}, "Qwen3"))


CODA = Family(
    name="CoDA",
    model_types=("CoDA",),
    architectures=("CoDALanguageModel",),
    model_class="Qwen3ForCausalLM",
    causal=False,
    translate=translate,
    shift=True,
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "dream", "remasking": "entropy"},
    models=(Model("Salesforce/CoDA-v0-Base", 2.03e9), Model("Salesforce/CoDA-v0-Instruct", 2.03e9)),
    source="github SalesforceAIResearch/CoDA; class CoDALanguageModel, generation_utils",
)
