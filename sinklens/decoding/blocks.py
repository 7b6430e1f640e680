"""Decoding block by block: where a row's blocks lie, which one is being decided, and how its commits are spread."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.decoding.plan import Plan
from sinklens.decoding.remasking import even_split, rounded_split
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

    @staticmethod
    def level_of(canvas: Canvas, row: int) -> int:
        """The block of one row that is being decided, of what a step sees."""
        if canvas.levels is None or canvas.block is None:
            return 0
        return int(canvas.levels[row, canvas.block[row]].max())


def steps_of_a_block(plan: Plan, canvas: Canvas) -> list[int]:
    """How many steps a whole block of each row takes: its share of the plan's steps, at most one per position."""
    length, rows = plan.block_length or 1, (canvas.masked & canvas.valid).sum(-1).tolist()
    if plan.steps is None:
        return [length] * len(rows)
    return [length if plan.steps >= total else -(-plan.steps * length // total) for total in rows]


def counts(dlm: Sketched, plan: Plan, canvas: Canvas) -> list[list[int]] | None:
    """How many positions each step of each row commits, block after block; None for a model that sees otherwise.

    An even split of each block's masks over its steps, the remainder first (LLaDA); as dllm rounds it ("dllm"); or an
    even split of the block's length, until no mask is left ("sdar"). A block takes its share of the plan's steps, at
    most one per mask: the first has fewer masks where a prompt's last tokens share it.
    """
    layout = Layout.of(dlm, plan, canvas)
    if layout is None:
        return None
    rows = []
    steps = steps_of_a_block(plan, canvas)
    for levels, masked, most in zip(layout.levels, canvas.masked & canvas.valid, steps, strict=True):
        masks = levels[masked].unique(return_counts=True)[1].tolist()
        rows.append([count for each in masks for count in _split(plan, each, most)])
    return rows


def _split(plan: Plan, masks: int, steps: int) -> list[int]:
    """How many of a block's masks each step commits."""
    if plan.sampler == "dllm":
        return rounded_split(masks, steps)
    if plan.sampler != "sdar":
        return even_split(masks, min(steps, masks))
    taken = []
    for share in even_split(plan.block_length or 1, steps):
        taken.append(min(share, masks - sum(taken)))
    return [count for count in taken if count]
