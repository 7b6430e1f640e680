"""An edit of the residual stream: a direction is added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.directions import Direction, reading
from sinklens.errors import DirectionError, ScopeError
from sinklens.hooks import Canvas, Edit, Hook, HookFunction, Memory, Scope, chosen
from sinklens.interventions.brief import Brief, brief
from sinklens.interventions.edits.base import EVERYWHERE
from sinklens.interventions.noise import normal
from sinklens.interventions.selectors.base import set_field
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.sinks import Positions
from sinklens.values.kinds import Finite, Seed

By = Literal["direction", "random", "orthogonal"]
Units = Literal["difference", "residual"]
Schedule = Literal["constant", "linear"] | Sequence[Finite]


@dataclass(frozen=True, repr=False)
class Steer(Brief, Edit):
    """Add a direction to the residual stream, at every step, in each layer in scope: x + scale * schedule * vector.

    What is added in one layer is passed on to the next ones, so that over many layers it adds up. Counts "positions"
    that something was added at, over steps and layers. A scale of 0 is the identity, bit for bit.

    Conserves: positions that are not named, and pads, in the layer itself.
    Assumes: that the direction was found where it is added: on this model, at `direction.at`.
    Source: arXiv 2512.24143 (masked diffusion models, every reverse step), arXiv 2312.06681 (autoregressive models);
    the norm-matched random direction as in arXiv 2607.01774; steps as in arXiv 2605.10971.

    Args:
        direction: A `directions.Direction`, or the folder of one.
        scale: How much of it, in `units`; below 0 the other way.
        by: "direction"; or as a control a vector of the same norm in each layer, drawn from `seed` and the layer:
            "random", or "orthogonal" (random, and at a right angle to the direction).
        positions: Where it is added: "all", "masked", "committed", "prompt", "response" or "last".
        schedule: What `scale` is multiplied by: "constant" (1); "linear" (the share of the row's response that is
            not committed yet: it falls from 1 with every commit); or a number for each step.
        units: "difference": a scale of 1 adds the vector as it is. "residual": a vector as long as the residual
            stream is on average where the direction was found (`direction.norms`).
        seed: For the random ones.
        mark: Digest of the direction, so that another one in the same folder is another edit. Read when None; if
            given, it must be the direction's.
        where: Layers and steps; the direction's layers when it names none. Heads are refused.

    Raises:
        ContentError: a scale that is no finite number, an unknown set of positions, schedule or unit.
        DirectionError: no such direction; one with another mark; in a run: a direction of another model.
        ScopeError: heads; in a run: layers that the direction does not have, or more steps than the schedule has.
    """

    direction: Direction | str
    scale: Finite = 1.0
    by: By = "direction"
    _: KW_ONLY
    positions: Positions = "all"
    schedule: Schedule = "constant"
    units: Units = "difference"
    seed: Seed = 0
    mark: str | None = None
    where: Scope = EVERYWHERE
    counted: ClassVar[tuple[str, ...]] = ("positions",)

    def __post_init__(self) -> None:
        self.where.refuse("heads", by=self)
        if not self.schedule:
            raise ScopeError(f"schedule={self.schedule!r} holds no step")
        set_field(self, "mark", self._found()[1])

    def _found(self) -> tuple[Direction, str]:
        """The direction as it is now, which must be the one that was marked."""
        kept = self.direction
        direction, mark = reading.load(kept) if isinstance(kept, str) else (kept, kept.digest)
        if self.mark not in (None, mark):
            raise DirectionError(
                f"direction={kept!r} has the mark {mark!r}, not mark={self.mark!r}: it is another direction now"
            )
        return direction, mark

    @property
    def changes(self) -> bool:
        """Unless nothing is ever added."""
        return self.scale != 0 and (isinstance(self.schedule, str) or any(self.schedule))

    def memory(self, steps: int | None = None, start: Canvas | None = None) -> Memory:
        """A new memory.

        Raises:
            ScopeError: a schedule with fewer numbers than the run may have steps.
        """
        if not isinstance(self.schedule, str) and steps is not None and steps > len(self.schedule):
            raise ScopeError(f"{self!r}: its schedule is for {len(self.schedule)} steps, and the run has {steps}")
        return Memory(steps, start, names=self.counted)

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a direction of another model, or layers that are never there.

        Raises:
            DirectionError: a direction of another model; of an outline its family and layers are compared.
            ScopeError: layers that the direction does not have.
        """
        direction, _ = self._found()
        if isinstance(model, HookedDLM):
            direction.check(model)
        elif direction.model.family != model.family.name:
            raise DirectionError(
                f"{self!r}: its direction is of {direction.model.name} ({direction.model.family}), and the model is "
                f"{model.name} ({model.family.name})"
            )
        self.layers(model, direction)

    def layers(self, model: Any, direction: Direction) -> Sequence[int]:
        """The layers in scope.

        Raises:
            ScopeError: one that the model or the direction does not have.
        """
        count = int(model.cfg.n_layers)
        asked = direction.layers if self.where.layers is None else chosen(self.where.layers, count, "layer")
        missing = [layer for layer in asked if layer not in direction.layers or layer >= count]
        if missing:
            raise ScopeError(
                f"{self!r} has no vector of layer {missing[0]}: its direction has {list(direction.layers)}, the model "
                f"{count} layers"
            )
        return asked

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """One hook in each layer; none where nothing is added.

        Raises:
            DirectionError: a direction of another model.
            ScopeError: outside the denoising loop, positions or steps that are not known there.
        """
        if "added" not in memory.notes:  # once in a run
            direction, _ = self._found()
            direction.check(model)
            layers = self.layers(model, direction)
            memory.notes["at"] = direction.at
            memory.notes["added"] = {layer: self.vector(direction, layer).to(model.device) for layer in layers}
        if canvas is None and (self.positions, self.schedule, self.where.steps) != ("all", "constant", None):
            raise ScopeError(
                f"{self!r} names positions or steps, which a forward outside the denoising loop does not have; use "
                "denoise, or fwd_hooks(model, canvas)"
            )
        share = self.share(canvas, memory)
        if not self.changes or (isinstance(share, float) and share == 0):
            return []
        where = None if canvas is None else _Where.of(canvas.positions(self.positions) & canvas.rows[:, None])
        return [
            (f"blocks.{layer}.{memory.notes['at']}", _adding(vector, share, where, memory))
            for layer, vector in memory.notes["added"].items()
        ]

    def vector(self, direction: Direction, layer: int) -> Float[Tensor, " d_model"]:
        """What is added in a layer where the schedule is 1."""
        vector = own = direction.vector(layer).double()
        if self.by != "direction":
            vector = normal(self.seed, Canvas.plain(torch.ones(1, 1).bool()), layer, 1, len(own))[0, 0, 0].double()
        if self.by == "orthogonal":
            vector = vector - (vector @ own) / (own @ own) * own
        length = own.norm() if self.units == "difference" else direction.norm(layer)
        if self.by != "direction" or self.units != "difference":
            vector = vector * (length / vector.norm())
        return (self.scale * vector).float()

    def share(self, canvas: Canvas | None, memory: Memory) -> float | Float[Tensor, "batch 1 1"]:
        """What the vector is multiplied by at this step, for all rows or for each."""
        if self.schedule == "constant" or canvas is None:
            return 1.0
        if not isinstance(self.schedule, str):
            if memory.steps is None or canvas.step >= len(self.schedule):
                raise ScopeError(
                    f"{self!r} is for {len(self.schedule)} steps, and this forward is step {canvas.step} of "
                    f"{'a number that is not known' if memory.steps is None else memory.steps}"
                )
            return self.schedule[canvas.step]
        if memory.start is None:
            raise ScopeError(f"{self!r} must know the canvas that the run began with; use it in denoise")
        whole = (memory.start.valid & ~memory.start.prompt).sum(-1)
        left = whole - (canvas.valid & ~canvas.prompt & ~canvas.masked).sum(-1)
        if bool((canvas.rows & (left <= 0)).any()):
            raise ScopeError(f"{self!r}: nothing of a row is left to be committed, so that its schedule says nothing")
        return (left / whole.clamp(min=1))[:, None, None]

    def __repr__(self) -> str:
        return brief(self, mark="")


class _Where(NamedTuple):
    """The positions of a step that something is added at.

    Attributes:
        some: Which [batch, pos, 1]; None if it is all of them.
        amount: How many of each row.
    """

    some: Bool[Tensor, "batch pos 1"] | None
    amount: Int[Tensor, " batch"]

    @classmethod
    def of(cls, here: Bool[Tensor, "batch pos"]) -> _Where:
        return cls(None if bool(here.all()) else here[..., None], here.sum(-1))


def _adding(
    vector: Float[Tensor, " d_model"],
    share: float | Float[Tensor, "batch 1 1"],
    where: _Where | None,
    memory: Memory,
) -> HookFunction:
    """A hook that adds a vector to the residual stream, everywhere if `where` is None."""
    added = vector if isinstance(share, float) and share == 1 else vector * share

    def add(residual: Tensor, *, hook: Any) -> Tensor:
        steered = residual + added.to(residual.device, residual.dtype)
        if where is None:
            return steered
        memory.count("positions", where.amount)
        return steered if where.some is None else torch.where(where.some.to(residual.device), steered, residual)

    return add
