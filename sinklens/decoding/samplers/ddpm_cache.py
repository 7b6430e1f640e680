"""MDLM's sampler ddpm_cache: each masked position takes a token, or stays, by one race of exponential clocks.

Source: kuleshov-group/mdlm diffusion.py, _sample and _ddpm_caching_update. The official code keeps the logits of a step
that changed nothing; a forward of the same canvas gives them again, and here it is run, so that every step is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.plan_rules import EPS
from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import Choice, Diffusion, without_tokens
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM

TINY = 1e-10  # the official guard of the logarithms


class DDPMCache(Diffusion):
    """Choices as in MDLM's released code, token for token."""

    def __init__(self, dlm: HookedDLM, start: Start) -> None:
        super().__init__(dlm, start)
        eps = EPS["ddpm_cache"] if start.plan.eps is None else start.plan.eps
        # The last step of a row is the noise removal, behind the last timestep.
        self.times = [torch.linspace(1, eps, limit) for limit in self.limits]
        self.gaps = [(1 - eps) / max(limit - 1, 1) for limit in self.limits]

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """Tokens with their probability times t - s, the mask with s; at the last step the likeliest tokens."""
        logits = without_tokens(logits, [self.mask])  # SUBS: the mask is never predicted
        tempered = rm.tempered(logits, self.plan.temperature, self.plan.top_p, self.plan.top_k)
        likeliest = logits.argmax(-1)
        if self.plan.temperature == 0:
            tempered = torch.zeros_like(logits).scatter(-1, likeliest[..., None], 1.0)
        final = torch.tensor([step >= limit - 1 for limit in self.limits], device=logits.device)[:, None]
        now = torch.stack([t[min(step, len(t) - 1)] for t in self.times]).to(logits.device)[:, None]
        before = now - torch.tensor(self.gaps, device=logits.device)[:, None]
        weights = tempered * (now - before)[..., None]
        weights[..., self.mask] = before
        clocks = TINY - (self.draws.uniform(weights, torch.float32) + TINY).log()
        drawn = (weights / clocks).argmax(-1)
        committed = eligible & (final | (drawn != self.mask))
        predicted = torch.where(committed & ~final, drawn, likeliest)
        confidence = rm.probability_of(predicted, logits.softmax(-1))
        return Choice(predicted, confidence.masked_fill(~canvas.masked, float("nan")), committed)
