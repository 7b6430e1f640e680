"""Values with tensors as folders: WORD.safetensors, WORD.json, a model card. Anything else is one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sinklens import files
from sinklens.errors import ContentError
from sinklens.values.content import Value, build, rebuilt
from sinklens.values.kinds import Count, read

T = TypeVar("T")
CARD = "README.md"
LARGEST = 64 * 2**20  # bytes of a file: what is kept so is small, and nothing larger is read


@dataclass(frozen=True)
class Folder:
    """A kind of thing that is kept as a folder.

    Attributes:
        word: What it is called, "gate" for example: in errors, in the names of its files, and within them.
        error: What is raised for files that are not exactly what they should be.
    """

    word: str
    error: type[Exception]

    @property
    def tensors_name(self) -> str:
        """The file of the tensors."""
        return f"{self.word}.safetensors"

    @property
    def description_name(self) -> str:
        """The file that says all else, without which nothing is loaded."""
        return f"{self.word}.json"

    @property
    def kinds(self) -> dict[str, files.Kind]:
        """The files by name, and how one that sinklens wrote is known again."""
        said = f'"sinklens":"{self.word}"'.encode()
        return {
            self.tensors_name: files.Kind(f"file of a {self.word}'s weights", b"", said),
            self.description_name: files.Kind(f"description of a {self.word}", b"{", said.replace(b":", b": ")),
            CARD: files.Kind(f"model card of a {self.word}", f"# A {self.word} of ".encode(), b"sinklens"),
        }

    def stamps(self, folder: Path) -> tuple[tuple[int, ...] | None, ...]:
        """By what it is seen that the files are no longer those that were read: their times and sizes."""
        return tuple(stamp(folder / name) for name in (self.description_name, self.tensors_name))

    def described(self, folder: Path) -> dict[str, Any]:
        """What the description says, as plain data.

        Raises:
            Exception: of the kind `error`, as in all that follows: it is not there, or describes something else.
        """
        path = folder / self.description_name
        try:
            self._small(path)
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.error(f"{str(path)!r} cannot be read: {_why(error)}") from error
        if not isinstance(said, dict) or said.get("sinklens") != self.word:
            raise self.error(
                f'{str(path)!r} is no description of a {self.word}: it does not say "sinklens": "{self.word}"'
            )
        return said

    def part(self, said: Mapping[str, Any], name: str, kind: type[T], folder: Path) -> T:
        """One part of a description, of its kind."""
        found, where = said.get(name), self.where(folder)
        try:
            if issubclass(kind, Value) and isinstance(found, dict):
                found = build(kind, {key: rebuilt(each) for key, each in found.items() if key != "type"})
            if isinstance(found, kind):
                return found
        except (ContentError, self.error, TypeError, ValueError) as error:
            raise self.error(f"{where}: {name} cannot be read: {error}") from error
        raise self.error(f"{where}: {name} must be {kind.__name__}, and is {type(found).__name__}")

    def count(self, said: Mapping[str, Any], name: str, folder: Path) -> int:
        """A number of a description."""
        return read(f"{self.where(folder)}: {name}", said.get(name), Count, self.error)

    def where(self, folder: Path) -> str:
        """The description, for an error."""
        return repr(str(folder / self.description_name))

    def tensors(self, folder: Path, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The tensors, exactly those that a thing of this description has: finite numbers in float32."""
        path = folder / self.tensors_name
        try:
            self._small(path)
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise self.error(f"{str(path)!r} cannot be read: {_why(error)}") from error
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        if shapes != dict(sizes):
            wrong = sorted(name for name in {*shapes, *sizes} if shapes.get(name) != sizes.get(name))[0]
            raise self.error(
                f"{str(path)!r} does not fit {self.description_name}: {wrong} is {shapes.get(wrong)} there, and must "
                f"be {sizes.get(wrong)}"
            )
        for name, tensor in found.items():
            if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
                raise self.error(f"{str(path)!r}: {name} must be finite numbers in float32")
        return found

    def write(self, folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> Path:
        """Write the three files; each is whole or not there, and the description, without which nothing loads, is last.

        Raises:
            SaveError: a file of that name that sinklens did not write, or a folder that cannot be written.
        """
        kinds = self.kinds
        for name, kind in kinds.items():
            files.check(folder / name, kind)
        if (folder / self.description_name).exists():
            (folder / self.description_name).unlink()
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(held, {"sinklens": self.word})
        files.write_bytes(folder / self.tensors_name, content, kinds[self.tensors_name])
        files.write_text(folder / CARD, card, kinds[CARD])
        text = json.dumps(description, indent=1, allow_nan=False) + "\n"
        files.write_text(folder / self.description_name, text, kinds[self.description_name])
        return folder

    def _small(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(2, os.strerror(2))
        size = path.stat().st_size
        if size > LARGEST:
            raise ValueError(f"it has {size} bytes, and no {self.word} has more than {LARGEST}")


def stamp(path: Path) -> tuple[int, ...] | None:
    """By what it is seen that a file is no longer the one that was read; None where there is none."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino, state.st_ctime_ns


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
