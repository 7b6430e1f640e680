"""ESM-2, and DPLM, which is one with a sampler of its own: protein encoders with rotary positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sinklens.models.families.base import Family, Model
from sinklens.models.families.encoder_fields import encoder
from sinklens.models.families.fields import Config, require, size


def translate(config: Config) -> dict[str, Any]:
    """ESM's config.json -> EsmConfig arguments.

    With `token_dropout` (ESM-2 and DPLM have it, and DPLM generates with it) mask tokens enter as zeros, and all others
    are scaled by (1 - .12) / (1 - share of masks): how many masks there are reaches every position. The attention
    mask, not the pad's id, says what is real.
    """
    require(config, ("position_embedding_type", "mask_token_id", "pad_token_id"))
    own = {"position_embedding_type": "rotary", "mask_token_id": config["mask_token_id"]}
    own["pad_token_id"] = size("pad_token_id", config["pad_token_id"])
    read = encoder(
        config,
        sizes=("intermediate_size", "max_position_embeddings"),
        numbers=("layer_norm_eps", "rope_theta"),
        flags=("tie_word_embeddings", "token_dropout", "emb_layer_norm_before"),
        fixed={
            "position_embedding_type": ("rotary",),  # ESM-1b's are embedded
            "hidden_act": ("gelu",),
            "is_folding_model": (False,),
            "esmfold_config": (),
            "dplm_type": ("dplm_esm",),
        },
        inert="vocab_list",
    )
    return read | own


ESM2 = Family(
    name="ESM-2",
    model_types=("esm",),
    architectures=("EsmForMaskedLM",),
    model_class="EsmForMaskedLM",
    causal=False,
    translate=translate,
    dropped=(
        r"esm\.encoder\.layer\.\d+\.attention\.self\.rotary_embeddings\.inv_freq$",  # of older files
        r"esm\.embeddings\.(position_embeddings\.weight|position_ids)$",
        r"esm\.pooler\.",
    ),
    optional=(r"esm\.contact_head\.", r"esm\.rotary_embeddings\.inv_freq$"),
    closes=True,
    mask_tokens=("<mask>",),
    tokenizer="EsmTokenizer",
    plan={"sampler": "llada", "remasking": "low_confidence"},
    never=("<mask>", "X", "<pad>", "<cls>", "<eos>"),
    models=(Model("facebook/esm2_t6_8M_UR50D"),),
    source="transformers EsmForMaskedLM",
)
DPLM = replace(
    ESM2,
    name="DPLM",
    architectures=("EsmForDPLM",),
    plan={"sampler": "dplm"},
    models=(
        Model("airkingbd/dplm_150m", parameters=1.5e8, note="official are 500 steps and temperature 1"),
        Model("airkingbd/dplm_650m", parameters=6.5e8, note="official are 500 steps and temperature 1"),
    ),
    source="github bytedance/dplm; class EsmForDPLM, DiffusionProteinLanguageModel.generate",
)
