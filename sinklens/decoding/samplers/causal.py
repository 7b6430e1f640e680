"""The autoregressive baselines' sampler: one position after the other, each from what stands to its left."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.samplers.base import Choice, Sampler, without_tokens
from sinklens.hooks import Canvas


class Causal(Sampler):
    """It sees what is left of its next position and commits that one."""

    def seen(self, canvas: Canvas) -> Canvas:
        """What stands to the left of each row's next position."""
        following = self._next(canvas)
        length = int(following[following < canvas.masked.shape[-1]].max())
        position = torch.arange(length, device=following.device)
        valid = canvas.valid[:, :length] & (position < following[:, None])
        return canvas.cut(valid)

    def last_only(self, canvas: Canvas, active: Tensor) -> bool:
        """Unless the rows' gaps are at different places."""
        following = self._next(canvas)
        seen = following[following < canvas.masked.shape[-1]].max()
        return bool((following == seen)[active].all())

    def ended(self, before: Canvas, after: Canvas, committed: Tensor) -> Tensor:
        """Rows that have written an EOS."""
        ends = torch.tensor(self.dlm.ids.eos, dtype=torch.long, device=after.tokens.device)
        return (committed & torch.isin(after.tokens, ends)).any(-1)

    def choose(self, logits: Tensor, canvas: Canvas, seen: Canvas, active: Tensor) -> Choice:
        """A token for the next position of each active row, which is committed."""
        following = self._next(canvas)
        row = torch.arange(len(following), device=following.device)
        first = seen.tokens.shape[1] + 1 - logits.shape[1]  # the position that the first row of logits is about
        scores = logits[row, (following - first).clamp(0, logits.shape[1] - 1)].float()[:, None]
        if self.plan.suppress_eos in ("logits", "both"):
            scores = without_tokens(scores, list(self.dlm.ids.eos))
        probabilities = rm.tempered(scores, self.plan.temperature, self.plan.top_p, self.plan.top_k)
        if self.plan.temperature == 0:
            token = probabilities.argmax(-1)
        else:
            token = self.draws.categorical(probabilities, active[:, None])
        place = following.clamp(max=canvas.masked.shape[-1] - 1)
        committed = torch.zeros_like(canvas.masked)
        committed[row, place] = active
        predicted = torch.where(committed, token, canvas.tokens)
        confidence = torch.full(canvas.masked.shape, float("nan"), device=place.device)
        confidence[row, place] = rm.probability_of(token, probabilities)[:, 0].where(active, torch.nan)
        return Choice(predicted, confidence, committed)

    def _next(self, canvas: Canvas) -> Int[Tensor, " batch"]:
        """The first masked position of each row; the canvas's length where there is none."""
        position = torch.arange(canvas.masked.shape[-1], device=canvas.masked.device)
        return torch.where(canvas.masked, position, len(position)).amin(-1)
