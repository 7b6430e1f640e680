"""The autoregressive baselines: Llama, Qwen2, Qwen3, exactly as transformers computes them."""

from __future__ import annotations

from sinklens.models.families.base import Family, stock

LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    decoder="Llama",
    causal=True,
    translate=stock,
    models=("meta-llama/Llama-3.1-8B-Instruct",),
    source="transformers LlamaForCausalLM",
)
QWEN2 = Family(
    name="Qwen2",
    model_types=("qwen2",),
    decoder="Qwen2",
    causal=True,
    translate=stock,
    tokenizer="Qwen2Tokenizer",
    models=("Qwen/Qwen2.5-7B-Instruct",),
    source="transformers Qwen2ForCausalLM",
)
QWEN3 = Family(
    name="Qwen3",
    model_types=("qwen3",),
    decoder="Qwen3",
    causal=True,
    translate=stock,
    tokenizer="Qwen2Tokenizer",
    models=("Qwen/Qwen3-8B",),
    source="transformers Qwen3ForCausalLM",
)
