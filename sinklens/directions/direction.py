"""A direction: one vector per layer of a model's residual stream, whose they are and how they were made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import DirectionError
from sinklens.models.fingerprint import ModelId
from sinklens.sinks import Positions
from sinklens.values import Value
from sinklens.values.content import rebuilt
from sinklens.values.folders import Folder
from sinklens.values.kinds import AtLeastZero, Index, read, reads

At = Literal["hook_in", "hook_out"]
DIRECTION = Folder("direction", DirectionError)


@dataclass(frozen=True, repr=False, eq=False)
class Direction(Value):
    """A vector per layer, in the units of the model's residual stream. `directions.difference` makes one.

    Two directions are equal where all of this is. The vectors are not to be changed in place.

    Attributes:
        vectors: [layer, d_model], finite, in float32 on the CPU; none of them 0.
        layers: Of which layers, in order.
        at: Where in these layers: "hook_in" (the residual stream before the layer) or "hook_out" (after it).
        norms: The mean L2 norm of the residual stream there, over the positions that the vectors were found at, for
            each layer; above 0.
        positions: At which positions of its prompts it was found.
        model: On which model.
        made: How, as plain data.

    Raises:
        DirectionError: vectors that are not as said.
    """

    vectors: Tensor
    layers: tuple[Index, ...]
    at: At
    norms: tuple[AtLeastZero, ...]
    positions: Positions
    model: ModelId
    made: Mapping[str, Any]
    kind_error = DirectionError

    def __post_init__(self) -> None:
        vectors, count = self.vectors.detach().cpu(), len(self.layers)
        if vectors.dtype != torch.float32 or vectors.ndim != 2 or len(vectors) != count or count == 0:
            raise DirectionError(
                f"vectors={vectors.dtype} {tuple(vectors.shape)} must be float32 [layer, d_model], one for each of "
                f"layers={list(self.layers)}"
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise DirectionError(f"layers={list(self.layers)} must be in order, each once")
        if len(self.norms) != count or not all(self.norms):
            raise DirectionError(f"norms={list(self.norms)} must be above 0, one for each of {count} layers")
        object.__setattr__(self, "vectors", vectors.clone())
        for layer, length in zip(self.layers, self.lengths, strict=True):
            if not (math.isfinite(length) and length > 0):
                raise DirectionError(f"vectors: that of layer {layer} has a length of {length}, and points nowhere")

    @property
    def width(self) -> int:
        """The model's d_model."""
        return self.vectors.shape[1]

    @property
    def lengths(self) -> list[float]:
        """L2 norm of each vector."""
        return self.vectors.double().norm(dim=-1).tolist()

    def vector(self, layer: int) -> Float[Tensor, " d_model"]:
        """The vector of a layer.

        Raises:
            DirectionError: it has none.
        """
        return self.vectors[self._index(layer)]

    def norm(self, layer: int) -> float:
        """The mean norm of the residual stream where the vector of a layer was found.

        Raises:
            DirectionError: it has none.
        """
        return self.norms[self._index(layer)]

    def _index(self, layer: int) -> int:
        if layer not in self.layers:
            raise DirectionError(f"{self!r} has no vector of layer {layer}; it has {list(self.layers)}")
        return self.layers.index(layer)

    def check(self, model: Any) -> None:
        """Raise for another model than the direction's own.

        Raises:
            DirectionError: naming both.
        """
        other = ModelId.of(model)
        if other != self.model:
            raise DirectionError(
                f"this direction was found on {self.model.name} ({self.model.family}, weights "
                f"{self.model.weights[:12]}...), and the model is {other.name} ({other.family}, weights "
                f"{other.weights[:12]}...); find one for it: sinklens.directions.difference"
            )

    @classmethod
    @reads("model")
    def load(cls, path: str | Path, model: Any = None) -> Direction:
        """A direction from its folder.

        Args:
            path: The folder.
            model: The HookedDLM that it is wanted for; None if that does not matter.

        Raises:
            DirectionError: no such folder; a file that is missing, damaged, or no direction's; one of another model.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise DirectionError(
                f"direction={str(path)!r} is no folder; one is made by sinklens.directions.difference(...).save(folder)"
            )
        said = DIRECTION.described(folder)
        where = DIRECTION.where(folder)
        layers = read(f"{where}: layers", rebuilt(said.get("layers")), tuple[Index, ...], DirectionError)
        width = DIRECTION.count(said, "width", folder)
        held = DIRECTION.tensors(folder, {"vectors": (len(layers), width)})
        try:
            found = cls(
                held["vectors"],
                layers,
                said.get("at"),  # pyright: ignore[reportArgumentType] - read by its annotation
                said.get("norms"),  # pyright: ignore[reportArgumentType]
                said.get("positions"),  # pyright: ignore[reportArgumentType]
                DIRECTION.part(said, "model", ModelId, folder),
                DIRECTION.part(said, "made", dict, folder),
            )
        except DirectionError as error:
            raise DirectionError(f"{where} cannot be read: {error}") from error
        if model is not None:
            found.check(model)
        return found

    def save(self, folder: str | Path) -> Path:
        """Write direction.safetensors, direction.json and README.md (a model card) into a folder, made if need be.

        Raises:
            SaveError: a file of that name that sinklens did not write, or a folder that cannot be written.
        """
        said = {
            "sinklens": "direction",
            "layers": list(self.layers),
            "width": self.width,
            "at": self.at,
            "norms": list(self.norms),
            "positions": self.positions,
            "model": self.model.to_dict(),
            "made": dict(self.made),
        }
        return DIRECTION.write(Path(folder), said, {"vectors": self.vectors}, _card(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Direction({self.at} of layers {list(self.layers)}, of {self.model.name}, {self.digest[:8]})"


def _card(direction: Direction) -> str:
    model = direction.model
    lines = [
        f"# A direction of {model.name}",
        "",
        f"Vectors to be added to the residual stream of {model.name}. Made by sinklens; "
        "`sinklens.directions.Direction.load(folder)` loads it, and the edit that adds it is `steer=FOLDER@scale=1`.",
        "",
        f"- at: {direction.at}, found at positions: {direction.positions}",
        f"- for: {model.name}, family {model.family}, weights with SHA-256 {model.weights} (in bfloat16)",
        *(f"- {name}: {json.dumps(said)}" for name, said in direction.made.items()),
        "",
        "| layer | length of the vector | mean norm of the residual stream |",
        "|---|---|---|",
    ]
    rows = zip(direction.layers, direction.lengths, direction.norms, strict=True)
    lines += [f"| {layer} | {length:.4g} | {norm:.4g} |" for layer, length, norm in rows]
    return "\n".join(lines) + "\n"
