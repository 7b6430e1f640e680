"""GPT-2, the autoregressive twin of DiffuGPT: absolute positions, one projection for queries, keys and values."""

from __future__ import annotations

from typing import Any

import transformers

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import SUPPORTED, Config, flag, only, positive, refuse, require, short, size

SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
FLAGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu")
# Dropout; heads that are not loaded; how half precision rounds in an attention that is not used; tasks of pipelines.
INERT = (
    "attn_pdrop embd_pdrop resid_pdrop summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj reorder_and_upcast_attn task_specific_params n_ctx"
)


def translate(config: Config) -> dict[str, Any]:
    """GPT-2's config.json -> GPT2Config arguments."""
    config = {name: value for name, value in config.items() if value is not None}
    require(config, ("vocab_size", "n_embd", "n_layer", "n_head"))
    refuse(config, {name: values for name, values in SUPPORTED.items() if name != "hidden_act"})
    known = (*SIZES, *FLAGS, *INERT.split(), "layer_norm_epsilon", "activation_function")
    only(config, "GPT2", known)
    arguments: dict[str, Any] = {name: size(name, config[name]) for name in SIZES if name in config}
    arguments |= {name: flag(name, config[name]) for name in FLAGS if name in config}
    if arguments["n_embd"] % arguments["n_head"]:
        raise CheckpointError(
            f"config.json has n_embd={arguments['n_embd']} and n_head={arguments['n_head']}; the first must be a "
            "multiple of the second"
        )
    n_ctx = arguments.get("n_positions", transformers.GPT2Config().n_positions)
    if config.get("n_ctx", n_ctx) != n_ctx:
        raise CheckpointError(f"config.json has n_ctx={short(config['n_ctx'])} and n_positions={n_ctx}; which is it?")
    if "layer_norm_epsilon" in config:
        arguments["layer_norm_epsilon"] = positive("layer_norm_epsilon", config["layer_norm_epsilon"])
    if "activation_function" in config:
        refuse(config, {"activation_function": ACTIVATIONS})
        arguments["activation_function"] = config["activation_function"]
    return arguments


GPT2 = Family(
    name="GPT-2",
    model_types=("gpt2",),
    architectures=("GPT2LMHeadModel",),
    model_class="GPT2LMHeadModel",
    causal=True,
    translate=translate,
    key_mapping={r"^(wte|wpe|h|ln_f)\.": r"transformer.\1."},  # OpenAI's own files
    dropped=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias$",),  # the causal mask, which old versions stored
    positions="absolute",
    tokenizer="GPT2Tokenizer",
    models=(Model("openai-community/gpt2", 0.124e9), Model("openai-community/gpt2-medium", 0.355e9)),
    source="transformers GPT2LMHeadModel",
)
