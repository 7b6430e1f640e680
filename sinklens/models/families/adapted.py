"""Baselines that were trained on as diffusion models, and whose config.json does not say so: by `family=` alone."""

from __future__ import annotations

from functools import partial

from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import stock

# Its sampler's alg "p2" is that of its sample.py and its evaluations; "entropy", which its code takes where nothing is
# said, is Dream's. Its class takes the pad token, where one is written, for padding; sinklens does not.
OPEN_DCODER = Family(
    name="open-dcoder",
    model_types=(),
    architectures=(),
    model_class="Qwen2ForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Qwen2"),
    shift=True,
    mask_tokens=("<M>", "[MASK]"),
    tokenizer="Qwen2Tokenizer",
    plan={"sampler": "p2", "remasking": "entropy"},  # of its sampler "dream"; p2 has its own
    models=(Model("fredzzp/open-dcoder-0.5B", 0.5e9, note="official is temperature=0.5, top_k=200"),),
    source="github pengzhangzhi/Open-dLLM; class Qwen2ForCausalLM with is_causal=False, MDMGenerationMixin",
)
DIFFULLAMA = Family(
    name="DiffuLLaMA",
    model_types=(),
    architectures=(),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Llama"),
    shift=True,
    plan={"sampler": "diffugpt"},
    models=(Model("diffusionfamily/diffullama", 6.7e9, "Apache-2.0", "mask_token_id=811 where no file names it"),),
    source="github HKUNLP/DiffuLLaMA; class DiscreteDiffusionModel, generate_samples",
)
# SmolLM2-135M-Instruct made a diffusion model by examples/adapt_smollm2.py; mask token 16, <empty_output>.
SMOLLM2_DIFFUSION = Family(
    name="SmolLM2-diffusion",
    model_types=(),
    architectures=(),
    model_class="LlamaForCausalLM",
    causal=False,
    translate=partial(stock, decoder="Llama"),
    shift=True,
    plan={"sampler": "dream", "remasking": "maskgit_plus"},
    source="examples/adapt_smollm2.py",
)
