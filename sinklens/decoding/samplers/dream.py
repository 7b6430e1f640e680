"""Dream's sampler: timesteps from 1 to eps, categorical draws with top_p and top_k.

Source: Dream generation_utils.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.plan_rules import EPS
from sinklens.decoding.samplers.base import ByConfidence, Choice
from sinklens.hooks import Canvas


class Dream(ByConfidence):
    """Choices as in Dream's released code, token for token."""

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """Tokens from the tempered distribution; the most confident positions, or each with its timestep's share."""
        probabilities = rm.tempered(logits, self.plan.temperature, self.plan.top_p, self.plan.top_k)
        if self.plan.remasking == "origin":
            # The official code draws tokens only where it commits; elsewhere the likeliest one is shown.
            committed = self._revealed(eligible, step)
            likeliest = self.unmasked(probabilities, logits).argmax(-1)
            predicted = torch.where(committed, self._tokens(probabilities, logits, committed), likeliest)
            confidence = rm.probability_of(predicted, probabilities)
        else:
            predicted = self._tokens(probabilities, logits, eligible)
            confidence = self.confidence(probabilities, predicted)
            committed = self.commits(confidence, eligible, step)
        return Choice(predicted, confidence.masked_fill(~canvas.masked, float("nan")), committed)

    def commits(self, confidence: Tensor, eligible: Tensor, step: int) -> Bool[Tensor, "batch pos"]:
        """The most confident positions, or drawn by confidence (`alg_temp`)."""
        if self.plan.threshold is not None or not self.plan.alg_temp:
            return super().commits(confidence, eligible, step)
        weights = (confidence.masked_fill(~eligible, float("-inf")) / self.plan.alg_temp).softmax(-1)
        return self.draws.subset(weights.nan_to_num(), self.counts(eligible, step).tolist())

    def counts(self, eligible: Tensor, step: int) -> Int[Tensor, " batch"]:
        """The timestep's share of what is left."""
        left = zip(eligible.sum(-1).tolist(), self.limits, strict=True)
        eps = self._eps
        return torch.tensor([rm.timestep_count(n, step, limit, eps) if step < limit else 0 for n, limit in left])

    def _tokens(self, probabilities: Tensor, logits: Tensor, places: Tensor) -> Int[Tensor, "batch pos"]:
        """The official draw; where it falls on a mask that may not be chosen, another one among the rest."""
        rest = self.unmasked(probabilities, logits)
        if self.plan.temperature == 0:
            return rest.argmax(-1)
        drawn = self.draws.categorical(probabilities, places)
        if self.plan.allow_mask:
            return drawn
        again = places & (drawn == self.mask)
        return torch.where(again, self.draws.categorical(rest, again), drawn)

    def _revealed(self, eligible: Tensor, step: int) -> Bool[Tensor, "batch pos"]:
        shares = [rm.reveal_probability(min(step, limit - 1), limit, self._eps) for limit in self.limits]
        return eligible & (self.draws.where(eligible) < torch.stack(shares).to(eligible.device)[:, None])

    @property
    def _eps(self) -> float:
        return EPS["dream"] if self.plan.eps is None else self.plan.eps
