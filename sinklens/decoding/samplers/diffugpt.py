"""DiffuGPT's and DiffuLLaMA's sampler: each masked position is revealed by chance, with a token of top_p draws.

Source: HKUNLP/DiffuLLaMA model.py, generate_samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import Choice, Diffusion
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM


class DiffuGPT(Diffusion):
    """Choices as in DiffuLLaMA's released code, token for token."""

    def __init__(self, dlm: HookedDLM, start: Start) -> None:
        super().__init__(dlm, start)
        for row, size in enumerate(start.canvas.valid.sum(-1).tolist()):
            self.draws.bernoulli(size * size, row)  # the official mask of attention, which lets everything through

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """A draw for every position; every masked one is revealed with probability 1 / (steps that are left)."""
        probabilities = rm.tempered(logits, self.plan.temperature, self.plan.top_p, self.plan.top_k)
        predicted = self._tokens(probabilities, logits, canvas, eligible)
        chance = self.draws.uniform(predicted, torch.float32)
        left = torch.tensor([max(limit - step, 1) for limit in self.limits], device=chance.device)
        committed = eligible & (chance < 1 / left[:, None])
        confidence = rm.probability_of(predicted, probabilities)
        return Choice(predicted, confidence.masked_fill(~canvas.masked, float("nan")), committed)

    def _tokens(
        self, probabilities: Tensor, logits: Tensor, canvas: Canvas, eligible: Tensor
    ) -> Int[Tensor, "batch pos"]:
        """The official draws, for given positions, too; where one falls on a mask that may not be chosen, another."""
        rest = self.unmasked(probabilities, logits)
        if self.plan.temperature == 0:
            return rest.argmax(-1)
        if self.dlm.family.shift:  # the official code draws for each row of logits, and then moves what it drew
            there, back = _rows(canvas.valid)
            rows = probabilities.gather(1, there[..., None].expand_as(probabilities))
            drawn = self.draws.categorical(rows, canvas.valid).gather(1, back)
        else:
            drawn = self.draws.categorical(probabilities, canvas.valid)
        if self.plan.allow_mask:
            return drawn
        again = eligible & (drawn == self.mask)
        return torch.where(again, self.draws.categorical(rest, again), drawn)


def _rows(valid: Tensor) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Which aligned position each raw row of logits is about (the last of none: the first, then), and the way back."""
    place = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    first, last = valid.long().argmax(-1, keepdim=True), valid.shape[1] - 1
    return torch.where(place < last, place + 1, first), torch.where(place > first, place - 1, last)
