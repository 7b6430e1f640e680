"""The fields of a config.json: each is passed on to the stock class, known to change nothing, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import transformers

from sinklens.errors import CheckpointError

Config = Mapping[str, Any]

REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
EXPERTS = ("moe_intermediate_size", "num_experts", "num_experts_per_tok")
SIZES = (*REQUIRED, "intermediate_size", "num_key_value_heads", "head_dim", "max_position_embeddings", *EXPERTS)
NUMBERS = ("rms_norm_eps", "rope_theta")
FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "norm_topk_prob")
UNREAD = ("max_window_layers", "sliding_window", "pretraining_tp")  # sizes that change nothing
LARGEST = 2**31 - 1
MOST = 1e18  # what torch can still raise to a power
INERT = {  # what a stock config.json may say besides, and why it changes no forward
    "read elsewhere": (
        "model_type architectures is_causal mask_token_id bos_token_id eos_token_id pad_token_id "
        "rope_theta rope_scaling rope_parameters original_max_position_embeddings"
    ),
    "how it was made or saved": (
        "transformers_version torch_dtype dtype _name_or_path _model_name_or_path name_or_path tokenizer_class "
        "_commit_hash auto_map unsloth_fixed "
        "unsloth_version _attn_implementation_autoset transformers.js_config is_llama_config model_max_length"
    ),
    "only in training": ("initializer_range attention_dropout gradient_checkpointing"),
    "without use_sliding_window, which is refused, and how products are split": " ".join(UNREAD),
    "what a forward returns, or a cache": "use_cache output_attentions output_hidden_states return_dict",
    "heads that are not loaded": "id2label label2id num_labels problem_type",
    "another class's, empty here": "chunk_size_feed_forward is_encoder_decoder unk_token_id",
    "how transformers would sample": (
        "max_length min_length max_new_tokens do_sample num_beams temperature top_k top_p typical_p repetition_penalty "
        "length_penalty no_repeat_ngram_size num_return_sequences early_stopping diversity_penalty num_beam_groups "
        "remove_invalid_values output_scores return_dict_in_generate encoder_no_repeat_ngram_size is_decoder"
    ),
}
FIXED: dict[str, dict[str, tuple[Any, ...]]] = {  # what a stock class computes in one way only
    "Llama": {},
    "Qwen2": {"attention_bias": (True,), "mlp_bias": (False,)},
    "Qwen3": {"mlp_bias": (False,)},
    "Qwen3Moe": {"mlp_bias": (False,), "decoder_sparse_step": (1,), "mlp_only_layers": ([],)},  # experts in every layer
}
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "pruned_heads": ({},),
    "torchscript": (False,),
    "tf_legacy_loss": (False,),
    "use_bfloat16": (False,),
}
ROPE = {  # the numbers of each kind of rope: those that must be there, and those that may
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    ),
    "longrope": (("short_factor", "long_factor"), ("original_max_position_embeddings", "factor", "attention_factor")),
    "llama3": (("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"), ()),
}


def refuse(config: Config, supported: Mapping[str, tuple[Any, ...]], kind: str = "decoder") -> None:
    """Raise for a field whose value is not among the supported ones (an absent field or null is fine)."""
    for name, values in supported.items():
        given = config.get(name)
        if given is not None and not any(type(given) is type(value) and given == value for value in values):
            allowed = " or ".join(repr(value) for value in values) or "null"
            raise CheckpointError(
                f"config.json has {name}={short(given)}, and sinklens loads this family only with "
                f"{name}={allowed}: the stock {kind} it uses computes nothing else"
            )


def require(config: Config, names: tuple[str, ...]) -> None:
    """Raise for a field that must be there."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; is this the checkpoint's own config.json?")


def stock(config: Config, decoder: str, called: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A config in the stock field names (Llama, Qwen2, Qwen3 layouts) as arguments of the stock config class.

    Args:
        config: The fields.
        decoder: The stock class: "Llama", "Qwen2", "Qwen3" or "Qwen3Moe".
        called: What config.json calls a field, where that is another name.

    Raises:
        CheckpointError: a field that is unknown, of the wrong type or size, or that the stock class cannot honour.
    """
    names = called or {}
    config = {name: value for name, value in config.items() if value is not None}
    require({names.get(name, name): value for name, value in config.items()}, tuple(names.get(n, n) for n in REQUIRED))
    refuse(config, SUPPORTED | FIXED[decoder])
    known = {field.name for field in fields(getattr(transformers, f"{decoder}Config"))} | {"head_dim", "layer_types"}
    only(config, decoder, {*known, *FIXED[decoder]})
    arguments: dict[str, Any] = {name: size(names.get(name, name), config[name]) for name in SIZES if name in config}
    arguments |= {name: positive(name, config[name]) for name in NUMBERS if name in config}
    arguments |= {name: flag(name, config[name]) for name in FLAGS if name in config and name not in FIXED[decoder]}
    _divide(arguments, names)
    _unread(config, arguments["num_hidden_layers"])
    default = getattr(transformers, f"{decoder}Config")().max_position_embeddings
    arguments["rope_parameters"] = rope(config, arguments.get("max_position_embeddings", default), _half(arguments))
    arguments.pop("rope_theta", None)
    return arguments


def even_heads(config: Config) -> None:
    """Raise for heads of another size than hidden_size / num_attention_heads, which some official classes assume."""
    hidden, heads, each = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if each is not None and isinstance(hidden, int) and isinstance(heads, int) and each * heads != hidden:
        raise CheckpointError(
            f"config.json has head_dim={short(each)}, and the official class has heads of hidden_size / "
            f"num_attention_heads = {hidden} / {heads}"
        )


def plain_rope(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments; raise for scaled rotary positions, which the official class does not have."""
    kind = arguments["rope_parameters"]["rope_type"]
    if kind != "default":
        raise CheckpointError(f"config.json has a rope of type {kind!r}, and the official class knows only 'default'")
    return arguments


def only(config: Config, decoder: str, known: Collection[str]) -> None:
    """Raise for a field that is neither among the known ones nor known to change nothing (an absent one is fine)."""
    inert = {name for several in INERT.values() for name in several.split()} | {*SUPPORTED}
    for name, value in config.items():
        if name not in known and name not in inert:
            raise CheckpointError(
                f"config.json has {name}={short(value)}, which the stock {decoder} decoder does not know and "
                "which is not known to change nothing; a model that needs it would be computed wrongly"
            )


def size(name: str, value: Any) -> int:
    """A size: a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
        raise CheckpointError(f"config.json has {name}={short(value)}; expected a whole number from 1 to {LARGEST}")
    return value


def rope(config: Config, n_ctx: int, half: int) -> dict[str, Any]:
    """How positions are rotated, from all the fields that may say so; two that disagree are an error.

    A top-level original_max_position_embeddings is read as transformers reads it for yarn, longrope and llama3.
    """
    places = [name for name in ("rope_scaling", "rope_parameters") if name in config]
    for name in places:
        if not isinstance(config[name], dict):
            raise CheckpointError(f"config.json has {name}={short(config[name])}; expected an object")
    given: dict[str, Any] = {}
    for source in (*(config[name] for name in places), {"rope_theta": config.get("rope_theta")}):
        for name, value in source.items():
            key = "rope_type" if name == "type" else name
            if value is not None and given.setdefault(key, value) != value:
                raise CheckpointError(
                    f"config.json says {key}={short(given[key])} and {key}={short(value)}; which is it?"
                )
    kind = given.setdefault("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROPE:
        raise CheckpointError(f"config.json has a rope of type {short(kind)}; there are {', '.join(ROPE)}")
    needed, more = ROPE[kind]
    whole = "original_max_position_embeddings"
    outside = config.get(whole)
    if outside is not None and kind not in ("yarn", "longrope", "llama3") and outside != n_ctx:
        raise CheckpointError(f"config.json has {whole}={short(outside)}, which a rope of type {kind!r} does not read")
    if outside is not None and whole in (*needed, *more) and given.setdefault(whole, outside) != outside:
        raise CheckpointError(f"config.json says {whole}={short(outside)} and {short(given[whole])}; which is it?")
    require({f"{kind} rope's {name}": given.get(name) for name in needed}, tuple(f"{kind} rope's {n}" for n in needed))
    for name, value in given.items():
        if name == "partial_rotary_factor" and value == 1:
            continue
        if name == "truncate" and kind == "yarn":
            flag(name, value)
        elif name in ("short_factor", "long_factor") and name in needed:
            if len([positive(name, each) for each in _listed(given, name)]) != half:
                raise CheckpointError(f"config.json has {name}={short(value)}; expected {half} numbers, half a head")
        elif name == whole and name in (*needed, *more):
            size(name, value)
        elif name in (*needed, *more, "rope_theta"):
            positive(name, value)
        elif name != "rope_type":
            raise CheckpointError(
                f"config.json has {name}={short(value)} for a rope of type {kind!r}, which has no such"
            )
    return {"rope_theta": 10000.0} | {n: v for n, v in given.items() if n != "partial_rotary_factor"}


def short(value: Any) -> str:
    """A value as an error quotes it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _divide(sizes: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise for heads that do not divide what they must."""
    heads = sizes["num_attention_heads"]
    for whole, parts in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
        if parts in sizes and sizes[whole] % sizes[parts]:
            raise CheckpointError(
                f"config.json has {names.get(whole, whole)}={sizes[whole]} and {names.get(parts, parts)}="
                f"{sizes[parts]}; the first must be a multiple of the second"
            )
    experts, chosen = sizes.get("num_experts", 1), sizes.get("num_experts_per_tok", 1)
    if chosen > experts:
        raise CheckpointError(f"config.json has num_experts_per_tok={chosen} of num_experts={experts}")
    each = sizes.get("head_dim", sizes["hidden_size"] // heads)
    if each % 2:
        raise CheckpointError(f"config.json gives heads of {each} dimensions; rotary positions need an even number")


def _unread(config: Config, layers: int) -> None:
    """Raise for what a forward does not read, where it is not what it says it is."""
    for name in UNREAD:
        value = config.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"config.json has {name}={short(value)}; expected a whole number")
    types = _listed(config, "layer_types")
    if "layer_types" in config and (len(types) != layers or any(kind != "full_attention" for kind in types)):
        raise CheckpointError(
            f"config.json has layer_types={short(types)}; expected 'full_attention' {layers} times: sinklens computes "
            "nothing else"
        )


def _half(sizes: Mapping[str, Any]) -> int:
    return sizes.get("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"]) // 2


def positive(name: str, value: Any) -> float:
    """A number above 0, and of a size that a config can mean."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:  # nan is not
        raise CheckpointError(f"config.json has {name}={short(value)}; expected a number above 0, below {MOST:g}")
    return value


def flag(name: str, value: Any) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json has {name}={short(value)}; expected true or false")
    return value


def _listed(config: Config, name: str) -> list[Any]:
    value = config.get(name, [])
    if not isinstance(value, list):
        raise CheckpointError(f"config.json has {name}={short(value)}; expected a list")
    return value
