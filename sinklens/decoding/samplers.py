"""What one decoding step chooses: which token at every position, and which positions to commit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.plan import Plan
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM


class Diffusion:
    """Choices of a diffusion model: what it sees, which token everywhere, which positions to commit."""

    def __init__(self, dlm: HookedDLM, plan: Plan, draws: rm.Draws, given: Canvas, limits: list[int]) -> None:
        self.dlm, self.plan, self.draws, self.given, self.limits = dlm, plan, draws, given, limits
        self.block = plan.block_length or 0
        self.mask = -1 if dlm.ids.mask is None else dlm.ids.mask
        masks = given.masked.sum(-1).tolist()
        if self.block:
            per_block = (plan.steps or 1) * self.block // plan.new_tokens
            self.counts = [rm.even_split(self.block, per_block) * (plan.new_tokens // self.block)] * len(masks)
        else:
            self.counts = [rm.even_split(n, limit) for n, limit in zip(masks, limits, strict=True)]

    def seen(self, canvas: Canvas) -> Canvas:
        """All of the canvas."""
        return canvas

    def choose(self, logits: Tensor, canvas: Canvas, active: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, confidence (nan where not masked) and which positions to commit, each [batch, pos]."""
        plan, ids = self.plan, self.dlm.ids
        if plan.cfg_scale:
            logits = self._guided(logits, canvas)
        logits = logits.float()
        forbidden = [] if plan.allow_mask else [self.mask]
        forbidden += [ids.eos] if plan.suppress_eos in ("logits", "both") and ids.eos is not None else []
        if forbidden:
            logits = logits.index_fill(-1, torch.tensor(forbidden, device=logits.device), float("-inf"))
        eligible = canvas.masked & canvas.valid & active[:, None] & self._block_mask(canvas)
        if plan.sampler == "llada":
            predicted = rm.gumbel_argmax(logits, plan.temperature, self.draws)
            late = [token for token in (ids.eos, ids.eot) if token is not None]
            if plan.suppress_eos in ("confidence", "both") and late:
                logits = logits.index_fill(-1, torch.tensor(late, device=logits.device), float("-inf"))
            probabilities = logits.softmax(-1)
        else:
            probabilities = rm.tempered(logits, plan.temperature, plan.top_p, plan.top_k)
            if plan.remasking == "origin":
                return self._origin(probabilities, canvas, eligible, step)
            predicted = self._categorical(probabilities, eligible)
        confidence = self._confidence(probabilities, predicted)
        if plan.threshold is not None:
            commit = rm.above_threshold(confidence, eligible, plan.threshold)
        else:
            counts = self._counts(eligible, step)
            if plan.alg_temp:
                weights = (confidence.masked_fill(~eligible, float("-inf")) / plan.alg_temp).softmax(-1)
                commit = self.draws.subset(weights.nan_to_num(), counts.tolist())
            else:
                commit = rm.most_confident(confidence, eligible, counts)
        return predicted, confidence.masked_fill(~canvas.masked, float("nan")), commit

    def _guided(self, logits: Tensor, canvas: Canvas) -> Tensor:
        blind = canvas.tokens.masked_fill(self.given.prompt, self.mask)
        without = self.dlm(blind, canvas.valid)
        return without + (self.plan.cfg_scale + 1) * (logits - without)

    def _block_mask(self, canvas: Canvas) -> Tensor:
        """Positions up to the end of each row's current block: the one with its first mask."""
        if not self.block:
            return torch.ones_like(canvas.valid)
        response = canvas.valid.shape[-1] - self.plan.new_tokens
        position = torch.arange(canvas.valid.shape[-1], device=canvas.valid.device)
        first = torch.where(canvas.masked & (position >= response), position, position[-1]).amin(-1, keepdim=True)
        end = response + ((first - response) // self.block + 1) * self.block
        return position < end

    def _confidence(self, probabilities: Tensor, predicted: Tensor) -> Tensor:
        match self.plan.remasking:
            case "random":
                return self.draws.uniform(predicted, torch.float32)
            case "margin":
                return rm.margin(probabilities)
            case "entropy":
                return rm.negative_entropy(probabilities)
            case _:
                return rm.chosen(probabilities, predicted)

    def _categorical(self, probabilities: Tensor, places: Tensor) -> Tensor:
        if self.plan.temperature == 0:
            return probabilities.argmax(-1)
        return self.draws.categorical(probabilities, places)

    def _counts(self, eligible: Tensor, step: int) -> Tensor:
        if self.plan.sampler == "llada":
            return torch.tensor([row[step] if step < len(row) else 0 for row in self.counts])
        masks = eligible.sum(-1).tolist()
        return torch.tensor(
            [
                rm.timestep_count(n, step, limit, self.plan.eps) if step < limit else 0
                for n, limit in zip(masks, self.limits, strict=True)
            ]
        )

    def _origin(
        self, probabilities: Tensor, canvas: Canvas, eligible: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        reveal = torch.stack(
            [rm.reveal_probability(min(step, limit - 1), limit, self.plan.eps) for limit in self.limits]
        ).to(eligible.device)
        commit = eligible & (self.draws.where(eligible) < reveal[:, None])
        predicted = self._categorical(probabilities, commit)
        predicted = torch.where(commit, predicted, probabilities.argmax(-1))
        confidence = rm.chosen(probabilities, predicted)
        return predicted, confidence.masked_fill(~canvas.masked, float("nan")), commit


class Causal:
    """Choices of an autoregressive baseline: it sees what is left of its next position and commits that one."""

    def __init__(self, dlm: HookedDLM, plan: Plan, draws: rm.Draws) -> None:
        self.dlm, self.plan, self.draws = dlm, plan, draws

    def _next(self, canvas: Canvas) -> Tensor:
        position = torch.arange(canvas.masked.shape[-1], device=canvas.masked.device)
        return torch.where(canvas.masked, position, len(position)).amin(-1)

    def seen(self, canvas: Canvas) -> Canvas:
        """What stands to the left of each row's next position."""
        until = self._next(canvas)
        length = int(until[until < canvas.masked.shape[-1]].max())
        position = torch.arange(length, device=until.device)
        valid = canvas.valid[:, :length] & (position < until[:, None])
        return replace(
            canvas,
            tokens=canvas.tokens[:, :length],
            valid=valid,
            masked=canvas.masked[:, :length] & valid,
            prompt=canvas.prompt[:, :length],
        )

    def choose(self, logits: Tensor, canvas: Canvas, active: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """As for a diffusion model; only the next position of each active row is committed."""
        at = self._next(canvas).clamp(max=canvas.masked.shape[-1] - 1)
        row = torch.arange(len(at), device=at.device)
        scores = logits[row, (at - 1).clamp(max=logits.shape[1] - 1)].float()[:, None]
        if self.plan.suppress_eos in ("logits", "both") and self.dlm.ids.eos is not None:
            scores = scores.index_fill(-1, torch.tensor([self.dlm.ids.eos], device=scores.device), float("-inf"))
        probabilities = rm.tempered(scores, self.plan.temperature, self.plan.top_p, self.plan.top_k)
        here = active[:, None]
        drawn = probabilities.argmax(-1) if self.plan.temperature == 0 else self.draws.categorical(probabilities, here)
        commit = torch.zeros_like(canvas.masked)
        commit[row, at] = active
        predicted = torch.where(commit, drawn, canvas.tokens)
        confidence = torch.full(canvas.masked.shape, float("nan"), device=at.device)
        confidence[row, at] = rm.chosen(probabilities, drawn)[:, 0].where(active, torch.nan)
        return predicted, confidence, commit
