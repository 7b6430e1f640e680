"""GGUF files of Llama, Qwen2 and Qwen3: what they say becomes a stock config, and transformers reads their weights.

transformers' own reader passes over what it does not know. Here every field of the architecture and every tensor is
known, or the file is refused, so that no model is computed in another way than its file says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sinklens.errors import CheckpointError
from sinklens.models.families.fields import short

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
HEADS = ("attention.key_length", "attention.value_length", "rope.dimension_count")  # one size in all stock classes
IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
# How a text is cut before its bytes are merged, where transformers' reader does as the original tokenizer does.
CUT = ("default", "gpt-2", "smollm", "llama3", "llama-v3", "llama-bpe", "smaug-bpe", "qwen2", "deepseek-r1-qwen")
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf:
    """A GGUF file, of which nothing but the header has been read.

    Args:
        path: The file.
        revision: None: a file has no revisions.

    Raises:
        CheckpointError: no such file, no GGUF file, another architecture, a revision, the package `gguf` is missing.
    """

    def __init__(self, path: Path, revision: str | None = None) -> None:
        if revision is not None:
            raise CheckpointError(f"{str(path)!r} is a file, which has no revision {revision!r}; leave it out")
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise CheckpointError(
                f"{str(path)!r} is a GGUF file, and the package gguf is not installed: pip install 'sinklens[real]'"
            ) from error
        if not path.is_file():
            raise CheckpointError(f"{str(path)!r} is no file here")
        try:
            reader: Any = GGUFReader(path)
            self.said = {name: field.contents() for name, field in reader.fields.items()}
            self.shapes = {each.name: tuple(int(n) for n in reversed(each.shape)) for each in reader.tensors}
        except Exception as error:  # whatever a damaged file leads to in a reader that trusts it
            raise CheckpointError(f"{str(path)!r} could not be read as a GGUF file: {str(error)[:200]}") from error
        self.path, self.kind = path, str(self.said.get("general.architecture"))
        if self.kind not in ARCHITECTURES:
            raise CheckpointError(
                f"{str(path)!r} holds a model of the architecture {self.kind!r}; sinklens reads GGUF files of "
                f"{', '.join(ARCHITECTURES)}"
            )

    def config(self) -> dict[str, Any]:
        """What config.json would say.

        Raises:
            CheckpointError: a field of the architecture that the stock class does not know, or heads of two sizes.
        """
        own = {
            name.removeprefix(f"{self.kind}."): value for name, value in self.said.items() if self._is_own(name, value)
        }
        heads = {name: own.pop(name) for name in HEADS if name in own}
        unknown = [name for name in own if name not in FIELDS]
        if unknown:
            raise CheckpointError(
                f"{str(self.path)!r} says {self.kind}.{unknown[0]}={short(own[unknown[0]])}, which sinklens does "
                "not know how to honour; load the original checkpoint instead"
            )
        config = {FIELDS[name]: value for name, value in own.items()}
        if len({*heads.values()}) > 1:
            raise CheckpointError(f"{str(self.path)!r} has heads of several sizes: {heads}")
        if heads:
            config["head_dim"] = next(iter(heads.values()))
        if "token_embd.weight" in self.shapes:
            config.setdefault("vocab_size", self.shapes["token_embd.weight"][0])
        ids = {new: self.said.get(f"tokenizer.ggml.{old}") for old, new in IDS.items()}
        return {
            "model_type": self.kind,
            "architectures": [ARCHITECTURES[self.kind]],
            "tie_word_embeddings": "output.weight" not in self.shapes,
            **config,
            **{name: value for name, value in ids.items() if value is not None},
        }

    def _is_own(self, name: str, value: Any) -> bool:
        """Whether a field says how the model computes; every other is about the file, or the tokenizer's."""
        kind = name.split(".", maxsplit=1)[0]
        if kind == "split":
            raise CheckpointError(f"{str(self.path)!r} is one of several files of a model ({name}={value}); join them")
        if name == f"{self.kind}.rope.scaling.type" and value == "none":
            return False
        return kind == self.kind

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The tensors by transformers' names, with their shapes.

        Raises:
            CheckpointError: a tensor that the stock class has no place for.
        """
        return {self._renamed(name): shape for name, shape in self.shapes.items()}

    def _renamed(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in WHOLE:
            return f"{WHOLE[stem]}.{kind}"
        where, _, rest = stem.removeprefix("blk.").partition(".")
        if stem.startswith("blk.") and where.isdecimal() and rest in BLOCK:
            return f"model.layers.{where}.{BLOCK[rest]}.{kind}"
        why = ": a long-context rope (Llama 3.1's), of which it does not say more" if stem == "rope_freqs" else ""
        raise CheckpointError(
            f"{str(self.path)!r} holds the tensor {name!r}{why}; the stock class has no place for it. Load the "
            "original checkpoint instead"
        )

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer; None if it has none.

        Raises:
            CheckpointError: one that transformers' reader would not cut as the original does.
        """
        if "tokenizer.ggml.tokens" not in self.said:
            return None
        model, cut = self.said.get("tokenizer.ggml.model"), self.said.get("tokenizer.ggml.pre", "default")
        if model not in ("gpt2", "llama") or (model == "gpt2" and cut not in CUT):
            raise CheckpointError(
                f"{str(self.path)!r} has a tokenizer of the kind {model!r}, cut as {cut!r}, which transformers does "
                f"not rebuild from a GGUF file; known are llama, and gpt2 cut as {', '.join(CUT)}"
            )
        try:
            return PreTrainedTokenizerFast.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise CheckpointError(f"the tokenizer in {str(self.path)!r} could not be read: {error}") from error

    def model(
        self, config: Any, model_class: type[PreTrainedModel], dtype: torch.dtype | None, device_map: Any = None
    ) -> PreTrainedModel:
        """The stock model with the weights unpacked, in float32 unless another dtype is given."""
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        try:
            packed: Any = model_class.from_pretrained(
                self.path.parent, gguf_file=self.path.name, config=config, dtype=torch.float32
            )
            # One that remembers being quantized cannot be cast or saved: its weights go into one that does not.
            return model_class.from_pretrained(
                None,
                config=config,
                state_dict=packed.state_dict(),
                dtype=dtype or torch.float32,
                device_map=device_map,
                attn_implementation="sdpa",
            )
        finally:
            transformers_logging.set_verbosity(verbosity)
