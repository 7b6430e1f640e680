"""What a probe and an edit are: descriptions that give ordinary TransformerLens hooks for one forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.hooks.by_query import Hook
from sinklens.hooks.canvas import Canvas
from sinklens.hooks.changed import noting
from sinklens.hooks.memory import Memory
from sinklens.hooks.scope import Scope
from sinklens.values.content import Value
from sinklens.values.notebook import Told


class Probe(Value, ABC):
    """A measurement: reduces inside its hooks. A description only; what a forward showed is in `seen`.

    A probe of your own is a frozen dataclass with a `name` (the record variable), `dims` (after prompt and step),
    `unit`, `definition`, and the two methods below.

    Attributes:
        where: Layers, heads and steps. A part of it that the probe cannot honour is refused.
        name: The record variable.
        dims: Its dims after prompt and step: "layer", "head", "kv_head", "query", "key", or others with `coords`.
        unit: Its unit.
        definition: What its numbers mean.
    """

    where: Scope = Scope()
    name: str
    dims: tuple[str, ...]
    unit: str
    definition: str

    @abstractmethod
    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """Hooks `(name, function)` with `function(tensor, *, hook)` for one forward; they write into `seen`.

        Args:
            model: A HookedDLM or any TransformerBridge.
            canvas: What the forward sees; None outside the denoising loop.
            seen: Empty; whatever the hooks leave here is what `values` gets.
        """

    @abstractmethod
    def values(self, seen: dict[Any, Any]) -> Float[Tensor, "batch ..."]:
        """What a forward showed, batch first, then `dims`."""

    def of_new(self, model: Any) -> bool:
        """Whether it asks only for queries that are new at each step (`only_new`), so that a run may keep a cache."""
        return False

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        """Coordinates of dims that are not simply 0, 1, 2, ... (only some layers, say)."""
        return {}

    def attributes(self) -> dict[str, Any]:
        """What is recorded beside unit and definition, such as whose attention counted."""
        return {}

    def told(self) -> Told:
        """What a notebook shows: also what it measures, and in which unit."""
        usual = super().told()
        measured = [("records", self.name), ("dims", ", ".join(("prompt", "step", *self.dims))), ("unit", self.unit)]
        known = {name for name, _ in measured} | {"name", "definition"}
        rows = [(name, value) for name, value in usual.rows if name and name not in known]
        return Told(usual.about, [*measured, ("definition", self.definition), *rows])

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None, seen: dict[Any, Any] | None = None) -> list[Hook]:
        """As `hooks`, for `run_with_hooks(fwd_hooks=...)` of any bridge: `probe.values(seen)` reads what was seen."""
        return self.hooks(model, canvas, {} if seen is None else seen)


class Edit(Value, ABC):
    """An edit of the model's computation. A description only; what it remembers and counts is in a `Memory`.

    An edit of your own is a frozen dataclass with the method `hooks`. All else has defaults that do nothing.

    Attributes:
        where: Layers, heads and steps; the loop calls `hooks` at these steps only.
        stage: Where edits meet in scope: 0 edits come first, then 1 (an added key), then 2 (values).
        changes: Whether the model may compute something else under it; False for a control of the instrument itself,
            and for a dose that is the identity (a bias of 0).
    """

    where: Scope = Scope()
    stage: ClassVar[int] = 0

    @property
    def changes(self) -> bool:
        """As long as nothing else is said."""
        return True

    @property
    def earliest(self) -> int:
        """The first step of a run at which it can edit anything."""
        return 0

    @abstractmethod
    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks for one forward that is edited."""

    @property
    def looks_back(self) -> bool:
        """Whether the edit must see the forward before each one that it edits (`watch`)."""
        return False

    def watch(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks that only look, for the forward before the first that is edited; asked for if it `looks_back`."""
        return []

    def clean(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks that only look, on a forward without any edit at the canvas that is about to be edited.

        If there are any, that forward is run before each edited one.
        """
        return []

    def of_new(self, model: Any) -> bool:
        """Whether it knows how to act where only new queries are computed (`Plan.editing`).

        That is on their scores and weights, and by nobody's attention but theirs.
        """
        return False

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise, before the first forward, if this edit cannot act on this canvas of this model."""

    def memory(self, steps: int | None = None, start: Canvas | None = None) -> Memory:
        """A new memory, for a run of `steps` steps that begins with a canvas."""
        return Memory(steps, start)

    def leaves(self) -> Sequence[Edit]:
        """The edits that a composed edit is made of; itself otherwise."""
        return (self,)

    def parts(self, memory: Memory) -> Sequence[tuple[Edit, Memory]]:
        """The same, each with its own memory."""
        return ((self, memory),)

    def acts(self, step: int, memory: Memory) -> bool:
        """Whether a step is in scope; while a finished block is stored, whether that is."""
        return self.where.event == "store" if memory.storing else self.where.at(step, memory.steps)

    def at_step(self, model: Any, canvas: Canvas, memory: Memory) -> list[Hook]:
        """What the loop attaches at a step: `hooks` in scope, `watch` one step before it, or nothing."""
        if self.acts(canvas.step, memory):
            hooks = self.hooks(model, canvas, memory)
            if hooks:
                memory.touch(torch.zeros_like(canvas.rows))  # at work; which rows it changes shows in its hooks
            return noting(hooks, model, canvas, memory)
        if self.looks_back and self.acts(canvas.step + 1, memory):
            return self.watch(model, canvas, memory)
        return []

    def clean_at_step(self, model: Any, canvas: Canvas, memory: Memory) -> list[Hook]:
        """What the loop attaches to a clean forward at a step, if anything."""
        return self.clean(model, canvas, memory) if self.acts(canvas.step, memory) else []

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None, memory: Memory | None = None) -> list[Hook]:
        """As `hooks`, for `run_with_hooks(fwd_hooks=...)` of any bridge whose attention hooks are live."""
        return self.hooks(model, canvas, self.memory() if memory is None else memory)
