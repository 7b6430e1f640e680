"""A sparse autoencoder: its formula, weights and place. It encodes, decodes, and says what it leaves unexplained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.autoencoders import files, formulas
from sinklens.autoencoders.formulas import Formula
from sinklens.autoencoders.place import Place
from sinklens.errors import AutoencoderError
from sinklens.values import Value, digest
from sinklens.values.kinds import reads

CHUNK = 2**24  # feature activations that are held at once


@dataclass(frozen=True, repr=False, eq=False)
class Autoencoder(Value):
    """A sparse autoencoder of one hook point. It computes in float32, whatever the model does.

    It is not meant to be changed. Weights that are changed in place all the same, as far as torch counts it, make it
    another autoencoder, which edits and probes that were made with it refuse.

    Two autoencoders of one formula, place and weights are the same, wherever they were read. For example:

        sae = Autoencoder.load("resid_post_layer_10/trainer_0")
        f = sae.encode(x)              # [..., d_model] -> [..., feature]
        torch.equal(sae.decode(f, x) + sae.error(x), x)  # up to rounding

    Args:
        formula: What it computes.
        place: Where it sits.
        weights: W_enc [d_model, feature], W_dec [feature, d_model], b_dec [d_model], and what its architecture has
            beside these; copied.

    Raises:
        AutoencoderError: weights of other names or sizes, or that are no finite numbers; more features to keep than
            there are.
    """

    formula: Formula
    place: Place
    weights: Mapping[str, Tensor] = field(compare=False)
    kind_error = AutoencoderError

    def __post_init__(self) -> None:
        with torch.inference_mode(False):  # of tensors made there torch counts no change
            held = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in self.weights.items()}
        decoder = held.get("W_dec")
        if decoder is None or decoder.ndim != 2:
            raise AutoencoderError(f"W_dec must be a matrix, [feature, d_model]; there are {', '.join(held) or 'none'}")
        wanted = self.formula.sizes(decoder.shape[1], len(decoder))
        found = {name: tuple(tensor.shape) for name, tensor in held.items()}
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                raise AutoencoderError(
                    f"{name} is {found.get(name, 'missing')}, and must be {wanted.get(name, 'left out')} in a "
                    f"{self.formula.architecture} autoencoder of {len(decoder)} features, d_model {decoder.shape[1]}"
                )
            if not bool(held[name].isfinite().all()):
                raise AutoencoderError(f"{name} holds nan or infinity")
        if (self.formula.k or 0) > len(decoder):
            raise AutoencoderError(f"k={self.formula.k} features are to be kept, and there are {len(decoder)}")
        if self.formula.by_norm and not bool((decoder.norm(dim=-1) > 0).all()):
            raise AutoencoderError("a row of W_dec is 0: the feature writes nothing, and counts by its norm")
        object.__setattr__(self, "weights", held)

    @classmethod
    @reads()
    def load(cls, folder: str | Path, model: str | None = None) -> Autoencoder:
        """Read an autoencoder from its folder, in one of two formats; nothing in it is run and no pickle is opened.

        SAELens: cfg.json and sae_weights.safetensors (standard, gated, jumprelu, topk). Top-K: config.json and
        ae.safetensors, as dictionary_learning and SAE4DLM write it, their ae.pt once turned into safetensors.

        Args:
            folder: The folder.
            model: The model that it is meant for, as it is loaded, where the files name another one: the same weights
                under another name, or a transfer from one model to another.

        Raises:
            AutoencoderError: a file that is missing or damaged; an architecture or an option that sinklens does not
                know, by its name.
        """
        return files.read(Path(folder), model, cls)

    @reads()
    def save(self, folder: str | Path, made: Mapping[str, Any] | None = None) -> Path:
        """Write config.json and ae.safetensors, in the Top-K format, into a folder, which is made if need be.

        Args:
            folder: The folder; other people's files are left as they are.
            made: How it was trained, as plain data, for config.json.

        Raises:
            AutoencoderError: one that the Top-K format has no words for.
            SaveError: a file that cannot be written, or that sinklens did not write.
        """
        return files.write(Path(folder), self.formula, self.place, self.weights, made or {})

    @property
    def d_model(self) -> int:
        """Dimensions of the activation."""
        return int(self.weights["W_dec"].shape[1])

    @property
    def features(self) -> int:
        """Number of features."""
        return int(self.weights["W_dec"].shape[0])

    @property
    def rows(self) -> int:
        """Positions that are encoded at once, so that memory stays bounded."""
        return max(1, CHUNK // self.features)

    @property
    def identity(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - read only, as it is there
        """What it is: the hash of formula, place and weights as they are now."""
        derived = self._derived
        if "identity" not in derived:
            derived["identity"] = digest([self.formula, self.place, self.weights])
        return derived["identity"]

    def check(self, dlm: Any) -> None:
        """Raise for a model in which it does not belong.

        Raises:
            AutoencoderError: another width, a layer that is not there, or another model (`Place`).
        """
        self.place.check(dlm, self.d_model)

    def encode(self, x: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos feature"]:
        """Feature activations, from 0, in float32."""
        return formulas.encode(self.formula, self._on(x), x.float())

    def decode(
        self, f: Float[Tensor, "*pos feature"], x: Float[Tensor, "*pos d_model"] | None = None
    ) -> Float[Tensor, "*pos d_model"]:
        """The activation that features stand for, in float32.

        Args:
            f: Feature activations.
            x: What they were encoded from; needed only by an autoencoder that normalises it.

        Raises:
            AutoencoderError: x is needed and was not given.
        """
        if x is None and self.formula.normalised != "none":
            raise AutoencoderError(f"this autoencoder undoes {self.formula.normalised} when it decodes; give x, too")
        return formulas.decode(self.formula, self._on(f), f.float(), None if x is None else x.float())

    def error(self, x: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
        """What the autoencoder leaves unexplained: x minus its reconstruction, in float32."""
        return x.float() - self.decode(self.encode(x), x)

    def moved(
        self, change: Float[Tensor, "*pos n"], x: Float[Tensor, "*pos d_model"], ids: Tensor | slice = slice(None)
    ) -> Float[Tensor, "*pos d_model"]:
        """How far the activation moves when features change by so much, all else equal: exactly linear in the change.

        `decode(f + change) - decode(f)`, without the rounding of either: 0 where nothing changes.

        Args:
            change: Of the activations.
            x: What they were encoded from.
            ids: Which features; all as they stand if not said.
        """
        _, size = formulas.scale(self.formula, x.float())
        return formulas.written(self.formula, self._on(x), change, ids) * size

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {}

    @property
    def _derived(self) -> dict[Any, Any]:
        """What was made of the weights as they are now: copies by device, and the identity."""
        now = [(name, id(tensor), tensor._version) for name, tensor in self.weights.items()]
        if self._known.get("weights") != now:
            self._known.update(weights=now, derived={}, held=list(self.weights.values()))  # held: an id is one tensor's
        return self._known["derived"]

    def _on(self, tensor: Tensor) -> Mapping[str, Tensor]:
        """The weights on a tensor's device; copied there once for as long as they stay as they are."""
        if tensor.device.type == "cpu":
            return self.weights
        copies = self._derived
        if tensor.device not in copies:
            copies[tensor.device] = {name: each.to(tensor.device) for name, each in self.weights.items()}
        return copies[tensor.device]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Autoencoder) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        size = f"{self.features} features of {self.place.model}"
        return f"<{self.formula.architecture} autoencoder, {size}, {self.place.point}, {self.identity[:8]}>"
