"""The autoregressive baselines: Llama, Qwen2, Qwen3, exactly as transformers computes them."""

from __future__ import annotations

from functools import partial

from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import stock

LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    architectures=("LlamaForCausalLM",),
    model_class="LlamaForCausalLM",
    causal=True,
    translate=partial(stock, decoder="Llama"),
    models=(Model("meta-llama/Llama-3.1-8B-Instruct", 8e9),),
    source="transformers LlamaForCausalLM",
)
QWEN2 = Family(
    name="Qwen2",
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    model_class="Qwen2ForCausalLM",
    causal=True,
    translate=partial(stock, decoder="Qwen2"),
    tokenizer="Qwen2Tokenizer",
    models=(Model("Qwen/Qwen2.5-7B-Instruct", 7e9),),
    source="transformers Qwen2ForCausalLM",
)
QWEN3 = Family(
    name="Qwen3",
    model_types=("qwen3",),
    architectures=("Qwen3ForCausalLM",),
    model_class="Qwen3ForCausalLM",
    causal=True,
    translate=partial(stock, decoder="Qwen3"),
    tokenizer="Qwen2Tokenizer",
    models=(Model("Qwen/Qwen3-8B", 8e9),),
    source="transformers Qwen3ForCausalLM",
)
