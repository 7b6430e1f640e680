"""Probes and edits for tests: descriptions that call a function at one hook point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas, Edit, Hook, Memory, Probe, Scope

PATTERN = "blocks.0.attn.hook_pattern"


def nothing(tensor: Tensor, canvas: Canvas) -> None:
    """Changes nothing."""


@dataclass(frozen=True, repr=False)
class Acts(Edit):
    """An edit that hands every tensor of a hook point, with the canvas, to `act`. Counts its forwards as "acts"."""

    act: Callable[[Tensor, Canvas], Tensor | None] = field(default=nothing, compare=False)
    point: str = PATTERN
    where: Scope = Scope()
    title: str = ""  # tells two of them apart

    @property
    def identity(self) -> str:
        return f"Acts at {self.point}, {self.where!r}, {self.title!r}"

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        assert canvas is not None

        def hook_function(tensor: Tensor, *, hook: Any) -> Tensor | None:
            memory.count("acts", torch.ones(len(canvas.tokens)))
            return self.act(tensor, canvas)

        return [(self.point, hook_function)]


@dataclass(frozen=True, repr=False)
class Sees(Probe):
    """A probe that hands every tensor of a hook point, with the canvas, to `look`, and measures 0."""

    look: Callable[[Tensor, Canvas], Any] = field(default=nothing, compare=False)
    point: str = PATTERN
    where: Scope = Scope()
    name: str = "part"
    dims: tuple[str, ...] = ()
    unit: str = ""
    definition: str = "0"

    @property
    def identity(self) -> str:
        return f"Sees {self.name} at {self.point}, {self.where!r}"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        assert canvas is not None

        def hook_function(tensor: Tensor, *, hook: Any) -> None:
            self.look(tensor, canvas)
            seen["batch"] = len(tensor)

        return [(self.point, hook_function)]

    def values(self, seen: dict[Any, Any]) -> Tensor:
        return torch.zeros(seen["batch"])
