"""The files of a checkpoint: where they are, which of them may be read, and what they say they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sinklens.errors import CheckpointError
from sinklens.models import packages

TWINS = Path(__file__).parents[1] / "twins"
BUNDLED = ("tiny-dlm", "tiny-bdlm", "tiny-arm")
SMALL = ["*.json", "*.txt", "*.jinja", "README.md"]
FLOATS = ("F64", "F32", "F16", "BF16")
FILES = ["*.safetensors", *SMALL]


def find(name: str, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """The folder of a bundled name, a fetched model, a local folder, or a Hub id (from the local cache when offline).

    Raises:
        CheckpointError: it is none of these, was not fetched yet, or is something without revisions and has one.
    """
    if name in BUNDLED:
        return _bundled(name, revision)
    fetched = name in packages.PACKAGES
    folder = packages.find(name) if fetched else Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            kind = "a package's model" if fetched else "a folder here"
            raise CheckpointError(f"{name!r} is {kind}, which has no revision {revision!r}; leave it out")
        return folder
    hint = f"it is no folder here, none of the bundled names ({', '.join((*BUNDLED, *packages.PACKAGES))})"
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
    if not present(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path.name} of the checkpoint is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} of the checkpoint holds {str(content)[:40]!r} instead of a JSON object")
    return content


def present(path: Path) -> bool:
    """Whether a file is there. A link to a file is one, as in the Hub's cache.

    Raises:
        CheckpointError: something else stands there: a folder, a pipe, a device, a link to nothing.
    """
    if path.is_file():
        return True
    if path.exists() or path.is_symlink():
        raise CheckpointError(f"{path.name} of the checkpoint is no regular file; sinklens reads nothing else")
    return False


def check(folder: Path) -> None:
    """Raise for anything in a checkpoint's folder that would be read as one of its files and is none."""
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            present(path)
    if present(folder / "adapter_config.json"):
        raise CheckpointError(
            f"{str(folder)!r} holds an adapter (adapter_config.json), whose base model is somewhere else; load that, "
            "and apply the adapter to dlm.original_model"
        )


def weights(folder: Path, name: str, unread: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint's safetensors hold, by name, with their shapes; none is read.

    Args:
        folder: Where they are.
        name: Of the checkpoint, for errors.
        unread: Those that are left out, as regular expressions: they may hold whole numbers (BERT's positions).

    Raises:
        CheckpointError: as `_found`.
    """
    return {key: shape for key, (_, shape) in _found(folder, name, unread).items()}


def tensors(folder: Path, name: str, unread: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors themselves, of a checkpoint whose `weights` were looked at.

    Raises:
        CheckpointError: a file that is damaged.
    """
    read: dict[str, Tensor] = {}
    for file in sorted({file for file, _ in _found(folder, name, unread).values()}):
        try:
            read |= load_file(folder / file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"the weights of {name!r} could not be read: {file}: {error}") from error
    return read


def _found(folder: Path, name: str, unread: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The file and the shape of every tensor.

    Raises:
        CheckpointError: no such files, an index that names anything but plain .safetensors files of the folder or a
            tensor that its file does not have, a tensor that two files have, a file that is damaged.
    """
    if present(folder / "model.safetensors"):
        listed: dict[str, str] = {}
        files = ["model.safetensors"]
    elif present(folder / "model.safetensors.index.json"):
        listed = _listed(read_json(folder / "model.safetensors.index.json"), name)
        files = sorted(set(listed.values()))
    else:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "only pickle files, which sinklens never opens" if pickled else "no safetensors weights"
        raise CheckpointError(f"{name!r} has {why}; convert the checkpoint to safetensors")
    missing = [file for file in files if not present(folder / file)]
    if missing:
        raise CheckpointError(f"the weights of {name!r} could not be read: {', '.join(missing)} is not there")
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(folder / file, "pt") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
                shapes = {key: tuple(each.get_shape()) for key, each in slices.items()}
                kinds = {key: str(each.get_dtype()) for key, each in slices.items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"the weights of {name!r} could not be read: {file}: {error}") from error
        for key, shape in shapes.items():
            if kinds[key] not in FLOATS and not any(re.match(pattern, key) for pattern in unread):
                raise CheckpointError(
                    f"{name!r} holds the weight {key} as {kinds[key]}, in {file}; expected {', '.join(FLOATS)}: "
                    "other numbers are no weights without the scales of a quantisation"
                )
            if key in found:
                raise CheckpointError(f"{name!r} has the weight {key} twice, in {found[key][0]} and in {file}")
            found[key] = (file, shape)
    for key, file in listed.items():
        if key not in found or found[key][0] != file:
            raise CheckpointError(f"the index of {name!r} says that {file} has the weight {key}, and it has not")
    return found


def _listed(index: Mapping[str, Any], name: str) -> dict[str, str]:
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(
            f"the index of {name!r} has weight_map={str(listed)[:60]!r}; expected an object of file names"
        )
    for key, file in listed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise CheckpointError(
                f"the index of {name!r} says that {key} is in {str(file)[:80]!r}; a checkpoint's weights are in its "
                "own folder, in files with plain names that end in .safetensors"
            )
    return listed
