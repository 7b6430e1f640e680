"""dllm's A2D checkpoints: Qwen3 decoders turned bidirectional."""

from __future__ import annotations

from functools import partial

from sinklens.models.families.base import Family
from sinklens.models.families.fields import stock

A2D_QWEN3 = Family(
    name="A2D-Qwen3",
    model_types=("a2d-qwen3",),
    architectures=(
        "A2DQwen3LMHeadModel",
        "_A2DQwen3LMHeadModel",
    ),
    model_class="Qwen3ForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Qwen3"),
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",),
    source="github ZHZisZZ/dllm; class A2DQwen3LMHeadModel",
)
