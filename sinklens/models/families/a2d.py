"""dllm's A2D checkpoints: Qwen3, Qwen2 and Llama decoders turned bidirectional."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import stock
from sinklens.sinks import Blocks

# dllm's MDLMSampler commits as LLaDA's does wherever its counts come out even, as at one token per step.
PLAN: dict[str, Any] = {"sampler": "llada", "remasking": "low_confidence", "block_length": 32}
BLOCKS = "decoded block by block by its authors; seen here both ways"

A2D_QWEN3 = Family(
    name="A2D-Qwen3",
    model_types=("a2d-qwen3",),
    architectures=("A2DQwen3LMHeadModel", "_A2DQwen3LMHeadModel"),
    model_class="Qwen3ForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Qwen3"),
    tokenizer="Qwen2Tokenizer",
    plan=PLAN,
    models=(
        Model("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", 0.75e9),
        Model("divelab/OPDLM-0.6B", 0.6e9, note=BLOCKS),
    ),
    source="github ZHZisZZ/dllm; class A2DQwen3LMHeadModel, MDLMSampler",
)
A2D_QWEN2 = Family(
    name="A2D-Qwen2",
    model_types=("a2d-qwen2",),
    architectures=("A2DQwen2LMHeadModel",),
    model_class="Qwen2ForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Qwen2"),
    tokenizer="Qwen2Tokenizer",
    plan=PLAN,
    models=(Model("dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1", 0.63e9),),
    source="github ZHZisZZ/dllm; class A2DQwen2LMHeadModel, MDLMSampler",
)
# The same config.json, trained to see in blocks that begin behind the prompt: only its name tells it.
A2D_QWEN3_BD3LM = replace(
    A2D_QWEN3,
    name="A2D-Qwen3-BD3LM",
    architectures=(),
    marked="bd3lm",
    blocks=Blocks(32, "prompt"),
    plan={"sampler": "dllm", "remasking": "low_confidence"},
    models=(Model("dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1", 0.75e9),),
    source="github ZHZisZZ/dllm; class A2DQwen3LMHeadModel, BD3LMSampler",
)
A2D_QWEN2_BD3LM = replace(
    A2D_QWEN2,
    name="A2D-Qwen2-BD3LM",
    architectures=(),
    marked="bd3lm",
    blocks=Blocks(32, "prompt"),
    plan={"sampler": "dllm", "remasking": "low_confidence"},
    models=(Model("dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1", 0.63e9),),
    source="github ZHZisZZ/dllm; class A2DQwen2LMHeadModel, BD3LMSampler",
)
A2D_LLAMA = Family(
    name="A2D-Llama",
    model_types=("a2d-llama",),
    architectures=("A2DLlamaLMHeadModel",),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Llama"),
    plan=PLAN,
    source="github ZHZisZZ/dllm; class A2DLlamaLMHeadModel, MDLMSampler; no public weights are known",
)
