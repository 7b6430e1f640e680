"""What samplers share: the protocol, and what all diffusion samplers do before and after their own choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sinklens.decoding import remasking as rm
from sinklens.decoding.blocks import Layout
from sinklens.decoding.draws import Draws
from sinklens.decoding.finite import finite
from sinklens.decoding.prompts import Start
from sinklens.hooks import Canvas
from sinklens.models.hooked_dlm import HookedDLM


class Choice(NamedTuple):
    """What a step chose.

    Attributes:
        predicted: A token for every masked position [batch, pos].
        confidence: How sure the model is of it; nan where nothing is masked [batch, pos].
        committed: The positions to commit [batch, pos].
        remasked: Committed positions that are masked again [batch, pos]; None from a sampler that never does so.
    """

    predicted: Int[Tensor, "batch pos"]
    confidence: Float[Tensor, "batch pos"]
    committed: Bool[Tensor, "batch pos"]
    remasked: Bool[Tensor, "batch pos"] | None = None

    def widened(self, tokens: Int[Tensor, "batch pos"], before: int = 0) -> Choice:
        """The same of a canvas with `before` positions before what was asked, and more behind: nothing is chosen there.

        Args:
            tokens: The whole canvas, whose tokens stand there.
            before: How many.
        """
        end = before + self.predicted.shape[1]
        if not before and end == tokens.shape[1]:
            return self
        around = (before, tokens.shape[1] - end)
        return Choice(
            torch.cat([tokens[:, :before], self.predicted, tokens[:, end:]], 1),
            F.pad(self.confidence, around, value=torch.nan),
            F.pad(self.committed, around),
            None if self.remasked is None else F.pad(self.remasked, around),
        )


class Sampler(ABC):
    """The choices of one run. Holds its random numbers, so that a run needs a new one.

    Args:
        dlm: The model.
        start: The prepared run.
    """

    def __init__(self, dlm: HookedDLM, start: Start) -> None:
        self.dlm, self.plan, self.given, self.limits = dlm, start.plan, start.canvas, start.limits
        self.draws = Draws(start.canvas.seeds, start.starts)
        self.layout = Layout.of(dlm, start.plan, start.canvas)
        self.forwards = Counter[str]()

    @property
    def mask(self) -> int:
        """Id of the mask token, -1 where there is none."""
        return -1 if self.dlm.ids.mask is None else self.dlm.ids.mask

    def seen(self, canvas: Canvas) -> Canvas:
        """What the model sees of a canvas: all of it, or what there is up to the end of the block."""
        return replace(canvas, block=self.block(canvas)) if self.layout is None else self.layout.seen(canvas)

    def block(self, canvas: Canvas) -> Bool[Tensor, "batch pos"] | None:
        """Positions of the block that is being decided, of a sampler that goes block by block; else None."""
        return None

    def ended(self, before: Canvas, after: Canvas, committed: Bool[Tensor, "batch pos"]) -> Bool[Tensor, " batch"]:
        """Rows whose text has ended with this step, though positions behind its end are still masked.

        Of a model that sees block by block: whose block is full, and that have written an EOS (the official code of
        such models stops there, too).
        """
        if self.layout is None:
            return torch.zeros_like(after.rows)
        ends = torch.tensor(self.dlm.ids.eos, dtype=torch.long, device=after.tokens.device)
        written = ~after.prompt & ~after.masked & after.valid & torch.isin(after.tokens, ends)
        block = before.block if before.block is not None else before.valid
        return written.any(-1) & ~(after.masked[:, : block.shape[1]] & block).any(-1)

    def last_only(self, canvas: Canvas, active: Bool[Tensor, " batch"]) -> bool:
        """Whether all active rows are decided by the last row of logits that the model gives now."""
        return False

    @abstractmethod
    def choose(
        self,
        logits: Float[Tensor, "batch scored vocab"],
        canvas: Canvas,
        seen: Canvas,
        active: Bool[Tensor, " batch"],
    ) -> Choice:
        """Tokens, confidences and positions, of the whole canvas.

        Args:
            logits: Row i scores the token at position i (`dlm.by_position`); or the last row alone (`last_only`).
            canvas: The whole canvas, whatever the model saw of it.
            seen: What it saw, at this step.
            active: Rows that are still being decoded.
        """


class Diffusion(Sampler):
    """Guidance, and tokens that may not be chosen; a sampler adds its own choice."""

    def choose(self, logits: Tensor, canvas: Canvas, seen: Canvas, active: Tensor) -> Choice:
        """As the official samplers: guide, forbid, choose tokens, choose positions."""
        before = seen.tokens.shape[1] - logits.shape[1]
        choice = self._choose(logits, seen.behind(before) if before else seen, active)
        return choice.widened(canvas.tokens, before)

    def _choose(self, logits: Tensor, canvas: Canvas, active: Tensor) -> Choice:
        if self.plan.cfg_scale:
            logits = self._guided(logits, canvas)
        logits = evened(logits, canvas)
        logits = self._allowed(logits.float())
        eligible = canvas.masked & canvas.valid & active[:, None]
        return self.pick(logits, canvas, eligible if canvas.block is None else eligible & canvas.block, canvas.step)

    @abstractmethod
    def pick(
        self,
        logits: Float[Tensor, "batch pos vocab"],
        canvas: Canvas,
        eligible: Bool[Tensor, "batch pos"],
        step: int,
    ) -> Choice:
        """The sampler's own choice among positions that may be committed."""

    def _guided(self, logits: Tensor, canvas: Canvas) -> Tensor:
        blind = canvas.tokens.masked_fill(self.given.prompt, self.mask)
        seen = replace(canvas, tokens=blind)
        without = finite(self.dlm, seen, lambda: self.dlm(blind, attention_mask=canvas.valid))
        self.forwards["guidance"] += 1
        return without + (self.plan.cfg_scale + 1) * (logits - without)

    def _allowed(self, logits: Tensor) -> Tensor:
        forbidden = self.dlm.ids.eos if self.plan.suppress_eos in ("logits", "both") else []
        return without_tokens(logits, list(forbidden))

    def choosable(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of tokens that may be chosen. Confidences are the official ones: of all logits, the mask's too."""
        return without_tokens(logits, [] if self.plan.allow_mask else [self.mask])

    def unmasked(
        self, probabilities: Float[Tensor, "batch pos vocab"], logits: Float[Tensor, "batch pos vocab"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Weights of tokens that may be chosen; of the likeliest of them alone where the nucleus is only the mask."""
        if self.plan.allow_mask:
            return probabilities
        rest = probabilities.index_fill(-1, torch.tensor([self.mask], device=logits.device), 0.0)
        likeliest = torch.zeros_like(rest).scatter(-1, self.choosable(logits).argmax(-1, keepdim=True), 1.0)
        return torch.where(rest.sum(-1, keepdim=True) > 0, rest, likeliest)


class ByConfidence(Diffusion):
    """Commits by confidence; a sampler adds its counts."""

    @abstractmethod
    def counts(self, eligible: Bool[Tensor, "batch pos"], step: int) -> Int[Tensor, " batch"]:
        """How many positions of each row a step commits, if no threshold decides."""

    def confidence(
        self, probabilities: Tensor, predicted: Tensor, block: Tensor | None = None
    ) -> Float[Tensor, "batch pos"]:
        """The remasking rule's confidence in the chosen tokens; of a `block` alone, if it is by chance."""
        match self.plan.remasking:
            case "random":
                return self.draws.uniform(predicted, torch.float32, block=block)
            case "margin":
                return rm.margin(probabilities)
            case "entropy":
                return rm.negative_entropy(probabilities)
            case _:
                return rm.probability_of(predicted, probabilities)

    def commits(self, confidence: Tensor, eligible: Tensor, step: int) -> Bool[Tensor, "batch pos"]:
        """The most confident positions, or all that reach the threshold."""
        if self.plan.threshold is not None:
            return rm.above_threshold(confidence, eligible, self.plan.threshold)
        return rm.most_confident(confidence, eligible, self.counts(eligible, step))


def without_tokens(logits: Float[Tensor, "*batch vocab"], tokens: list[int]) -> Float[Tensor, "*batch vocab"]:
    """Logits with some tokens at -inf."""
    if not tokens:
        return logits
    return logits.index_fill(-1, torch.tensor(tokens, device=logits.device), float("-inf"))


def evened(logits: Float[Tensor, "batch pos vocab"], canvas: Canvas) -> Float[Tensor, "batch pos vocab"]:
    """Logits in which rounding does not tell positions apart that are alike.

    A row of nothing but masks (an empty prompt without BOS) says the same everywhere, whatever the distances are: all
    values are one. Which position is committed first would be decided by the last bits, and these by the batch.
    """
    blank = (canvas.masked | ~canvas.valid).all(-1)
    if not bool(blank.any()):
        return logits
    first = canvas.valid.long().argmax(-1)
    same = logits[torch.arange(len(logits), device=logits.device), first][:, None]
    apart = (logits - same).abs().amax(-1).where(canvas.valid, 0).amax(-1)
    alike = apart <= torch.finfo(logits.dtype).eps ** 0.5 * same.abs().amax((-1, -2))  # an edit may tell them apart
    return torch.where((blank & alike)[:, None, None], same, logits)
