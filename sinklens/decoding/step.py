"""One denoising step, as the loop hands it out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding.draws import Draws
from sinklens.hooks import Memory
from sinklens.hooks.canvas import Canvas


@dataclass(frozen=True)
class Moment:
    """Where a run stands before one of its steps: all that its further course depends on, beside model and plan.

    Attributes:
        canvas: The whole canvas, whatever the model sees of it; its `step` is the step that comes.
        states: Where the random generator of each row stands (`Draws.states`).
    """

    canvas: Canvas
    states: tuple[Tensor, ...]

    def repeated(self, times: int) -> Moment:
        """The same for every row `times` times, one group after the other."""
        now = self.canvas
        parts = {name: getattr(now, name).repeat(times, 1) for name in ("tokens", "valid", "masked", "prompt")}
        active = None if now.active is None else now.active.repeat(times)
        return Moment(replace(now, **parts, seeds=now.seeds * times, active=active), self.states * times)


@dataclass(frozen=True, eq=False)
class Stored:
    """One store event: blocks that are finished now.

    Attributes:
        canvas: What the forward saw: all that is finished. Its `block` are the positions that were not before, and its
            `active` rows those that have any.
        number: The number of each row's last finished block, counted where the model counts from; -1 for rows without
            a new one [batch].
        seen: What each probe's hooks saw; None for a probe of steps.
    """

    canvas: Canvas
    number: Int[Tensor, " batch"]
    seen: tuple[dict[Any, Any] | None, ...]


@dataclass(frozen=True)
class Step:
    """One denoising step, after its forward.

    Attributes:
        index: 0 at the first forward.
        canvas: What the forward saw. A baseline sees only what stands to the left of its next position.
        tokens: The canvas after the step [batch, pos].
        committed: Positions that this step committed [batch, pos].
        predicted: The token that the model chose at each masked position [batch, pos].
        confidence: The remasking rule's confidence there [batch, pos]; nan elsewhere.
        logits: Row i scores the token at position i, for every model (`dlm.by_position`); for a baseline that is
            one row more than `canvas` has. Where a run keeps a cache, of the last positions alone: row i is of
            position `first` + i.
        active: Rows that were still being decoded [batch].
        seen: What each probe's hooks saw, for `probe.values`; None at steps outside its scope.
        memories: What each edit remembers and has counted, up to and including this step.
        fired: How often the hooks of each probe and edit have fired.
        remasked: Positions that an earlier step had committed and this one masked again [batch, pos]; None under a
            sampler that never does so, or where a followed step did not.
        after: The whole canvas after the step, with the index of the next one.
        forwards: How many forwards there were up to now, of the whole batch: "step"; "store", which read what is
            finished into a cache; "clean", "guidance" and "resample", where those are asked for.
        stored: Store events that it brought, and before the first step those of the prompt's blocks; none if nobody
            subscribes to them (`Scope.event`).
        first: The position that the first row of logits is about: 0, unless a run keeps a cache, or asks for one row.
        draws: The run's random numbers, which stand behind those of the step while it is looked at.
    """

    index: int
    canvas: Canvas
    tokens: Int[Tensor, "batch pos"]
    committed: Bool[Tensor, "batch pos"]
    predicted: Int[Tensor, "batch pos"]
    confidence: Float[Tensor, "batch pos"]
    logits: Float[Tensor, "batch scored vocab"]
    active: Bool[Tensor, " batch"]
    seen: tuple[dict[Any, Any] | None, ...] = ()
    memories: tuple[Memory, ...] = ()
    fired: dict[str, int] = field(default_factory=dict)
    remasked: Bool[Tensor, "batch pos"] | None = None
    after: Canvas = field(kw_only=True)
    forwards: Counter[str] = field(kw_only=True)
    first: int = field(kw_only=True)
    stored: tuple[Stored, ...] = field(default=(), kw_only=True)
    draws: Draws = field(kw_only=True)

    @property
    def moment(self) -> Moment:
        """Where the run stands behind this step; to be asked before the next one is."""
        return Moment(self.after, self.draws.states())
