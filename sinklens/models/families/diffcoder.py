"""Stable-DiffCoder: a Llama decoder that sees block by block."""

from __future__ import annotations

from typing import Any

from sinklens.models.families.base import BLOCK_SIZE, Family, Model
from sinklens.models.families.fields import Config, size, stock
from sinklens.sinks import Blocks


def translate(config: Config) -> dict[str, Any]:
    """Its config.json -> LlamaConfig arguments, and the length of blocks if it says one."""
    rest = {name: value for name, value in config.items() if name != BLOCK_SIZE}
    length = config.get(BLOCK_SIZE)
    return stock(rest, "Llama") | ({} if length is None else {BLOCK_SIZE: size(BLOCK_SIZE, length)})


DIFFCODER = Family(
    name="Stable-DiffCoder",
    model_types=("llama",),
    architectures=("StableDiffcoderForCausalLM",),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=translate,
    blocks=Blocks(4),
    mask_tokens=("<[MASK_TOKEN]>", "<[MASK]>", "[MASK]"),
    plan={"sampler": "llada", "remasking": "low_confidence"},
    models=(
        Model("ByteDance-Seed/Stable-DiffCoder-8B-Base", 8e9),
        Model("ByteDance-Seed/Stable-DiffCoder-8B-Instruct", 8e9),
    ),
    source="indexed copies of its Hub files; class StableDiffcoderForCausalLM, generate_block",
)
