"""From a name or a folder to a stock transformers model, its tokenizer and its special tokens.

No remote code, no pickle: config.json is read as JSON, weights as safetensors, tokenizers from their files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sinklens.errors import CheckpointError, ModelError
from sinklens.models import adapted, files
from sinklens.models.devices import check_place
from sinklens.models.direction import set_direction
from sinklens.models.families import FAMILIES, Family, named
from sinklens.models.families.base import BLOCK_SIZE
from sinklens.models.families.fields import size
from sinklens.models.fitting import compare, misfit
from sinklens.models.gguf import Gguf
from sinklens.models.signs import by_name, refuse_unasked
from sinklens.models.special_ids import SpecialIds, special_ids
from sinklens.models.vocabularies import read_tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, before it becomes hookable."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    family: Family
    ids: SpecialIds
    name: str
    revision: str | None


@dataclass(frozen=True)
class Described:
    """What a checkpoint's small files say of it.

    Attributes:
        folder: Where it is.
        gguf: Its one file, if it is a GGUF file.
        adapter: What is merged into its weights, if anything.
        family: What kind of checkpoint it is.
        config: In the stock config class.
        tokenizer: Its tokenizer, if it ships one.
        ids: Special-token ids.
    """

    folder: Path
    gguf: Gguf | None
    adapter: Path | None
    family: Family
    config: Any
    tokenizer: PreTrainedTokenizerBase | None
    ids: SpecialIds


def family_of(config: Mapping[str, Any], asked: Family | str | None = None) -> Family:
    """The family of a config.json: by `architectures` where it names any, and by `model_type`.

    Args:
        config: The fields.
        asked: The family that the user says it is.

    Raises:
        CheckpointError: a kind that sinklens does not compute, or one that does not see as config.json says.
    """
    kind, architectures = config.get("model_type"), config.get("architectures")
    chosen = [family for family in FAMILIES if kind in family.model_types]
    if asked is not None:
        family = named(asked) if isinstance(asked, str) else asked
        if family.causal and config.get("is_causal") is False:
            raise CheckpointError(f"config.json has is_causal=False, and {family.name} is an autoregressive family")
        if chosen and not chosen[0].causal and family not in chosen:  # of a baseline's name it may be anything
            raise CheckpointError(
                f"config.json has model_type {kind!r}, which is {chosen[0].name}, and family= says {family.name}; the "
                "weights might fit and the numbers would be wrong. Leave family= out"
            )
        return family
    if architectures:
        if not isinstance(architectures, list):
            raise CheckpointError(
                f"config.json has architectures={str(architectures)[:60]!r}; expected a list of names"
            )
        chosen = [family for family in chosen if any(name in family.architectures for name in architectures)]
    names = ", ".join(family.name for family in FAMILIES)
    if not chosen:
        known = ", ".join(f"{kind} ({family.name})" for family in FAMILIES for kind in family.model_types[:1])
        raise CheckpointError(
            f"architectures={architectures!r} with model_type {kind!r} in config.json is not supported; supported "
            f"are {known}. If it is one of them in all but name, say family= ({names})"
        )
    if not chosen[0].causal and config.get("is_causal") is True:
        raise CheckpointError(f"config.json has is_causal=True, and {chosen[0].name} is a diffusion family")
    return chosen[0]


def describe(
    name: str,
    revision: str | None = None,
    *,
    patterns: Sequence[str] = files.FILES,
    family: Family | str | None = None,
    mask_token_id: int | None = None,
    block_length: int | None = None,
) -> Described:
    """Read everything of a checkpoint but its weights."""
    if name in adapted.ADAPTED:
        known = adapted.ADAPTED[name].asked(family, mask_token_id)
        adapter = known.file(revision)
        read = describe(known.base, patterns=patterns, family=known.family, mask_token_id=known.mask)
        return replace(read, adapter=adapter)
    gguf = Gguf(Path(name).expanduser(), revision) if name.endswith(".gguf") else None
    folder = gguf.path.parent if gguf else files.find(name, revision, patterns)
    if gguf is None:
        files.check(folder)
    config = gguf.config() if gguf else files.read_json(folder / "config.json")
    if not config:
        raise CheckpointError(f"{name!r} has no config.json; give the checkpoint's own folder or Hub id")
    chosen = family_of(config, family)
    if family is None:
        chosen = by_name(chosen, name, gguf.path if gguf else folder, config)
    configs = (config, {} if gguf else files.read_json(folder / "generation_config.json"))
    tokenizer = gguf.tokenizer() if gguf else read_tokenizer(folder, chosen)
    if family is None:
        refuse_unasked(chosen, name, gguf.path if gguf else folder, configs, tokenizer)
    family = chosen
    arguments = family.translate(config) | blocks_asked(family, block_length)
    rows = arguments["vocab_size"]
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"the tokenizer of {name!r} has {tokenizer.vocab_size} words besides added tokens, and its embedding has "
            f"{rows} rows; they are not of one checkpoint"
        )
    ids = special_ids(configs, tokenizer, family, name, vocabulary=rows, mask=mask_token_id)
    try:
        stock = family.stock.config_class(**(ids.stock() | arguments), is_causal=family.causal)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"config.json of {name!r} makes no {family.layout} model: {error}") from error
    return Described(folder, gguf, None, family, stock, tokenizer, ids)


def blocks_asked(family: Family, length: int | None) -> dict[str, int]:
    """The length of blocks that a user asks for, as a field of the stock config.

    Raises:
        CheckpointError: a family that does not see block by block, or no length.
    """
    if length is None:
        return {}
    if family.blocks is None:
        raise CheckpointError(
            f"block_length={length}: {family.name} does not see block by block. Plan(block_length=...) says in which "
            "blocks it is decoded"
        )
    return {BLOCK_SIZE: size("block_length", length)}


def load(
    name: str,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    device_map: Any,
    revision: str | None,
    family: Family | str | None = None,
    mask_token_id: int | None = None,
    block_length: int | None = None,
) -> Checkpoint:
    """Load a checkpoint as the stock transformers model of its family."""
    check_place(device, device_map)
    read = describe(name, revision, family=family, mask_token_id=mask_token_id, block_length=block_length)
    family, folder = read.family, read.folder
    shapes = read.gguf.weights() if read.gguf else files.weights(folder, name, family.dropped)
    compare(family, read.config, shapes, name)
    stored = torch.float32 if read.adapter else dtype  # an adapter is merged before weights are rounded
    if read.gguf:
        model = read.gguf.model(read.config, family.stock, stored, device_map)
    else:
        model = _weights(family.stock, folder, read.config, family, dtype=stored, device_map=device_map, name=name)
    if read.adapter:
        adapted.merge(model, read.adapter)
        model = model.to(dtype or stored)  # pyright: ignore[reportArgumentType]
    if device is not None and device_map is None:
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    set_direction(model, causal=family.causal)
    return Checkpoint(model.eval(), read.tokenizer, family, read.ids, name, _commit(folder) or revision)


def in_memory(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, family: Family | str, ids: SpecialIds | None
) -> Checkpoint:
    """A stock transformers model that is in memory, as a checkpoint; its mask direction is set in place."""
    family = named(family) if isinstance(family, str) else family
    if type(model).__name__ != family.model_class:
        raise ModelError(f"family {family.name} wraps a {family.model_class}, not a {type(model).__name__}")
    if ids is not None and getattr(model.config, "mask_token_id", None) not in (None, ids.mask):
        raise ValueError(f"ids.mask={ids.mask}, and the model's config has mask_token_id={model.config.mask_token_id}")
    set_direction(model, causal=family.causal)
    name = getattr(model.config, "name_or_path", "") or family.name
    embedding: Any = model.get_input_embeddings()
    vocabulary = int(embedding.weight.shape[0])
    if ids is None:
        generation: Any = model.generation_config
        configs = (model.config.to_dict(), generation.to_dict())
        ids = special_ids(configs, tokenizer, family, name, vocabulary=vocabulary)
    return Checkpoint(model.eval(), tokenizer, family, ids.within(vocabulary, name), name, None)


def _commit(folder: Path) -> str | None:
    return folder.name if folder.parent.name == "snapshots" else None


def _weights(
    model_class: Any, folder: Path, config: Any, family: Family, *, dtype: Any, device_map: Any, name: str
) -> PreTrainedModel:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # what it would print about keys becomes an error below
    if sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 1e8:
        transformers_logging.disable_progress_bar()
    folded: dict[str, Any] = {}
    if family.fold is not None:
        state = family.fold(files.tensors(folder, name, family.dropped))
        folded = {"state_dict": state}
        dtype = dtype or next(iter(state.values())).dtype
    try:
        model, info = model_class.from_pretrained(
            None if folded else folder,
            config=config,
            key_mapping=dict(family.key_mapping) or None,
            dtype=dtype or "auto",
            device_map=device_map,
            use_safetensors=True,
            attn_implementation="sdpa",
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **folded,
        )
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the weights of {name!r} could not be read: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(map(str, info.get(f"{kind}_keys") or []))
        misfit(name, family, kind, keys)
        if kind == "missing":
            _blank(model, keys)
    return model


def _blank(model: PreTrainedModel, keys: Sequence[str]) -> None:
    """Zeros in place of the random numbers that transformers gives weights which a checkpoint may lack."""
    for key, parameter in model.named_parameters():
        if key in keys:
            parameter.data.zero_()
