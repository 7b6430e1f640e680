"""MMaDA-8B, text only: a LLaDA backbone whose embedding also holds image codes."""

from __future__ import annotations

from sinklens.models.families.base import Family, Model
from sinklens.models.families.llada import KEY_MAPPING, translate

MMADA = Family(
    name="MMaDA",
    model_types=("mmada",),
    architectures=("MMadaModelLM",),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=translate,
    key_mapping=KEY_MAPPING,
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 128},
    models=(Model("Gen-Verse/MMaDA-8B-Base", 8e9), Model("Gen-Verse/MMaDA-8B-MixCoT", 8e9)),
    source="github Gen-Verse/MMaDA; class MMadaModelLM, a LLaDAModelLM",
)
