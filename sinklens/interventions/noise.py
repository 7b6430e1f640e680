"""Random numbers that do not depend on the device, the batch or the padding."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.hooks import Canvas


def noise(seed: int, canvas: Canvas, layer: int, heads: int) -> Float[Tensor, "batch head key"]:
    """Uniform numbers in [0, 1) that depend on seed, row seed, step, layer, head and position alone.

    A counter hash (splitmix64's finaliser) instead of a generator: the same on every device, in every batch and
    however a row is padded.
    """
    return _uniform(_state(seed, canvas, layer, heads))


def normal(seed: int, canvas: Canvas, layer: int, heads: int, size: int) -> Float[Tensor, "batch head key size"]:
    """Standard normal vectors of `size` numbers, from the same hash (Box and Muller's transform)."""
    state = _state(seed, canvas, layer, heads)[..., None]
    element = torch.arange(size, device=state.device)
    one, two = (_uniform(_mix(state + 2 * element + part + 0x1E3779B97F4A7C15)) for part in (0, 1))
    return (-2 * (1 - one).clamp(min=2**-53).log()).sqrt() * (2 * math.pi * two).cos()


def _state(seed: int, canvas: Canvas, layer: int, heads: int) -> Tensor:
    device = canvas.valid.device
    position = (canvas.valid.long().cumsum(-1) - 1)[:, None, :]
    row = torch.tensor(canvas.seeds or (0,) * len(canvas.valid), dtype=torch.long, device=device)[:, None, None]
    head = torch.arange(heads, device=device)[None, :, None]
    x = torch.zeros((), dtype=torch.long, device=device)
    for part in (seed, row, canvas.step, layer, head, position):
        x = _mix(x + part + 0x1E3779B97F4A7C15)
    return x


def _uniform(x: Tensor) -> Tensor:
    return ((x >> 11) & ((1 << 53) - 1)).double().div(1 << 53).float()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))
