"""Training batches: rows of text as a frozen model was trained to see them, and the positions that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.errors import GateError
from sinklens.models.padding import padded

DIFFUSION, ENCODER = (0.05, 1.0), (0.1, 0.6)  # the share of masked tokens is drawn from here
REFILLED = 0.3  # share of the tokens that the model itself draws anew where texts are few


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as the model sees them.

    Attributes:
        tokens: Token ids; masked positions hold the mask token.
        valid: Real positions.
        scored: Rows of logits that count: masked positions, or all that predict a token (autoregressive models).
        targets: The true token of each row of logits.
    """

    tokens: Int[Tensor, "batch pos"]
    valid: Bool[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]


def batch_of(dlm: Any, rows: Sequence[Sequence[int]], rng: np.random.Generator) -> Batch:
    """Rows of token ids as one batch.

    For an autoregressive model as they are. Otherwise each row masked at a random share, every token by itself, as
    masked diffusion is trained (half of the rows behind a beginning of random length that stays visible, as a prompt
    does), or at smaller shares for encoders. Of a model that sees block by block each row ends with one of its blocks
    by chance, which alone is masked, as in its decoding. Special tokens stay, and each row has one mask at least.

    Raises:
        GateError: a row without a token that could count.
    """
    whole, valid = padded(rows, dlm.ids.pad if dlm.ids.pad is not None else 0, left=False)
    whole, valid = whole.to(dlm.device), valid.to(dlm.device)
    if dlm.is_causal:
        scored = valid.clone()
        scored[:, :-1] &= valid[:, 1:]
        scored[:, -1] = False
        targets = torch.cat([whole[:, 1:], whole[:, :1]], 1)
        return _counted(Batch(whole, valid, scored, targets), dlm)
    free, blocks = maskable(dlm, whole, valid), dlm.in_blocks
    if blocks is not None:
        valid, free = _one_block(blocks.levels(valid), valid, free, rng)
    size, width = whole.shape
    least, most = ENCODER if dlm.family.closes else DIFFUSION
    share = rng.uniform(least, most, (size, 1))
    begins = rng.integers(0, width // 2 + 1, (size, 1)) * (rng.random((size, 1)) < 0.5) * (blocks is None)
    chance = rng.random((size, width)) + 2.0 * (np.arange(width) < begins)
    drawn = torch.from_numpy(chance).to(whole.device).masked_fill(~free, 9.0)
    masked = free & ((drawn < torch.from_numpy(share).to(whole.device)) | (drawn == drawn.amin(-1, keepdim=True)))
    return _counted(Batch(whole.masked_fill(masked, dlm.ids.mask), valid, masked, whole), dlm)


def maskable(dlm: Any, tokens: Int[Tensor, "batch pos"], valid: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Positions that may be masked: no special tokens, and none before which nothing stands that could predict it."""
    free = valid & ~torch.isin(tokens, torch.tensor(sorted(_fixed(dlm)), dtype=torch.long, device=tokens.device))
    return free & ~first(valid) if dlm.family.shift else free


def _one_block(
    levels: Int[Tensor, "batch pos"],
    valid: Bool[Tensor, "batch pos"],
    free: Bool[Tensor, "batch pos"],
    rng: np.random.Generator,
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """What each row holds up to the end of the block of one of its free positions, and what is free in that block."""
    chance = torch.from_numpy(rng.random(tuple(free.shape))).to(free.device).masked_fill(~free, -1.0)
    last = levels.gather(-1, chance.argmax(-1, keepdim=True))
    return valid & (levels <= last), free & (levels == last)


def first(valid: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The first real position of each row."""
    return valid & (valid.long().cumsum(-1) == 1)


@torch.no_grad()
def refilled(dlm: Any, rows: Sequence[Sequence[int]], rng: np.random.Generator) -> list[list[int]]:
    """Rows in which the model has drawn 30 % of the tokens anew: more texts of its own kind out of few."""
    whole, valid = padded(rows, dlm.ids.pad if dlm.ids.pad is not None else 0, left=False)
    fixed = torch.tensor(sorted(_fixed(dlm)), dtype=torch.long)
    free = valid & ~torch.isin(whole, fixed) & torch.from_numpy(rng.random(whole.shape) < REFILLED)
    logits: Float[Tensor, "batch pos vocab"] = dlm(
        whole.masked_fill(free, dlm.ids.mask).to(dlm.device), attention_mask=valid.to(dlm.device)
    )
    logits = logits.float().cpu()
    logits[..., fixed] = float("-inf")  # drawn by the race of exponential clocks: argmax of logits + Gumbel noise
    gumbel = torch.from_numpy(rng.gumbel(size=tuple(logits.shape))).float()
    whole = torch.where(free, (logits + gumbel).argmax(-1), whole)
    return [row[real].tolist() for row, real in zip(whole, valid, strict=True)]


def _fixed(dlm: Any) -> set[int]:
    """Tokens that are never masked and never drawn: those that only mark something."""
    own: Any = dlm.tokenizer
    named = ("bos", "cls", "sep", "pad", "unk", "mask")
    ids = {dlm.ids.bos, dlm.ids.pad, dlm.ids.mask, *(getattr(own, f"{name}_token_id", None) for name in named)}
    return ids - {None} - (set() if dlm.family.closes else set(dlm.ids.eos))


def _counted(batch: Batch, dlm: Any) -> Batch:
    if not bool(batch.scored.any(-1).all()):
        raise GateError(f"a row of the text holds no token for {dlm.name} to predict; give longer rows")
    return batch
