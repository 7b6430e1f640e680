"""Decoding block by block: where a row's blocks lie, which one is being decided, and how its commits are spread."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.decoding.plan import Plan
from sinklens.decoding.remasking import even_split
from sinklens.hooks import Canvas
from sinklens.models.outline import Sketched


@dataclass(frozen=True, eq=False)
class Layout:
    """The blocks of a batch of rows, of a model that sees block by block.

    The model sees a row up to the end of the block that is being decided: what comes behind is not there yet. Earlier
    blocks see neither it nor each other's future, so that their rows are the same at every step.

    Attributes:
        levels: The number of each position's block.
    """

    levels: Int[Tensor, "batch pos"]

    @staticmethod
    def of(dlm: Sketched, plan: Plan, canvas: Canvas) -> Layout | None:
        """That of a run which begins with this canvas; None for a model that sees otherwise."""
        known = dlm.in_blocks
        if known is None:
            return None
        blocks = replace(known, length=plan.block_length or known.length)
        return Layout(blocks.levels(canvas.valid, canvas.prompt.sum(-1)))

    def current(self, canvas: Canvas) -> Int[Tensor, "batch 1"]:
        """The block of each row's first mask; the last block where there is none."""
        beyond = self.levels.amax(-1, keepdim=True)
        return torch.where(canvas.masked & canvas.valid, self.levels, beyond).amin(-1, keepdim=True)

    def seen(self, canvas: Canvas) -> Canvas:
        """What a step sees: everything up to the end of the block that is being decided."""
        current = self.current(canvas)
        valid = canvas.valid & (self.levels <= current)
        width = int(valid.any(0).nonzero().max()) + 1
        whole = replace(canvas, block=canvas.valid & (self.levels == current), levels=self.levels)
        return whole.cut(valid[:, :width])


def counts(dlm: Sketched, plan: Plan, canvas: Canvas) -> list[list[int]] | None:
    """How many positions each step of each row commits, block after block; None for a model that sees otherwise.

    An even split of each block's masks over its steps, the remainder first (LLaDA). A block takes its share of the
    plan's steps, at most one per mask: the first has fewer masks where a prompt's last tokens share it.
    """
    layout = Layout.of(dlm, plan, canvas)
    if layout is None:
        return None
    length = plan.block_length or 1
    rows = []
    for levels, masked in zip(layout.levels, canvas.masked & canvas.valid, strict=True):
        masks = levels[masked].unique(return_counts=True)[1].tolist()
        total = sum(masks)
        most = length if plan.steps is None or plan.steps >= total else -(-plan.steps * length // total)
        rows.append([count for each in masks for count in even_split(each, min(most, each))])
    return rows
