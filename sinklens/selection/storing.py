"""A gate as files: gate.safetensors, gate.json, and a model card. Whatever is not exactly that is one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sinklens import files
from sinklens.errors import ContentError, GateError
from sinklens.values import Value, build, rebuilt
from sinklens.values.kinds import Count, read

T = TypeVar("T")
WEIGHTS, DESCRIPTION, CARD = "gate.safetensors", "gate.json", "README.md"
MARK = '"sinklens": "gate"'
KINDS = {
    WEIGHTS: files.Kind("file of a gate's weights", b"", b'"sinklens":"gate"'),
    DESCRIPTION: files.Kind("description of a gate", b"{", MARK.encode()),
    CARD: files.Kind("model card of a gate", b"# A gate of ", b"sinklens"),
}
LARGEST = 64 * 2**20  # bytes of a file: a gate is small, and nothing larger is read


def described(folder: Path) -> dict[str, Any]:
    """What gate.json says.

    Raises:
        GateError: it is not there, or is no description of a gate.
    """
    path = folder / DESCRIPTION
    try:
        _small(path)
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GateError(f"{str(path)!r} cannot be read: {_why(error)}") from error
    if not isinstance(said, dict) or said.get("sinklens") != "gate":
        raise GateError(f'{str(path)!r} is no description of a gate: it does not say "sinklens": "gate"')
    return said


def part(said: Mapping[str, Any], name: str, kind: type[T], folder: Path) -> T:
    """One part of a description, of its kind.

    Raises:
        GateError: it is missing, or of another kind.
    """
    found = said.get(name)
    try:
        if issubclass(kind, Value) and isinstance(found, dict):
            found = build(kind, {key: rebuilt(each) for key, each in found.items() if key != "type"})
        if isinstance(found, kind):
            return found
    except (ContentError, GateError, TypeError, ValueError) as error:
        raise GateError(f"{str(folder / DESCRIPTION)!r}: {name} cannot be read: {error}") from error
    raise GateError(f"{str(folder / DESCRIPTION)!r}: {name} must be {kind.__name__}, and is {type(found).__name__}")


def count(said: Mapping[str, Any], name: str, folder: Path) -> int:
    """A number of a description."""
    return read(f"{str(folder / DESCRIPTION)!r}: {name}", said.get(name), Count, GateError)


def weights(folder: Path, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights, exactly those that a gate of this description has, in float32.

    Raises:
        GateError: no such file, one that is no safetensors file, other names, sizes or dtypes, or no numbers.
    """
    path = folder / WEIGHTS
    try:
        _small(path)
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise GateError(f"{str(path)!r} cannot be read: {_why(error)}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != dict(sizes):
        wrong = sorted(name for name in {*shapes, *sizes} if shapes.get(name) != sizes.get(name))[0]
        raise GateError(
            f"{str(path)!r} does not fit {DESCRIPTION}: {wrong} is {shapes.get(wrong)} there, and must be "
            f"{sizes.get(wrong)}"
        )
    for name, tensor in found.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise GateError(f"{str(path)!r}: {name} must be finite numbers in float32")
    return found


def write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write the three files; each is whole or not there, and the description, without which nothing loads, is last."""
    for name, kind in KINDS.items():
        files.check(folder / name, kind)
    if (folder / DESCRIPTION).exists():
        (folder / DESCRIPTION).unlink()
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(folder / WEIGHTS, save(held, {"sinklens": "gate"}), KINDS[WEIGHTS])
    files.write_text(folder / CARD, card(description), KINDS[CARD])
    text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    files.write_text(folder / DESCRIPTION, text, KINDS[DESCRIPTION])
    return folder


def card(description: Mapping[str, Any]) -> str:
    """The model card."""
    shape, model, made = description["shape"], description["model"], description["made"]
    lines = [
        f"# A gate of {model['name']}",
        "",
        f"Which tokens of {model['name']} stay visible as keys, at a rate that the user chooses: one set of weights "
        f"for every rate. Made by sinklens; `sinklens.selection.Gate.load(folder)` loads it, and the edit that "
        f"applies it is `keep=0.5:learned@gate=FOLDER`.",
        "",
        f"- kind: {shape['kind']}, scores: {shape['scores']}"
        + (f" (of the input of layer {shape['first']})" if shape["scores"] == "shared" else ""),
        f"- selects in: layers {shape['first']} to {description['layers'] - 1}"
        + (f"; those before keep everything (compare with @layers={shape['first']}-)" if shape["first"] else ""),
        f"- for: {model['name']}, family {model['family']}, weights with SHA-256 {model['weights']} (in bfloat16)",
    ]
    for name, said in made.items():
        if name != "reached":
            lines.append(f"- {name}: {json.dumps(said)}")
    rows = made.get("reached") or []
    if rows:
        lines += ["", "On texts that it was not trained on:", "", "| " + " | ".join(rows[0]) + " |"]
        lines.append("|" + "---|" * len(rows[0]))
        lines += ["| " + " | ".join(f"{each:.4g}" for each in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _small(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(2, os.strerror(2))
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"it has {size} bytes, and no gate has more than {LARGEST}")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
