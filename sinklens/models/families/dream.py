"""Dream: Dream-v0, Dream-Coder, DiffuCoder. A Qwen2 decoder whose logits are shifted by one."""

from __future__ import annotations

from sinklens.models.families.base import Family, stock

DREAM = Family(
    name="Dream",
    model_types=("Dream", "dream"),
    decoder="Qwen2",
    causal=False,
    translate=stock,
    shift=True,
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "dream", "remasking": "entropy"},
    models=(
        "Dream-org/Dream-v0-Base-7B",
        "Dream-org/Dream-v0-Instruct-7B",
        "Dream-org/Dream-Coder-v0-Instruct-7B",
        "apple/DiffuCoder-7B-Instruct",
    ),
    source="github DreamLM/Dream; class DreamModel, generation_utils",
)
