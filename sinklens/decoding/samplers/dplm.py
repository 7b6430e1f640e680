"""DPLM's sampler: each step draws all residues, with Gumbel noise; the lowest scores are masked, committed or not.

Source: bytedance/dplm src/byprot/models/dplm/dplm.py, generate (forward_decoder, resample, _reparam_decoding with
"reparam-uncond-deterministic-linear"), and models/utils.py; arXiv 2402.18567.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.finite import finite
from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import Choice, Diffusion, without_tokens
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM

TINY = 1e-8  # the official guard of the logarithms
NUCLEUS = 0.95  # of what is drawn once more


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
        known = dlm.tokenizer.get_vocab()  # `Plan.resolved` has seen that it names them
        self.never = [known[token] for token in dlm.family.never]

    def pick(self, logits: Tensor, canvas: Canvas, eligible: Tensor, step: int) -> Choice:
        """Tokens and scores of all positions, and which are masked after the step."""
        active = eligible.any(-1)
        fill = self.given.masked & canvas.valid & active[:, None]
        predicted, scores = self._drawn(without_tokens(logits, self.never))
        if self.plan.resample is not None:
            predicted, scores = self._once_more(predicted, scores, canvas, active, self.plan.resample)
        sizes = zip(fill.sum(-1).tolist(), self.limits, strict=True)
        counts = torch.tensor([rm.share_left(n, step, limit) for n, limit in sizes])
        lowest = rm.below_cutoff(scores, fill, counts)
        confidence = scores.masked_fill(~canvas.masked, float("nan"))
        return Choice(predicted, confidence, eligible & ~lowest, lowest & ~canvas.masked)

    def _drawn(
        self, logits: Float[Tensor, "row pos vocab"], rows: list[int] | None = None
    ) -> tuple[Int[Tensor, "row pos"], Float[Tensor, "row pos"]]:
        """A token for every position of some rows of the run, all when None, and its score."""
        if self.plan.temperature:
            uniform = self.draws.uniform(logits, torch.float32, rows)
            noise = -torch.log(-torch.log(uniform + TINY) + TINY)
            logits = (logits + self.plan.temperature * noise).log_softmax(-1)
        scores, tokens = logits.max(-1)
        return tokens, scores

    def _once_more(
        self,
        tokens: Int[Tensor, "batch pos"],
        scores: Float[Tensor, "batch pos"],
        canvas: Canvas,
        active: Bool[Tensor, " batch"],
        share: float,
    ) -> tuple[Int[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
        """The same, where frequent residues stood those of another draw; the forward sees only what was drawn."""
        frequent = _frequent(tokens, canvas.valid, share) & active[:, None]
        rows = frequent.any(-1).nonzero()[:, 0].tolist()
        if not rows:
            return tokens, scores
        blind, valid = tokens.masked_fill(frequent, self.mask)[rows], canvas.valid[rows]
        parts = {"masked": frequent[rows], "prompt": canvas.prompt[rows], "active": active[rows], "block": None}
        seen = replace(canvas, tokens=blind, valid=valid, **parts)
        logits = finite(self.dlm, seen, lambda: self.dlm(blind, attention_mask=valid))
        self.forwards["resample"] += 1
        logits = without_tokens(self.dlm.by_position(logits).float(), self.never)
        tokens_again, scores_again = self._drawn(rm.nucleus(logits, NUCLEUS), rows)
        tokens, scores, here = tokens.clone(), scores.clone(), frequent[rows]
        tokens[rows] = torch.where(here, tokens_again, tokens[rows])
        scores[rows] = torch.where(here, scores_again, scores[rows])
        return tokens, scores


def _frequent(
    tokens: Int[Tensor, "batch pos"], valid: Bool[Tensor, "batch pos"], share: float
) -> Bool[Tensor, "batch pos"]:
    """Where a token stands that makes up more than a share of its row."""
    same = (tokens[:, :, None] == tokens[:, None, :]) & valid[:, None, :]
    sizes = valid.sum(-1).tolist()
    limit = torch.tensor([size * share for size in sizes], dtype=torch.float64, device=tokens.device)
    return valid & (same.sum(-1) > limit[:, None])
