"""Dream: Dream-v0, Dream-Coder, DiffuCoder. A Qwen2 decoder whose logits are shifted by one."""

from __future__ import annotations

from functools import partial

from sinklens.models.families.base import Family
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
        "Dream-org/Dream-v0-Base-7B",
        "Dream-org/Dream-v0-Instruct-7B",
        "Dream-org/Dream-Coder-v0-Instruct-7B",
        "apple/DiffuCoder-7B-Instruct",
    ),
    source="github DreamLM/Dream; class DreamModel, generation_utils",
)
