"""DiffuGPT small and medium: GPT-2 turned into a diffusion model. Bidirectional, its logits shifted by one."""

from __future__ import annotations

from sinklens.models.families.base import Family, Model
from sinklens.models.families.gpt2 import translate

DIFFUGPT = Family(
    name="DiffuGPT",
    model_types=(),  # config.json says gpt2
    architectures=(),
    model_class="GPT2LMHeadModel",
    causal=False,
    translate=translate,
    key_mapping={r"^denoise_model\.": "transformer.", r"^embed_tokens\.": "transformer.wte."},
    shift=True,
    positions="absolute",
    begins=True,
    # In the small model an ordinary token, id 10541, which its tokenizer names as the mask token.
    mask_tokens=("[¨M¨]",),
    tokenizer="GPT2Tokenizer",
    plan={"sampler": "diffugpt"},
    models=(
        Model("diffusionfamily/diffugpt-s", 0.124e9, "Apache-2.0", "say family='DiffuGPT'"),
        Model("diffusionfamily/diffugpt-m", 0.355e9, "Apache-2.0", "say family='DiffuGPT'"),
    ),
    source="github HKUNLP/DiffuLLaMA; class DiscreteDiffusionModel, generate_samples",
)
