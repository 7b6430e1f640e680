"""What became of a canvas: the one fold over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding.step import Step
from sinklens.hooks.canvas import Canvas


@dataclass(eq=False)
class Trajectory:
    """Which token was committed where, when and how: `run.denoise` and the experiments add step after step.

    `follow=` takes one; a `Run` is one.

    Attributes:
        tokens: The canvas, left-padded, after the last step that was added [prompt, pos].
        commit_step: Step at which each position was committed, -1 where given or not committed [prompt, pos].
        predicted: The model's own choice at the commit, -1 elsewhere [prompt, pos]; differs from tokens under
            `force` and `follow`.
        confidence: Confidence at the commit, nan elsewhere [prompt, pos].
        filled: Positions that were to be filled [prompt, pos]. A run that ended early has not committed all of them.
    """

    tokens: Int[Tensor, "prompt pos"]
    commit_step: Int[Tensor, "prompt pos"]
    predicted: Int[Tensor, "prompt pos"]
    confidence: Float[Tensor, "prompt pos"]
    filled: Bool[Tensor, "prompt pos"]

    @staticmethod
    def of(canvas: Canvas) -> Trajectory:
        """Before the first step of a run that begins with `canvas` (`prepare(...).canvas`)."""
        nowhere = torch.full_like(canvas.tokens, -1)
        unsure = torch.full(canvas.tokens.shape, float("nan"), device=canvas.tokens.device)
        return Trajectory(canvas.tokens, nowhere, nowhere.clone(), unsure, canvas.masked)

    @property
    def committed(self) -> Bool[Tensor, "prompt pos"]:
        """Positions that some step committed."""
        return self.commit_step >= 0

    def add(self, step: Step) -> None:
        """Take the next step in; tensors of the step are not changed."""
        here = step.committed
        self.tokens = step.tokens
        self.commit_step = torch.where(here, step.index, self.commit_step)
        self.predicted = torch.where(here, step.predicted, self.predicted)
        self.confidence = torch.where(here, step.confidence.to(self.confidence.dtype), self.confidence)

    def repeated(self, times: int) -> Trajectory:
        """All rows `times` times, one group after the other: what several groups of one batch follow."""
        parts = (self.tokens, self.commit_step, self.predicted, self.confidence, self.filled)
        return Trajectory(*(part.repeat(times, 1) for part in parts))
