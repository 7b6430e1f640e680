"""Open-dLLM's sampler p2 (path planning): after each step the least confident are masked, also committed ones.

Source: pengzhangzhi/Open-dLLM veomni/models/transformers/qwen2/generation_utils.py, _mdm_sample with alg "p2"; path
planning is arXiv 2502.03540.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.samplers.base import Choice, Diffusion
from sinklens.hooks import Canvas


class P2(Diffusion):
    """Choices as in Open-dLLM's released code, token for token.

    Each step draws a token for every position, those with a token, too. Of the positions that were masked at first
    those are masked after the step whose drawn tokens are least likely, int(n (1 - (step + 1) / steps)) of n; of the
    others the masked ones take the drawn token, and the committed ones keep theirs, whatever was drawn.
    """

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """Tokens from the tempered distribution, and which positions are masked after the step."""
        fill = self.given.masked & canvas.valid & eligible.any(-1, keepdim=True)  # of rows that are being decoded
        probabilities = rm.tempered(logits, self.plan.temperature, self.plan.top_p, self.plan.top_k)
        predicted = self._tokens(probabilities, logits, canvas, fill)
        confidence = rm.probability_of(predicted, probabilities)
        sizes = zip(fill.sum(-1).tolist(), self.limits, strict=True)
        counts = torch.tensor([rm.share_left(n, step, limit) for n, limit in sizes])
        lowest = rm.least_confident(confidence, fill, counts)
        confidence = confidence.masked_fill(~canvas.masked, float("nan"))
        return Choice(predicted, confidence, eligible & ~lowest, lowest & ~canvas.masked)

    def _tokens(
        self, probabilities: Tensor, logits: Tensor, canvas: Canvas, fill: Bool[Tensor, "batch pos"]
    ) -> Int[Tensor, "batch pos"]:
        """The official draws, for given positions, too; where one falls on a mask that may not be chosen, another."""
        rest = self.unmasked(probabilities, logits)
        if self.plan.temperature == 0:
            return rest.argmax(-1)
        drawn = self.draws.categorical(probabilities, canvas.valid)
        if self.plan.allow_mask:
            return drawn
        again = fill & (drawn == self.mask)
        return torch.where(again, self.draws.categorical(rest, again), drawn)
