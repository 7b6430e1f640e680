"""Controls: the same edit, done to keys that are no sinks."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.hooks import Canvas
from sinklens.interventions.detectors import Detector
from sinklens.interventions.edits import SinkEdit
from sinklens.sinks import SinkRule


def noise(seed: int, canvas: Canvas, layer: int, heads: int) -> Float[Tensor, "batch head key"]:
    """Uniform numbers in [0, 1) that depend on seed, row seed, step, layer, head and position alone.

    A counter hash (splitmix64's finaliser) instead of a generator: the same on every device, in every batch and
    however a row is padded.
    """
    device = canvas.valid.device
    position = (canvas.valid.long().cumsum(-1) - 1)[:, None, :]
    row = torch.tensor(canvas.seeds or (0,) * len(canvas.valid), dtype=torch.long, device=device)[:, None, None]
    head = torch.arange(heads, device=device)[None, :, None]
    x = torch.zeros((), dtype=torch.long, device=device)
    for part in (seed, row, canvas.step, layer, head, position):
        x = _mix(x + part + 0x1E3779B97F4A7C15)
    return ((x >> 11) & ((1 << 53) - 1)).double().div(1 << 53).float()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class RandomKeys(Detector):
    """As many random keys as another detector finds sinks, per row, layer and head, and none of them a sink.

    Keys that the other detector selects, and keys that the standard rule (epsilon 3) calls sinks at this step,
    are not drawn. Where fewer keys are left, fewer are drawn (`counts()` of the edit shows how many in all).

    Args:
        of: The detector to be matched.
        seed: For the draw.
    """

    def __init__(self, of: Detector, seed: int = 0) -> None:
        super().__init__(of.rule, queries=of.queries)
        self.of, self.seed, self.needs_previous = of, seed, of.needs_previous

    def reset(self) -> None:
        """Forget what earlier steps showed."""
        self.of.reset()

    def observe(self, layer: int, received: Tensor, canvas: Canvas) -> None:
        """Let the matched detector watch."""
        self.of.observe(layer, received, canvas)

    def select(self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas) -> Tensor:
        """Random eligible keys, as many as the matched detector selects."""
        sinks = self.of.select(layer, received, eligible, canvas)
        free = eligible & ~sinks & ~SinkRule()(received, eligible)
        draw = noise(self.seed, canvas, layer, received.shape[1]).to(received.device).masked_fill(~free, -1.0)
        order = draw.argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        return (rank < sinks.sum(-1, keepdim=True)) & free

    def __repr__(self) -> str:
        return f"RandomKeys({self.of!r}, seed={self.seed})"


def random_control(edit: SinkEdit, seed: int = 0) -> SinkEdit:
    """The same edit in the same scope, done to as many random non-sink keys."""
    control = copy.copy(edit)
    control.detector = RandomKeys(copy.copy(edit.detector), seed)
    control.reset()
    return control
