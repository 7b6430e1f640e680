"""The canvas: the sequence as one forward pass sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.sinks.rule import Positions
from sinklens.values.kinds import read


@dataclass(frozen=True)
class Canvas:
    """The sequence as one forward pass sees it: prompt and response positions of a batch of rows.

    Attributes:
        tokens: Token ids [batch, pos]; masked positions hold the mask token.
        valid: Real positions. Left padding, and what an autoregressive model has not generated yet, is False.
        masked: Positions still to be committed.
        prompt: Positions that were given.
        step: Index of the denoising step.
        seeds: One seed per row, for edits and controls that draw random numbers.
        active: Rows that are still being decoded [batch]; all when None. A row that is done stays in the batch, but
            is neither recorded nor edited.
        block: Positions of the block that is being decided [batch, pos], where a sampler goes block by block, those of
            it that hold a token already among them; None where there are no blocks.
        levels: Of a model that sees block by block, the number of each position's block [batch, pos]: none sees one
            with a higher number. None for other models.
        edited: Positions whose queries edits may touch [batch, pos]; all when None (`Plan.editing`).
    """

    tokens: Int[Tensor, "batch pos"]
    valid: Bool[Tensor, "batch pos"]
    masked: Bool[Tensor, "batch pos"]
    prompt: Bool[Tensor, "batch pos"]
    step: int = 0
    seeds: tuple[int, ...] = ()
    active: Bool[Tensor, " batch"] | None = None
    block: Bool[Tensor, "batch pos"] | None = None
    levels: Int[Tensor, "batch pos"] | None = None
    edited: Bool[Tensor, "batch pos"] | None = None

    @classmethod
    def plain(cls, valid: Bool[Tensor, "batch pos"]) -> Canvas:
        """A canvas for hooks that run outside the loop: every real position is committed."""
        on = torch.ones_like(valid)
        return cls(torch.zeros_like(valid, dtype=torch.long), valid, ~on, on, seeds=(0,) * len(valid))

    @property
    def rows(self) -> Bool[Tensor, " batch"]:
        """Rows that are still being decoded."""
        return torch.ones_like(self.valid[:, 0]) if self.active is None else self.active

    def positions(self, which: Positions) -> Bool[Tensor, "batch pos"]:
        """Positions of one kind, always valid ones.

        "masked" are to be committed, "committed" hold a token (prompt or committed), "response" is what was not
        given, "last" is the last valid position of each row, "block" is the block that is being decided: the response
        where there are no blocks.

        Raises:
            ValueError: an unknown kind.
        """
        which = read("positions", which, Positions)
        if which == "last":
            place = torch.arange(self.valid.shape[-1], device=self.valid.device)
            last = torch.where(self.valid, place, -1).amax(-1, keepdim=True)
            return self.valid & (place == last)
        chosen = {
            "all": self.valid,
            "masked": self.masked,
            "committed": ~self.masked,
            "prompt": self.prompt,
            "response": ~self.prompt,
            "block": ~self.prompt if self.block is None else self.block,
        }[which]
        return chosen & self.valid

    def queries(self, which: Positions) -> Bool[Tensor, "batch pos"]:
        """Positions of one kind whose queries an edit may touch."""
        return self.positions(which) if self.edited is None else self.positions(which) & self.edited

    def of_rows(self, rows: slice) -> Canvas:
        """The canvas of some rows of the batch."""
        parts = {name: getattr(self, name)[rows] for name in ("tokens", "valid", "masked", "prompt")}
        some = {name: getattr(self, name) for name in ("active", "block", "levels", "edited")}
        parts |= {name: None if each is None else each[rows] for name, each in some.items()}
        return replace(self, **parts, seeds=self.seeds[rows])

    def behind(self, first: int) -> Canvas:
        """What stands from a position on."""
        parts = {name: getattr(self, name)[:, first:] for name in ("tokens", "valid", "masked", "prompt")}
        some = {name: getattr(self, name) for name in ("block", "levels", "edited")}
        parts |= {name: None if each is None else each[:, first:] for name, each in some.items()}
        return replace(self, **parts)

    def cut(self, valid: Bool[Tensor, "batch seen"]) -> Canvas:
        """The first positions of it, of which `valid` are real: what a model sees that does not see all."""
        seen = valid.shape[-1]
        some = {name: getattr(self, name) for name in ("block", "levels", "edited")}
        parts = {name: None if each is None else each[:, :seen] for name, each in some.items()}
        tokens, masked, prompt = (each[:, :seen] for each in (self.tokens, self.masked, self.prompt))
        return replace(self, tokens=tokens, valid=valid, masked=masked & valid, prompt=prompt, **parts)
