"""Received attention: the column sums of attention patterns, and what uniform attention would give."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def received_attention(
    pattern: Float[Tensor, "*batch query key"], queries: Bool[Tensor, "*#batch query"] | None = None
) -> Float[Tensor, "*batch key"]:
    """Attention that each key receives: the column sum `C_j = sum_i A[i, j]` over valid queries.

    Range [0, number of queries]; over the keys it averages (queries / keys), which is 1 when both are all
    real positions. 0: nobody attends to the key. arXiv 2510.15731, section 4.1 (there as a column mean).

    Args:
        pattern: Attention weights, rows (fixed query) sum to 1.
        queries: Which queries count; all when None. Padding must never count.
    """
    if queries is None:
        return pattern.float().sum(-2)
    return (queries.float().unsqueeze(-2) @ pattern.float()).squeeze(-2)


class Received:
    """Received attention added up over blocks of queries: the one accumulation that everything in sinklens uses.

    Attributes:
        total: So far [batch, head, key]; None before the first block.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(
        self, pattern: Float[Tensor, "batch head query key"], queries: Bool[Tensor, "#batch one query"] | None
    ) -> None:
        """A block of queries more.

        Args:
            pattern: The block's attention weights.
            queries: Which of the block's queries count; all when None.
        """
        more = received_attention(pattern, None if queries is None else queries.to(pattern.device))
        self.total = more if self.total is None else self.total + more


def largest(
    score: Float[Tensor, "*batch key"], keys: Bool[Tensor, "*batch key"], count: Tensor | int
) -> Bool[Tensor, "*batch key"]:
    """The `count` keys (a number, or one per row `[*batch, 1]`) with the largest score among `keys`; ties: leftmost."""
    order = score.masked_fill(~keys, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return keys & (torch.empty_like(order).scatter(-1, order, place) < count)
