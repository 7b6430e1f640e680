"""What can be read off the logits of a position: the likeliest token, its probability, the entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Score = Literal["token", "probability", "entropy"]
SCORES: dict[str, tuple[str, str]] = {
    "token": ("id", "id of the likeliest token"),
    "probability": ("probability", "probability of the likeliest token"),
    "entropy": ("nats", "entropy of the predicted token"),
}
CHUNK = 256  # positions whose logits are held at once


def score(logits: Float[Tensor, "pos vocab"], what: Score) -> Float[Tensor, " pos"]:
    """One number for each position: see SCORES. Token ids are floats, exact up to 2**24."""
    logits = logits.float()
    if what == "token":
        return logits.argmax(-1).float()
    if what == "probability":
        return (logits.amax(-1) - logits.logsumexp(-1)).exp()
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def score_positions(
    states: Float[Tensor, "batch pos d"],
    to_logits: Callable[[Tensor], Tensor],
    what: Score,
    wanted: Bool[Tensor, "batch pos"],
    chunk: int = CHUNK,
) -> Float[Tensor, "batch pos"]:
    """Score the prediction for each wanted position, `chunk` positions at a time; nan elsewhere.

    Args:
        states: What the prediction for each position is made from.
        to_logits: Some of `states` -> their logits.
        what: Which score.
        wanted: Which positions.
        chunk: Positions whose logits are held at once.
    """
    wanted = wanted.to(states.device)
    places = wanted.nonzero(as_tuple=True)
    scores = torch.full(states.shape[:2], float("nan"), device=states.device)
    parts = [
        score(to_logits(states[row, position]), what).to(states.device)
        for row, position in zip(*(index.split(chunk) for index in places), strict=True)
    ]
    scores[places] = torch.cat(parts)
    return scores
