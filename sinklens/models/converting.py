"""From the weight file of a package to a checkpoint folder: safetensors, config.json, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sinklens.models.gguf import Gguf

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def smollm2(weights: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct out of its GGUF file: the quantized values, as bfloat16."""
    file = Gguf(weights)
    config, tokenizer = file.config(), file.tokenizer()
    stock = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    model = file.model(LlamaConfig(**stock), LlamaForCausalLM, torch.bfloat16)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    _write(folder, config, tensors)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def antiberty(weights: Path, folder: Path) -> None:
    """AntiBERTy out of its pickle, without the heads for species, chain and graft, which no forward here uses.

    The one exception to "no pickle": the file's hash is known and was checked, and only tensors are unpickled.
    """
    state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    left_out = ("bert.pooler.", "bert.embeddings.position_ids", "cls.species.", "cls.chain.", "cls.graft.")
    tied = ("cls.predictions.decoder.",)  # the embedding, and the bias that stands by itself
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(left_out + tied)}
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": 25,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    _write(folder, config, tensors)
    residue_tokenizer().save_pretrained(folder)


def residue_tokenizer() -> PreTrainedTokenizerFast:
    """AntiBERTy's vocabulary: one token for each residue, with or without spaces between them."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *AMINO_ACIDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace(Regex(r"\s+"), "")
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, clean_up_tokenization_spaces=False, **names
    )


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
