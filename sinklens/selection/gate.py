"""A gate: which tokens of each layer stay visible as keys, from its residual stream and the rate that the user asks."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinklens.errors import GateError
from sinklens.models.fingerprint import ModelId
from sinklens.selection.places import find
from sinklens.selection.storing import GATE, card
from sinklens.values import Value
from sinklens.values.content import digest
from sinklens.values.kinds import Count, Index, reads

GateKind = Literal["conditioned", "threshold", "learned_threshold"]
Scores = Literal["layer", "shared"]
EPS = 1e-6  # of the RMS
GRID = (0.02, *(round(0.05 * step, 2) for step in range(1, 20)), 0.98)  # rates at which a gate is calibrated
LEAST = 0.01  # rates nearer to 0 or to 1 than this are told as this one; 1 itself keeps all


@dataclass(frozen=True, repr=False)
class Shape(Value):
    """What a gate looks like before it is trained.

    Attributes:
        kind: "conditioned": a small MLP of the normalised residual and of features of the rate, kept where above 0.
            "threshold": the literature's gate, kept where sigmoid(w x + b) > 1 - rate. "learned_threshold": its
            learned form, kept where sigmoid(w x + b) > sigmoid(u rate + v). (peekvit's ResidualViT, of the authors of
            arXiv 2405.02330; there a kept token is scaled by what it is above the threshold, here it stays as it is.)
        scores: "layer": each layer has its own scores, of its own input. "shared": one set of scores for all layers, of
            the input of the layer `first`.
        first: The first layer that selects; layers before it keep everything. 1 unless said otherwise: the input of
            layer 0 is the bare embedding, where all mask tokens look alike, so that none can be told from another.
        hidden: Hidden units of "conditioned".
    """

    kind: GateKind = "conditioned"
    scores: Scores = "layer"
    first: Index = 1
    hidden: Count = 12
    kind_error = GateError


class Gate(nn.Module):
    """One set of weights for every rate: a score per token and layer, kept where it is above 0. In float32.

    Source: arXiv 2405.02330 (a budget that the user chooses as a further input of per-token gates, one model for all
    budgets); here tokens are kept as keys and not as tokens, and the model around the gate is frozen.

    Args:
        shape: What it looks like.
        layers: Layers of the model.
        width: d_model.
        model: Whose gate it is.
        made: What made it (recipe, text, updates, what was reached), as plain data; empty while it is untrained.

    Attributes:
        shape: As given; likewise `layers`, `width`, `model`, `made`.
    """

    def __init__(
        self, shape: Shape, layers: int, width: int, model: ModelId, made: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if shape.first >= layers:
            raise GateError(
                f"first={shape.first}: {model.name} has the layers 0 to {layers - 1}, and none would select"
            )
        self.shape, self.layers, self.width, self.model = shape, layers, width, model
        self.made = dict(made or {})
        wanted = sizes(shape, layers, width)
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in wanted.items()})

    @classmethod
    def fresh(cls, shape: Shape, dlm: Any, seed: int = 0) -> Gate:
        """An untrained gate for a model: scores by chance, of about the spread at which sigmoids meet every rate."""
        gate = cls(shape, int(dlm.cfg.n_layers), int(dlm.cfg.d_model), ModelId.of(dlm))
        generator = torch.Generator().manual_seed(seed)
        spread = {"read": 1 / math.sqrt(gate.width), "said": 1.5 / math.sqrt(shape.hidden), "direct": 0.0}
        if shape.kind != "conditioned":
            spread = {"direct": 1.5 / math.sqrt(gate.width)}
        with torch.no_grad():
            for name, parameter in gate.weights.items():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread.get(name, 0.0))
            if shape.kind == "conditioned":
                gate.weights["skip"][:, 0] = 1.0  # logit(rate): at first as "threshold" has it
            if shape.kind == "learned_threshold":
                gate.weights["skip"].copy_(torch.tensor([4.0, -2.0]))  # of rate and 1: about logit(rate)
        return gate

    @classmethod
    @reads("model")
    def load(cls, path: str | Path, model: Any = None) -> Gate:
        """A gate from its folder, or one that comes with sinklens by its name.

        Args:
            path: The folder, or a name (`selection.find`).
            model: The HookedDLM that it is wanted for; None if that does not matter.

        Raises:
            GateError: no such folder; a file that is missing, damaged, or no gate's; a gate of another model.
        """
        folder = find(str(path), model)
        said = GATE.described(folder)
        gate = cls(
            GATE.part(said, "shape", Shape, folder),
            GATE.count(said, "layers", folder),
            GATE.count(said, "width", folder),
            GATE.part(said, "model", ModelId, folder),
            GATE.part(said, "made", dict, folder),
        )
        held = GATE.tensors(folder, sizes(gate.shape, gate.layers, gate.width))
        gate.load_state_dict({f"weights.{name}": tensor for name, tensor in held.items()})
        if model is not None:
            gate.check(model)
        return gate.requires_grad_(False)

    def save(self, folder: str | Path) -> Path:
        """Write gate.safetensors, gate.json and README.md (a model card) into a folder, which is made if need be.

        Raises:
            SaveError: a file of that name that sinklens did not write, or a folder that cannot be written.
        """
        said = self.description()
        return GATE.write(Path(folder), said, dict(self.weights), card(said))

    def description(self) -> dict[str, Any]:
        """All that a gate is beside its weights, as plain data."""
        return {
            "sinklens": "gate",
            "shape": self.shape.to_dict(),
            "layers": self.layers,
            "width": self.width,
            "model": self.model.to_dict(),
            "made": self.made,
        }

    @property
    def digest(self) -> str:
        """Hash of weights and description, 32 hexadecimal digits."""
        made = hashlib.sha256(digest(self.description()).encode())
        for name, tensor in sorted(self.weights.items()):
            made.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()[:32]

    def check(self, model: Any) -> None:
        """Raise for another model than the gate's own.

        Raises:
            GateError: naming both.
        """
        other = ModelId.of(model)
        if other != self.model:
            raise GateError(
                f"this gate was trained on {self.model.name} ({self.model.family}, weights "
                f"{self.model.weights[:12]}...), and the model is {other.name} ({other.family}, weights "
                f"{other.weights[:12]}...); train one: sinklens select train {other.name}"
            )

    def source(self, layer: int) -> int | None:
        """The layer whose input decides which keys of a layer are kept; None where all are."""
        if layer < self.shape.first:
            return None
        return layer if self.shape.scores == "layer" else self.shape.first

    def scores(
        self, residual: Float[Tensor, "batch pos d_model"], layer: int, rate: float
    ) -> Float[Tensor, "batch pos"]:
        """The score of every token as a key of a layer at a rate; above 0 it is kept.

        Args:
            residual: The residual stream at the input of the layer `source(layer)`.
            layer: Whose keys; one that selects.
            rate: The share that is to be kept, in (0, 1].

        To the score of each kind a number is added that depends on layer and rate alone, 0 in an untrained gate, by
        which the mean share meets the rate (`measuring.calibrate`).
        """
        index = layer - self.shape.first if self.shape.scores == "layer" else 0
        wide = residual.float()
        normal = wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt()
        told = self._told(rate)
        w = {name: weight[index] for name, weight in self.weights.items()}
        direct = normal @ w["direct"] + w["bias"] + self._between(w["calibration"], rate)
        if self.shape.kind == "threshold":
            return direct + told[0]
        if self.shape.kind == "learned_threshold":
            return direct + told[1:] @ w["skip"]
        inner = normal @ w["read"].T + (w["rated"] @ told + w["offset"])
        return direct + nn.functional.gelu(inner) @ w["said"] + told @ w["skip"]

    def keeps(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        layer: int,
        rate: float,
        valid: Bool[Tensor, "batch pos"],
    ) -> Bool[Tensor, "batch pos"]:
        """Which valid tokens stay visible as keys of a layer: those that score above 0, and at least the best one.

        All of them at a rate of 1, and in layers before the first that selects.
        """
        if rate >= 1 or self.source(layer) is None:
            return valid.clone()
        return above(self.scores(residual, layer, rate), valid)

    @staticmethod
    def _between(calibration: Float[Tensor, " rate"], rate: float) -> Tensor:
        """What is added to a layer's scores at a rate: linear between the rates of GRID, constant beyond."""
        right = min(max(bisect(GRID, rate), 1), len(GRID) - 1)
        part = (min(max(rate, GRID[0]), GRID[-1]) - GRID[right - 1]) / (GRID[right] - GRID[right - 1])
        return torch.lerp(calibration[right - 1], calibration[right], part)

    def _told(self, rate: float) -> Float[Tensor, " feature"]:
        """Features of the rate: its logit, itself, 1."""
        told = min(max(rate, LEAST), 1 - LEAST)
        return torch.tensor([math.log(told / (1 - told)), rate, 1.0], device=self.weights["bias"].device)

    def __repr__(self) -> str:
        return f"Gate({self.shape.kind}, {self.shape.scores}, of {self.model.name}, {self.digest[:8]})"


def above(scores: Float[Tensor, "batch pos"], valid: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The valid tokens with a score above 0; where there is none, the one with the best (ties: leftmost)."""
    kept = (scores > 0) & valid
    best = scores.masked_fill(~valid, -math.inf).argmax(-1, keepdim=True)
    none = ~kept.any(-1, keepdim=True)
    return kept | (none & valid & torch.zeros_like(kept).scatter(-1, best, True))


def sizes(shape: Shape, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """The weights of a gate, by name."""
    sets = layers - shape.first if shape.scores == "layer" else 1
    named: dict[str, tuple[int, ...]] = {"direct": (sets, width), "bias": (sets,), "calibration": (sets, len(GRID))}
    if shape.kind == "learned_threshold":
        named["skip"] = (sets, 2)
    if shape.kind == "conditioned":
        named |= {"skip": (sets, 3), "read": (sets, shape.hidden, width), "rated": (sets, shape.hidden, 3)}
        named |= {"offset": (sets, shape.hidden), "said": (sets, shape.hidden)}
    return named
