"""From a name or a folder to a stock transformers model, its tokenizer and its special tokens.

No remote code, no pickle: config.json is read as JSON, weights as safetensors, tokenizers from their files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sinklens.errors import CheckpointError
from sinklens.models.families import FAMILIES, Family, named
from sinklens.models.special_ids import SpecialIds, special_ids

TWINS = Path(__file__).parents[1] / "twins"
BUNDLED = ("tiny-dlm", "tiny-arm")
SMALL = ["*.json", "*.txt", "*.jinja"]
FILES = ["*.safetensors", *SMALL]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, before it becomes hookable."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    family: Family
    ids: SpecialIds
    name: str
    revision: str | None


def find(name: str, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """The folder of a bundled name, a local folder, or a Hub id (from the local cache when offline).

    Raises:
        CheckpointError: it is none of these, or a folder and a revision.
    """
    if name in BUNDLED:
        return _bundled(name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{name!r} is a folder here, which has no revision {revision!r}; leave it out")
        return folder
    hint = f"it is no folder here, none of the bundled names ({', '.join(BUNDLED)})"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} cannot be loaded: {hint}, and no Hub id (owner/name)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name!r} cannot be loaded: {hint}, and the Hub did not give it: {str(error).splitlines()[0]}"
        ) from error


def _bundled(name: str, revision: str | None) -> Path:
    if revision is None:
        return TWINS / name
    folder = TWINS / name / "checkpoints"
    steps = sorted((path.name for path in folder.glob("step-*")), key=lambda step: int(step[5:]))
    if revision not in steps:
        raise CheckpointError(f"{name} has no revision {revision!r}; along its training there are {', '.join(steps)}")
    return folder / revision


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or {} when there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name} of the checkpoint is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} of the checkpoint holds {str(content)[:40]!r} instead of a JSON object")
    return content


def family_of(config: dict[str, Any]) -> Family:
    """The family whose checkpoints carry this `model_type`."""
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(f"{family.model_types[0]} ({family.name})" for family in FAMILIES)
    raise CheckpointError(f"model_type {kind!r} in config.json is not supported; supported are {known}")


@dataclass(frozen=True)
class Described:
    """What the files of a checkpoint say, all but its weights.

    Attributes:
        folder: Where they are.
        family: Whose checkpoint it is.
        arguments: For the stock transformers config.
        tokenizer: None if it ships none.
        ids: Special-token ids.
    """

    folder: Path
    family: Family
    arguments: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | None
    ids: SpecialIds


def describe(name: str, revision: str | None, files: Sequence[str] = FILES) -> Described:
    """Read everything of a checkpoint but its weights.

    Raises:
        CheckpointError: what cannot be loaded faithfully.
    """
    folder = find(name, revision, files)
    config = read_json(folder / "config.json")
    if not config:
        raise CheckpointError(f"{name!r} has no config.json; give the checkpoint's own folder or Hub id")
    family = family_of(config)
    arguments = family.translate(config)
    tokenizer = read_tokenizer(folder, family)
    configs = (config, read_json(folder / "generation_config.json"))
    ids = special_ids(configs, tokenizer, family, name, vocabulary=arguments["vocab_size"])
    return Described(folder, family, arguments, tokenizer, ids)


def load(
    name: str,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    device_map: Any,
    revision: str | None,
) -> Checkpoint:
    """Load a checkpoint as the stock transformers model of its family."""
    said = describe(name, revision)
    folder, family = said.folder, said.family
    if not (folder / "model.safetensors").is_file() and not (folder / "model.safetensors.index.json").is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "only pickle files, which sinklens never opens" if pickled else "no safetensors weights"
        raise CheckpointError(f"{name!r} has {why}; convert the checkpoint to safetensors")
    config_class = getattr(transformers, f"{family.decoder}Config")
    model_class = getattr(transformers, f"{family.decoder}ForCausalLM")
    hf_config = config_class(**said.arguments, **said.ids.stock(), is_causal=family.causal)
    model = _weights(model_class, folder, hf_config, family, dtype=dtype, device_map=device_map, name=name)
    if device is not None and device_map is None:
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    set_direction(model, causal=family.causal)
    return Checkpoint(model.eval(), said.tokenizer, family, said.ids, name, _commit(folder) or revision)


def in_memory(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, family: Family | str, ids: SpecialIds | None
) -> Checkpoint:
    """A stock transformers model that is in memory, as a checkpoint; its mask direction is set in place."""
    family = named(family) if isinstance(family, str) else family
    wanted = f"{family.decoder}ForCausalLM"
    if type(model).__name__ != wanted:
        raise ValueError(f"family {family.name} wraps a {wanted}, not a {type(model).__name__}")
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
    try:
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            key_mapping=dict(family.key_mapping) or None,
            dtype=dtype or "auto",
            device_map=device_map,
            use_safetensors=True,
            attn_implementation="sdpa",
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the weights of {name!r} could not be read: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    problems = {kind: sorted(map(str, info.get(kind) or [])) for kind in ("missing_keys", "unexpected_keys")}
    problems["mismatched_keys"] = sorted(str(key) for key in info.get("mismatched_keys") or [])
    for kind, keys in problems.items():
        if keys:
            shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise CheckpointError(
                f"{name!r} does not fit the {family.name} layout: {kind.replace('_keys', '')} weights {shown}"
            )
    return model


def set_direction(model: PreTrainedModel, *, causal: bool) -> None:
    """Make config and every attention layer agree on the mask (sdpa reads the layer's own attribute)."""
    model.config.is_causal = causal
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.__dict__["is_causal"] = causal


def read_tokenizer(folder: Path, family: Family) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer from its own files; None when it ships none."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = getattr(transformers, family.tokenizer).from_pretrained(folder, trust_remote_code=False)
    else:
        return None
    declared = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for number, token in declared.items():
        found = tokenizer.convert_tokens_to_ids(token["content"])
        if found != int(number):
            raise CheckpointError(
                f"the tokenizer reads {token['content']!r} as id {found}, and tokenizer_config.json says {number}; "
                "its vocabulary files are not the checkpoint's own"
            )
    return tokenizer
