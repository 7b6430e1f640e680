"""BERT and RoBERTa, and what has their layout: encoders that fill masks, with embedded positions."""

from __future__ import annotations

from typing import Any

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.encoder_fields import ACTIVATIONS, encoder
from sinklens.models.families.fields import Config, require, short


def translate(config: Config) -> dict[str, Any]:
    """BERT's config.json -> BertConfig arguments. Token types are always 0."""
    return encoder(
        config,
        sizes=("intermediate_size", "max_position_embeddings", "type_vocab_size"),
        numbers=("layer_norm_eps",),
        flags=("tie_word_embeddings",),
        choices={"hidden_act": ACTIVATIONS},
        fixed={"position_embedding_type": ("absolute",)},
    )


def translate_roberta(config: Config) -> dict[str, Any]:
    """RoBERTa's config.json -> RobertaConfig arguments. The pad's id decides where positions begin.

    Positions are counted by what is real, so that a row has the same numbers alone and in a batch; the stock class by
    itself counts tokens that are no pads. They differ only for a pad token inside a text.
    """
    require(config, ("pad_token_id",))
    pad, rows = config["pad_token_id"], config.get("max_position_embeddings", 512)
    if not isinstance(pad, int) or isinstance(pad, bool) or not 0 <= pad < rows - 1:
        raise CheckpointError(
            f"config.json has pad_token_id={short(pad)}, behind which positions begin; of {rows} rows"
        )
    return translate(config) | {"pad_token_id": pad}


BERT = Family(
    name="BERT",
    model_types=("bert",),
    architectures=("BertForMaskedLM", "BertForPreTraining", "AntiBERTy"),
    model_class="BertForMaskedLM",
    causal=False,
    translate=translate,
    key_mapping={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    dropped=(
        r"bert\.pooler\.",
        r"bert\.embeddings\.position_ids$",
        r"cls\.seq_relationship\.",
        r"cls\.(species|chain|graft)\.",  # AntiBERTy's
    ),
    positions="absolute",
    closes=True,
    mask_tokens=("[MASK]",),
    tokenizer="BertTokenizer",
    plan={"sampler": "llada", "remasking": "low_confidence"},
    models=(Model("google-bert/bert-base-uncased", licence="Apache-2.0"),),
    source="transformers BertForMaskedLM",
)
ROBERTA = Family(
    name="RoBERTa",
    model_types=("roberta",),
    architectures=("RobertaForMaskedLM",),
    model_class="RobertaForMaskedLM",
    causal=False,
    translate=translate_roberta,
    dropped=(r"roberta\.pooler\.", r"roberta\.embeddings\.(position_ids|token_type_ids)$"),
    positions="fairseq",
    closes=True,
    mask_tokens=("<mask>",),
    tokenizer="RobertaTokenizer",
    plan={"sampler": "llada", "remasking": "low_confidence"},
    models=(Model("FacebookAI/roberta-base"),),
    source="transformers RobertaForMaskedLM",
)
