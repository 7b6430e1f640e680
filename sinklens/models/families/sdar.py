"""SDAR: Qwen3 decoders that see block by block."""

from __future__ import annotations

from typing import Any

from sinklens.models.families.base import BLOCK_SIZE, Family, Model
from sinklens.models.families.fields import Config, size, stock
from sinklens.sinks import Blocks


def translate(config: Config) -> dict[str, Any]:
    """Its config.json -> Qwen3Config arguments, and the length of blocks."""
    rest = {name: value for name, value in config.items() if name not in (BLOCK_SIZE, "fuse_cross_entropy")}
    length = config.get(BLOCK_SIZE)
    return stock(rest, "Qwen3") | ({} if length is None else {BLOCK_SIZE: size(BLOCK_SIZE, length)})


SDAR = Family(
    name="SDAR",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    model_class="Qwen3ForCausalLM",
    causal=False,
    translate=translate,
    blocks=Blocks(4),
    mask_tokens=("<|MASK|>",),
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "sdar", "remasking": "low_confidence"},
    models=(
        Model("JetLM/SDAR-1.7B-Chat", 2.03e9),
        Model("JetLM/SDAR-4B-Chat", 4e9),
        Model("JetLM/SDAR-8B-Chat", 8e9),
    ),
    source="github JetAstra/SDAR; class SDARForCausalLM, generate.py block_diffusion_generate",
)
