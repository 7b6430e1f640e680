"""LLaDA's sampler: blocks from left to right, an even split of commits over steps, Gumbel-max draws.

Source: ML-GSAI/LLaDA generate.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.blocks import counts
from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import ByConfidence, Choice, without_tokens
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM


class LLaDA(ByConfidence):
    """Choices as in LLaDA's released code, token for token."""

    def __init__(self, dlm: HookedDLM, start: Start) -> None:
        super().__init__(dlm, start)
        plan, masks = start.plan, start.canvas.masked.sum(-1).tolist()
        self.length, in_blocks = plan.block_length or 0, counts(dlm, plan, start.canvas)
        if in_blocks is not None:
            self.splits = in_blocks
        elif self.length:
            per_block = (plan.steps or 1) * self.length // plan.new_tokens
            split = rm.even_split(self.length, per_block) * (plan.new_tokens // self.length)
            self.splits = [split] * len(masks)
        else:
            self.splits = [rm.even_split(n, limit) for n, limit in zip(masks, start.limits, strict=True)]

    def block(self, canvas: Canvas) -> Bool[Tensor, "batch pos"] | None:
        """The block with each row's first mask."""
        if not self.length:
            return None
        response = canvas.valid.shape[-1] - self.plan.new_tokens
        position = torch.arange(canvas.valid.shape[-1], device=canvas.valid.device)
        first = torch.where(canvas.masked & (position >= response), position, position[-1]).amin(-1, keepdim=True)
        begin = response + (first - response) // self.length * self.length
        return (position >= begin) & (position < begin + self.length)

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """Gumbel-max tokens; the most confident positions. EOS and EoT may have to wait for all others."""
        drawn = None if self.layout is None else canvas.block
        predicted = rm.gumbel_argmax(self.choosable(logits), self.plan.temperature, self.draws, drawn)
        if self.plan.suppress_eos in ("confidence", "both"):
            late = [*self.dlm.ids.eos, *(() if self.dlm.ids.eot is None else (self.dlm.ids.eot,))]
            logits = without_tokens(logits, late)
        confidence = self.confidence(logits.softmax(-1), predicted, drawn)
        committed = self.commits(confidence, eligible, step)
        return Choice(predicted, confidence.masked_fill(~canvas.masked, float("nan")), committed)

    def counts(self, eligible: Tensor, step: int) -> Int[Tensor, " batch"]:
        """An even split of each block over its steps."""
        return torch.tensor([split[step] if step < len(split) else 0 for split in self.splits])
