"""DPLM's sampler: each step draws all residues, with Gumbel noise; the lowest scores are masked, committed or not.

Source: bytedance/dplm src/byprot/models/dplm/dplm.py, generate with disable_resample=True (forward_decoder,
_reparam_decoding "reparam-uncond-deterministic-linear") and models/utils.py; arXiv 2402.18567. The official `resample`,
a second forward of what was drawn where a residue is too frequent, is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import Choice, Diffusion, without_tokens
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM

TINY = 1e-8  # the official guard of the logarithms


class DPLM(Diffusion):
    """Choices as in DPLM's released code, token for token.

    Special tokens and X are never chosen. Temperature 0 is the official "argmax", whose score is the logit; 1 is
    "gumbel_argmax", whose score is the log-probability in nats under the logits with their noise; another temperature
    scales the noise. A committed position is drawn and scored like a masked one and keeps its token, or is masked
    again: int(n (1 - (step + 1) / steps)) of n are masked after a step, fewer where scores are equal. A run ends when
    nothing is masked; the official code runs on, and could mask again only if all scores were equal before.
    """

    def __init__(self, dlm: HookedDLM, start: Start) -> None:
        super().__init__(dlm, start)
        self.never = [dlm.tokenizer.get_vocab()[token] for token in dlm.family.never]

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """Tokens and scores of all positions, and which are masked after the step."""
        fill = self.given.masked & canvas.valid & eligible.any(-1, keepdim=True)  # of rows that are being decoded
        logits = without_tokens(logits, self.never)
        if self.plan.temperature:
            uniform = self.draws.uniform(logits, torch.float32)
            noise = -torch.log(-torch.log(uniform + TINY) + TINY)
            logits = (logits + self.plan.temperature * noise).log_softmax(-1)
        scores, predicted = logits.max(-1)
        sizes = zip(fill.sum(-1).tolist(), self.limits, strict=True)
        counts = torch.tensor([rm.share_left(n, step, limit) for n, limit in sizes])
        lowest = rm.below_cutoff(scores, fill, counts)
        confidence = scores.masked_fill(~canvas.masked, float("nan"))
        return Choice(predicted, confidence, eligible & ~lowest, lowest & ~canvas.masked)
