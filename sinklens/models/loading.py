"""From a name or a folder to a stock transformers model, its tokenizer and its special tokens.

No remote code, no pickle: config.json is read as JSON, weights as safetensors, tokenizers from their files.
"""

from __future__ import annotations

import json
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
from sinklens.models.families import FAMILIES, Family

TWINS = Path(__file__).parents[1] / "twins"
BUNDLED = ("tiny-dlm", "tiny-arm")
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class SpecialIds:
    """Token ids that decoding needs; None where the checkpoint has none."""

    mask: int | None
    eos: int | None
    bos: int | None
    pad: int | None
    eot: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, before it becomes hookable."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    family: Family
    ids: SpecialIds
    name: str
    revision: str | None


def find(name: str, revision: str | None = None) -> Path:
    """The folder of a bundled name, a local folder, or a Hub id (from the local cache when offline)."""
    if name in BUNDLED:
        return _bundled(name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    hint = f"it is no folder here, none of the bundled names ({', '.join(BUNDLED)})"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
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


def load(
    name: str,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    device_map: Any,
    revision: str | None,
) -> Checkpoint:
    """Load a checkpoint as the stock transformers model of its family."""
    folder = find(name, revision)
    config = read_json(folder / "config.json")
    if not config:
        raise CheckpointError(f"{name!r} has no config.json; give the checkpoint's own folder or Hub id")
    family = family_of(config)
    if not (folder / "model.safetensors").is_file() and not (folder / "model.safetensors.index.json").is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "only pickle files, which sinklens never opens" if pickled else "no safetensors weights"
        raise CheckpointError(f"{name!r} has {why}; convert the checkpoint to safetensors")
    arguments = family.translate(config)
    config_class = getattr(transformers, f"{family.decoder}Config")
    model_class = getattr(transformers, f"{family.decoder}ForCausalLM")
    hf_config = config_class(**arguments, is_causal=family.causal)
    model = _weights(model_class, folder, hf_config, family, dtype=dtype, device_map=device_map, name=name)
    if device is not None and device_map is None:
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    set_direction(model, causal=family.causal)
    tokenizer = read_tokenizer(folder, family)
    ids = special_ids({**read_json(folder / "generation_config.json"), **config}, tokenizer, family, name)
    return Checkpoint(model.eval(), tokenizer, family, ids, name, _commit(folder) or revision)


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


def special_ids(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, family: Family, name: str
) -> SpecialIds:
    """Special-token ids: config.json first, then the tokenizer."""

    def read(kind: str) -> int | None:
        value = config.get(f"{kind}_token_id")
        value = value[0] if isinstance(value, list) else value
        return getattr(tokenizer, f"{kind}_token_id", None) if value is None else int(value)

    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    mask = read("mask")
    if mask is None:
        mask = next((vocabulary[token] for token in family.mask_tokens if token in vocabulary), None)
    if mask is None and not family.causal:
        raise CheckpointError(
            f"{name!r} names no mask token: neither mask_token_id in config.json nor "
            f"{' or '.join(family.mask_tokens)} in the tokenizer"
        )
    eos = read("eos")
    pad = read("pad")
    eot = next((vocabulary[token] for token in ("<|eot_id|>", "<|im_end|>") if token in vocabulary), None)
    return SpecialIds(mask=mask, eos=eos, bos=read("bos"), pad=eos if pad is None else pad, eot=eot)
