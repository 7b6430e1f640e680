"""The fields of an encoder's config.json: as a decoder's, each is passed on, known to change nothing, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinklens.errors import CheckpointError
from sinklens.models.families.fields import INERT, REQUIRED, SUPPORTED, Config, flag, positive, refuse, require, short
from sinklens.models.families.fields import size as whole

ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
FIXED: dict[str, tuple[Any, ...]] = {  # what no encoder here computes in another way
    "is_decoder": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (),
    "is_causal": (False,),
}
TRAINING = (  # also sizes of heads that are not loaded
    "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout embedding_dropout mlp_dropout "
    "attention_dropout finetuning_task directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type output_past cls_token_id sep_token_id"
)
DECIDES = ("hidden_act", "is_decoder", "rope_theta", "rope_scaling", "rope_parameters")  # inert for no encoder


def encoder(
    config: Config,
    *,
    sizes: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    choices: Mapping[str, tuple[str, ...]] | None = None,
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    inert: str = "",
) -> dict[str, Any]:
    """A config in the stock field names as arguments of an encoder's stock config class.

    Args:
        config: The fields.
        sizes: Whole numbers that are passed on, besides those that every model has.
        numbers: Numbers above 0 that are.
        flags: Truth values that are.
        choices: Words that are, with those that may be.
        fixed: What the stock class computes in one way only.
        inert: What else changes nothing.

    Raises:
        CheckpointError: a field that is unknown, of the wrong type or size, or that the stock class cannot honour.
    """
    config = {name: value for name, value in config.items() if value is not None}
    require(config, REQUIRED)
    common = {name: values for name, values in SUPPORTED.items() if name not in DECIDES}
    only = common | FIXED | dict(fixed or {})
    refuse(config, {name: values for name, values in only.items() if name not in (choices or {})}, kind="encoder")
    sizes = (*REQUIRED, *sizes)
    unread = {name for text in (*INERT.values(), TRAINING, inert) for name in text.split()} - {*DECIDES}
    known = {*sizes, *numbers, *flags, *(choices or {})}
    for name, value in config.items():
        if name not in known | unread | {*only}:
            raise CheckpointError(
                f"config.json has {name}={short(value)}, which this stock encoder does not know and which is not known "
                "to change nothing; a model that needs it would be computed wrongly"
            )
    arguments: dict[str, Any] = {name: whole(name, config[name]) for name in sizes if name in config}
    arguments |= {name: positive(name, config[name]) for name in numbers if name in config}
    arguments |= {name: flag(name, config[name]) for name in flags if name in config}
    for name, words in (choices or {}).items():
        if name in config and config[name] not in words:
            raise CheckpointError(f"config.json has {name}={short(config[name])}; there are {', '.join(words)}")
        arguments |= {name: config[name]} if name in config else {}
    if arguments["hidden_size"] % arguments["num_attention_heads"]:
        raise CheckpointError(
            f"config.json has hidden_size={arguments['hidden_size']} and num_attention_heads="
            f"{arguments['num_attention_heads']}; the first must be a multiple of the second"
        )
    return arguments
