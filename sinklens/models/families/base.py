"""The Family: everything that distinguishes one family of checkpoints from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sinklens.errors import CheckpointError

Config = Mapping[str, Any]

# The field values that stock decoders share with every official config.json of the Qwen and Llama layouts.
STOCK_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Family:
    """One family of checkpoints: a stock transformers decoder and how to read a checkpoint into it.

    Attributes:
        name: What users call it.
        model_types: `model_type` values of config.json that belong to it.
        decoder: The stock transformers class family: "Llama", "Qwen2" or "Qwen3".
        causal: True for the autoregressive baselines.
        translate: config.json -> keyword arguments of the stock config class. Raises CheckpointError for a
            field that the stock decoder cannot honour.
        key_mapping: Weight renames, regular expression -> replacement (at most the group ``\\1``).
        shift: The prediction for position i sits at i - 1 in the raw logits (Dream). Undone by HookedDLM.
        mask_tokens: Names under which the tokenizer may carry the mask token, if config.json has no
            `mask_token_id`.
        tokenizer: Which transformers tokenizer class reads the checkpoint when there is no tokenizer.json.
        plan: Default decoding plan, as keyword arguments of `Plan`.
        models: Checkpoints known to be in this layout.
        source: Where the facts come from.
    """

    name: str
    model_types: tuple[str, ...]
    decoder: str
    causal: bool
    translate: Callable[[Config], dict[str, Any]]
    source: str
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    shift: bool = False
    mask_tokens: tuple[str, ...] = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>", "[MASK]")
    tokenizer: str = "PreTrainedTokenizerFast"
    plan: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The name under which the TransformerLens adapter is registered."""
        return f"Sinklens{self.decoder}"

    def __repr__(self) -> str:
        return f"Family({self.name!r})"


def pick(config: Config, fields: tuple[str, ...]) -> dict[str, Any]:
    """The given fields of a config, where present and not null."""
    return {name: config[name] for name in fields if config.get(name) is not None}


def refuse(config: Config, supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise for a field whose value is not among the supported ones (an absent field is fine)."""
    for name, values in supported.items():
        if name in config and config[name] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise CheckpointError(
                f"config.json has {name}={config[name]!r}, and sinklens loads this family only with "
                f"{name}={allowed}: the stock decoder it uses computes nothing else"
            )


def require(config: Config, fields: tuple[str, ...]) -> None:
    """Raise for a field that must be there."""
    missing = [name for name in fields if config.get(name) is None]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; is this the checkpoint's own config.json?")


def stock(config: Config) -> dict[str, Any]:
    """Translate a config that already uses the stock field names (Llama, Qwen2, Qwen3 layouts)."""
    require(config, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"))
    refuse(config, {"use_sliding_window": (False, None), "hidden_act": ("silu",)})
    return pick(config, STOCK_FIELDS)
