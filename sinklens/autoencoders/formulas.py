"""What an autoencoder computes: encoders and decoders as formulas of an activation and the weights. Pure torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import AutoencoderError
from sinklens.values import Value
from sinklens.values.kinds import Count

Architecture = Literal["standard", "gated", "jumprelu", "topk"]
Weights = Mapping[str, Tensor]
EPS = 1e-5  # SAELens's, of "layer_norm"
OWN: dict[str, tuple[str, ...]] = {  # vectors over features that each architecture has beside W_enc, W_dec and b_dec
    "standard": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
}


@dataclass(frozen=True, repr=False)
class Formula(Value):
    """What an autoencoder computes of an activation x, apart from its weights.

    "standard": `relu(x W_enc + b_enc)`. "jumprelu": the same where it is above the feature's threshold, else 0 (arXiv
    2407.14435). "gated": `relu(exp(r_mag) (x W_enc) + b_mag)` where `x W_enc + b_gate` is above 0, else 0 (arXiv
    2404.16014). "topk": the k largest of `x W_enc + b_enc` that are above 0 (arXiv 2406.04093). The decoder is always
    `f W_dec + b_dec`.

    Attributes:
        architecture: Which of them.
        k: Of "topk" alone: how many features are active at most.
        centred: Whether b_dec is taken off x first (SAELens: `apply_b_dec_to_input`).
        normalised: What is done to x before everything, and undone at the end: "layer_norm" (mean 0, standard
            deviation 1 over dimensions), "constant_norm_rescale" (norm sqrt(d_model)), or "none".
        by_norm: Of "topk": features count by what they write, that is times the norm of their decoder row (SAELens:
            `rescale_acts_by_decoder_norm`).

    Raises:
        AutoencoderError: a k that is missing, or said of another architecture.
    """

    architecture: Architecture
    k: Count | None = None
    centred: bool = True
    normalised: Literal["none", "layer_norm", "constant_norm_rescale"] = "none"
    by_norm: bool = False
    kind_error = AutoencoderError

    def __post_init__(self) -> None:
        if (self.architecture == "topk") != (self.k is not None):
            raise AutoencoderError(f"k={self.k} of {self.architecture!r}: 'topk' needs one, and no other has it")
        if self.by_norm and self.architecture != "topk":
            raise AutoencoderError(f"by_norm is of 'topk' alone, and this autoencoder is {self.architecture!r}")

    def sizes(self, d_model: int, features: int) -> dict[str, tuple[int, ...]]:
        """The names and sizes of the weights."""
        own = {name: (features,) for name in OWN[self.architecture]}
        return {"W_enc": (d_model, features), "W_dec": (features, d_model), "b_dec": (d_model,), **own}


def encode(formula: Formula, w: Weights, x: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos feature"]:
    """Feature activations, from 0."""
    mean, size = scale(formula, x)
    x = (x - mean) / (size + EPS if formula.normalised == "layer_norm" else size)
    x = x - w["b_dec"] if formula.centred else x
    if formula.architecture == "gated":
        written = x @ w["W_enc"]
        return ((written + w["b_gate"]) > 0) * (written * w["r_mag"].exp() + w["b_mag"]).relu()
    before = x @ w["W_enc"] + w["b_enc"]
    if formula.architecture == "jumprelu":
        return before.relu() * (before > w["threshold"])
    if formula.k is None:
        return before.relu()
    before = before * w["W_dec"].norm(dim=-1) if formula.by_norm else before
    largest = before.topk(formula.k, dim=-1)
    return torch.zeros_like(before).scatter(-1, largest.indices, largest.values.relu())


def decode(
    formula: Formula, w: Weights, f: Float[Tensor, "*pos feature"], x: Float[Tensor, "*pos d_model"] | None
) -> Float[Tensor, "*pos d_model"]:
    """The activation that features stand for; what was done to x, from which they were encoded, is undone."""
    mean, size = (0.0, 1.0) if x is None else scale(formula, x)
    return (written(formula, w, f) + w["b_dec"]) * size + mean


def written(
    formula: Formula, w: Weights, f: Float[Tensor, "*pos n"], features: Tensor | slice = slice(None)
) -> Float[Tensor, "*pos d_model"]:
    """What features write, before b_dec and where x is normalised; of all of them, or of some."""
    rows = w["W_dec"][features]
    return (f / rows.norm(dim=-1) if formula.by_norm else f) @ rows


def scale(formula: Formula, x: Float[Tensor, "*pos d_model"]) -> tuple[Tensor, Tensor]:
    """What normalisation takes off x, and divides it by: 0 and 1 without any."""
    if formula.normalised == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        return mean, (x - mean).std(-1, keepdim=True)
    if formula.normalised == "constant_norm_rescale":
        return x.new_zeros(()), x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return x.new_zeros(()), x.new_ones(())
