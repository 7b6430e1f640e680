"""SDAR's and LLaDA2's sampler: a draw for every position of the block, commits by the probability of what was drawn.

Source: JetAstra/SDAR generate.py, block_diffusion_generate; dllm pipelines/llada2/sampler.py, LLaDA2Sampler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.blocks import Layout, steps_of_a_block
from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import Choice, Diffusion
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM


class SDAR(Diffusion):
    """Choices as in SDAR's and LLaDA2's released code, token for token.

    A step commits its share of a block, an even split of its length, the most probable drawn tokens first; or all that
    are more probable than the threshold (>), if those are as many at least. At temperature 0 tokens are the likeliest
    (LLaDA2; SDAR divides by the temperature). Not followed: where fewer masks are left than a step's share, SDAR's
    static code overwrites tokens that stand there already.
    """

    def __init__(self, dlm: HookedDLM, start: Start) -> None:
        super().__init__(dlm, start)
        self.shares = [
            rm.even_split(self.plan.block_length or 1, steps) for steps in steps_of_a_block(self.plan, start.canvas)
        ]
        self.at: list[tuple[int, int]] = [(-1, 0)] * len(start.limits)  # of each row: its block, and the step in it

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """A token for every position of the block; the most probable of them."""
        plan, block = self.plan, canvas.positions("block")
        probabilities = rm.filtered(logits, plan.temperature, plan.top_k, plan.top_p)
        if plan.temperature == 0:
            predicted = self.choosable(logits).argmax(-1)
        else:
            predicted = self.draws.categorical(self.unmasked(probabilities, logits), block)
        confidence = rm.probability_of(predicted, probabilities)
        if plan.remasking == "sequential":
            confidence = -torch.arange(block.shape[1], device=block.device).expand_as(confidence).to(confidence.dtype)
        counts = torch.tensor(self._counts(canvas, eligible))
        committed = rm.most_confident(confidence, eligible, counts)
        if plan.threshold is not None:
            sure = eligible & (confidence > plan.threshold)
            enough = sure.sum(-1) >= counts.to(sure.device)
            committed = torch.where(enough[:, None], sure, committed)
        return Choice(predicted, confidence.masked_fill(~canvas.masked, float("nan")), committed)

    def _counts(self, canvas: Canvas, eligible: Tensor) -> list[int]:
        """How many positions of each row this step commits, or must be sure of."""
        counts = []
        for row, share in enumerate(self.shares):
            if not bool(eligible[row].any()):
                counts.append(0)
                continue
            level = Layout.level_of(canvas, row)
            before, within = self.at[row]
            within = within + 1 if before == level else 0
            self.at[row] = level, within
            counts.append(share[within] if within < len(share) else 0)
        return counts
