"""The files of an autoencoder: which format a folder has, and what all formats share. JSON and safetensors alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sinklens import files
from sinklens.autoencoders import saelens, topk
from sinklens.autoencoders.formulas import Formula, Weights
from sinklens.autoencoders.place import Place
from sinklens.errors import AutoencoderError, ContentError

T = TypeVar("T")
MARK = '"sinklens": "autoencoder"'
KINDS = {
    topk.CONFIG: files.Kind("description of an autoencoder", b"{", MARK.encode()),
    topk.WEIGHTS: files.Kind("file of an autoencoder's weights", b"", b'"sinklens":"autoencoder"'),
}
FORMATS = {saelens.CONFIG: saelens, topk.CONFIG: topk}
PICKLE = "ae.pt"


def read(folder: Path, model: str | None, make: Callable[[Formula, Place, Weights], T]) -> T:
    """What is made of what a folder holds.

    Raises:
        AutoencoderError: no folder, no format or both; whatever of it is not exactly known.
    """
    there = [config for config in FORMATS if os.path.isfile(folder / config)]
    if len(there) != 1:
        lacks = "has neither" if os.path.isdir(folder) else "is no folder"
        why = "has the files of both formats" if there else lacks
        raise AutoencoderError(
            f"{str(folder)!r} {why}: an autoencoder is {saelens.CONFIG} with {saelens.WEIGHTS} (SAELens), or "
            f"{topk.CONFIG} with {topk.WEIGHTS} (Top-K, as dictionary_learning and SAE4DLM have it)"
        )
    form = FORMATS[there[0]]
    said = described(folder / form.CONFIG)
    held = tensors(folder / form.WEIGHTS)
    try:
        return make(*form.read(said, held, model))
    except (AutoencoderError, ContentError) as error:
        raise AutoencoderError(f"{str(folder)!r}: {error}") from error


def described(path: Path) -> dict[str, Any]:
    """What a JSON file says.

    Raises:
        AutoencoderError: it cannot be read, or holds no object.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AutoencoderError(f"{str(path)!r} cannot be read: {_why(error)}") from error
    if not isinstance(said, dict):
        raise AutoencoderError(f"{str(path)!r} holds no JSON object, and so describes no autoencoder")
    return said


def tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises:
        AutoencoderError: it is not there, or is none; how a pickle beside it becomes one.
    """
    pickled = path.parent / PICKLE
    if not path.is_file() and pickled.is_file():
        raise AutoencoderError(
            f"{str(path.parent)!r} has its weights in {PICKLE}, a pickle, which sinklens never opens. If you trust it, "
            f"make {path.name} of it once: import torch; from safetensors.torch import save_file; "
            f'save_file({{k: v.contiguous() for k, v in torch.load("{PICKLE}", weights_only=True).items()}}, '
            f'"{path.name}")'
        )
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise AutoencoderError(f"{str(path)!r} cannot be read: {_why(error)}") from error


def write(folder: Path, formula: Formula, place: Place, weights: Weights, made: Mapping[str, Any]) -> Path:
    """Write the Top-K format; each file is whole or not there, and the description is last."""
    said = topk.described(formula, place, weights, made) | {"sinklens": "autoencoder"}
    for name, kind in KINDS.items():
        files.check(folder / name, kind)
    if (folder / topk.CONFIG).exists():
        (folder / topk.CONFIG).unlink()
    held = {name: tensor.contiguous() for name, tensor in topk.stored(formula, weights).items()}
    files.write_bytes(folder / topk.WEIGHTS, save(held, {"sinklens": "autoencoder"}), KINDS[topk.WEIGHTS])
    text = json.dumps(said, indent=1, allow_nan=False) + "\n"
    files.write_text(folder / topk.CONFIG, text, KINDS[topk.CONFIG])
    return folder


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
