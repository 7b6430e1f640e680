"""dllm's A2D checkpoints: Qwen3 decoders turned bidirectional."""

from __future__ import annotations

from sinklens.models.families.base import Family, stock

A2D_QWEN3 = Family(
    name="A2D-Qwen3",
    model_types=("a2d-qwen3",),
    decoder="Qwen3",
    causal=False,
    translate=stock,
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",),
    source="github ZHZisZZ/dllm; class A2DQwen3LMHeadModel",
)
