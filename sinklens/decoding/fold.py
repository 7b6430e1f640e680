"""What became of a canvas: the one fold over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding.plan import Plan
from sinklens.decoding.step import Step
from sinklens.hooks.canvas import Canvas
from sinklens.models.hooked_dlm import HookedDLM


class Undone(NamedTuple):
    """Commits that a step undid: it masked their positions again.

    Attributes:
        step: That step.
        places: The positions [prompt, pos].
        tokens: What stood there, in order of the places [place].
        since: The step that had committed it [place].
    """

    step: int
    places: Bool[Tensor, "prompt pos"]
    tokens: Int[Tensor, " place"]
    since: Int[Tensor, " place"]


@dataclass(eq=False)
class Trajectory:
    """Which token was committed where, when and how: `run.denoise` and the experiments add step after step.

    `follow=` takes one; a `Run` is one.

    Attributes:
        tokens: The canvas, left-padded, after the last step that was added [prompt, pos].
        commit_step: Step at which each position was committed, the last time where it was masked again; -1 where given
            or not committed [prompt, pos].
        predicted: The model's own choice at the commit, -1 elsewhere [prompt, pos]; differs from tokens under
            `force` and `follow`.
        confidence: Confidence at the commit, nan elsewhere [prompt, pos].
        filled: Positions that were to be filled [prompt, pos]. A run that ended early has not committed all of them.
        undone: Commits before the last one of a position; of the samplers "p2" and "dplm" alone.
    """

    tokens: Int[Tensor, "prompt pos"]
    commit_step: Int[Tensor, "prompt pos"]
    predicted: Int[Tensor, "prompt pos"]
    confidence: Float[Tensor, "prompt pos"]
    filled: Bool[Tensor, "prompt pos"]
    undone: tuple[Undone, ...] = field(default=(), kw_only=True)

    @staticmethod
    def of(canvas: Canvas) -> Trajectory:
        """Before the first step of a run that begins with `canvas` (`prepare(...).canvas`)."""
        nowhere = torch.full_like(canvas.tokens, -1)
        unsure = torch.full(canvas.tokens.shape, float("nan"), device=canvas.tokens.device)
        return Trajectory(canvas.tokens, nowhere, nowhere.clone(), unsure, canvas.masked)

    @property
    def committed(self) -> Bool[Tensor, "prompt pos"]:
        """Positions that some step committed, and none has masked again."""
        return self.commit_step >= 0

    def add(self, step: Step) -> None:
        """Take the next step in; tensors of the step are not changed."""
        here, again = step.committed, step.remasked
        if again is not None and bool(again.any()):
            self.undone = (*self.undone, Undone(step.index, again, self.tokens[again], self.commit_step[again]))
            self.commit_step = self.commit_step.masked_fill(again, -1)
            self.predicted = self.predicted.masked_fill(again, -1)
            self.confidence = self.confidence.masked_fill(again, float("nan"))
        self.tokens = step.tokens
        self.commit_step = torch.where(here, step.index, self.commit_step)
        self.predicted = torch.where(here, step.predicted, self.predicted)
        self.confidence = torch.where(here, step.confidence.to(self.confidence.dtype), self.confidence)

    def on(self, device: torch.device) -> Trajectory:
        """The same on a device."""
        parts = (self.tokens, self.commit_step, self.predicted, self.confidence, self.filled)
        undone = (Undone(one.step, *(part.to(device) for part in one[1:])) for one in self.undone)
        return Trajectory(*(part.to(device) for part in parts), undone=tuple(undone))

    def repeated(self, times: int) -> Trajectory:
        """All rows `times` times, one group after the other: what several groups of one batch follow."""
        parts = (self.tokens, self.commit_step, self.predicted, self.confidence, self.filled)
        undone = (
            Undone(one.step, one.places.repeat(times, 1), one.tokens.repeat(times), one.since.repeat(times))
            for one in self.undone
        )
        return Trajectory(*(part.repeat(times, 1) for part in parts), undone=tuple(undone))

    @property
    def last(self) -> Int[Tensor, " prompt"]:
        """The last step that committed something in a row, or masked it again; -1 if none did."""
        last = self.commit_step.amax(-1)
        for one in self.undone:
            last = torch.where(one.places.any(-1), last.clamp(min=one.step), last)
        return last

    def at(
        self, step: int
    ) -> tuple[Bool[Tensor, "prompt pos"], Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"] | None]:
        """What a step did: the positions that it committed, their tokens, and those that it masked again, if any."""
        committed, tokens, remasked = self.commit_step == step, self.tokens, None
        for one in self.undone:
            if one.step == step:
                remasked = one.places
            elif one.step > step and bool((one.since == step).any()):
                here = one.places.clone()
                here[one.places] = one.since == step
                committed = committed | here
                tokens = tokens.masked_scatter(here, one.tokens[one.since == step])
        return committed, tokens, remasked


def completion(dlm: HookedDLM, plan: Plan, filled: list[int]) -> str:
    """Text of the tokens that were filled in, up to the first of the EOS tokens (gaps: all of them)."""
    end = next((i for i, token in enumerate(filled) if token in dlm.ids.eos), len(filled)) if plan.new_tokens else None
    return dlm.decode(filled[:end])
