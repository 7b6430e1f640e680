"""Autoencoders for tests: random ones of every architecture, and planted ones whose features are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklens.autoencoders import Autoencoder, Formula
from sinklens.autoencoders.place import Place

WIDTH = 32  # of the tiny random models


def by_chance(
    model: str | Any,
    point: str = "blocks.0.hook_out",
    formula: Formula | None = None,
    *,
    features: int = 24,
    seed: int = 0,
) -> Autoencoder:
    """Random weights, by default of a standard autoencoder; for a model, or for one of that name."""
    formula = formula or Formula("standard")
    generator = torch.Generator().manual_seed(seed)
    width = WIDTH if isinstance(model, str) else int(model.cfg.d_model)
    weights = {
        name: 0.3 * torch.randn(size, generator=generator) for name, size in formula.sizes(width, features).items()
    }
    if "threshold" in weights:
        weights["threshold"].abs_()
    return Autoencoder(formula, Place(point, model) if isinstance(model, str) else Place.of(model, point), weights)


def perfect(dlm: Any, point: str = "blocks.0.hook_out") -> Autoencoder:
    """A feature for each dimension's positive part, and one for its negative part: the reconstruction is exact."""
    one = torch.eye(int(dlm.cfg.d_model))
    weights = {"W_enc": torch.cat([one, -one], 1), "W_dec": torch.cat([one, -one]), "b_dec": torch.zeros(len(one))}
    weights["b_enc"] = torch.zeros(2 * len(one))
    return Autoencoder(Formula("standard"), Place.of(dlm, point), weights)


def of_direction(dlm: Any, direction: Tensor, point: str = "blocks.0.hook_out") -> Autoencoder:
    """Two features: how far the activation reaches along a direction of unit length, and how far against it."""
    weights = {"W_enc": torch.stack([direction, -direction], 1), "W_dec": torch.stack([direction, -direction])}
    weights |= {"b_dec": torch.zeros(len(direction)), "b_enc": torch.zeros(2)}
    return Autoencoder(Formula("standard"), Place.of(dlm, point), weights)
