"""Dream: Dream-v0, Dream-Coder, DiffuCoder. A Qwen2 decoder whose logits are shifted by one."""

from __future__ import annotations

from functools import partial

from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import stock

DREAM = Family(
    name="Dream",
    model_types=("Dream", "dream"),
    architectures=("DreamModel",),
    model_class="Qwen2ForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Qwen2"),
    shift=True,
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "dream", "remasking": "entropy"},
    models=(
        Model("Dream-org/Dream-v0-Base-7B", 7e9),
        Model("Dream-org/Dream-v0-Instruct-7B", 7e9),
        Model("Dream-org/Dream-Coder-v0-Instruct-7B", 7e9),
        Model("apple/DiffuCoder-7B-Instruct", 7e9),
    ),
    source="github DreamLM/Dream; class DreamModel, generation_utils",
)
