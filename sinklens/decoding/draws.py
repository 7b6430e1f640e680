"""Seeded random numbers for samplers, in the order, shape and dtype of the official ones.

Every row draws from its own generator, so that one prompt under `torch.manual_seed(s)` there and under `seed=s` here
gives the same tokens, alone or in a batch (in float32; half precision rounds otherwise in another batch).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor


class Draws:
    """Seeded random numbers, one generator per row; a row's left padding draws nothing.

    Args:
        seeds: One seed per row.
        starts: First real position of each row.
    """

    def __init__(self, seeds: Sequence[int], starts: Sequence[int]) -> None:
        self.starts = list(starts)
        self.generators = [Generator().manual_seed(int(seed)) for seed in seeds]

    def states(self) -> tuple[Tensor, ...]:
        """Where each row's generator stands: what it draws next follows from that."""
        return tuple(generator.get_state() for generator in self.generators)

    def restore(self, states: Sequence[Tensor]) -> None:
        """Let every row's generator stand where `states` says."""
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def uniform(
        self,
        like: Tensor,
        dtype: torch.dtype,
        rows: Sequence[int] | None = None,
        *,
        block: Bool[Tensor, "batch pos"] | None = None,
    ) -> Tensor:
        """Uniform numbers in [0, 1) of the shape of `like` [batch, pos, ...]; 0.5 on padding.

        Args:
            like: A row each of `rows`.
            dtype: In which they are drawn.
            rows: Which rows of the run; all when None.
            block: Draw for these positions alone, of a model that sees block by block; 0.5 elsewhere.
        """
        out = torch.full(like.shape, 0.5, dtype=dtype)
        for index, row in enumerate(range(len(self.starts)) if rows is None else rows):
            here = slice(self.starts[row], None) if block is None else block[index].cpu()
            out[index, here] = torch.rand(out[index, here].shape, dtype=dtype, generator=self.generators[row])
        return out.to(like.device)

    def bernoulli(self, count: int, row: int) -> None:
        """Draws that decide nothing, one bit each: an official code made them before its sampler began."""
        torch.bernoulli(torch.ones(count), generator=self.generators[row])

    def where(self, mask: Bool[Tensor, "batch pos"]) -> Tensor:
        """Uniform numbers in [0, 1) where the mask is set, one draw per set position; 1 elsewhere."""
        out = torch.ones(mask.shape)
        for row, generator in enumerate(self.generators):
            here = mask[row].cpu()
            out[row, here] = torch.rand(int(here.sum()), generator=generator)
        return out.to(mask.device)

    def categorical(
        self, probabilities: Float[Tensor, "batch pos vocab"], mask: Bool[Tensor, "batch pos"]
    ) -> Int[Tensor, "batch pos"]:
        """One token per set position from its distribution; 0 elsewhere."""
        out = torch.zeros(mask.shape, dtype=torch.long)
        for row, generator in enumerate(self.generators):
            here = mask[row].cpu()
            if here.any():
                weights = probabilities[row].cpu()[here]
                out[row, here] = torch.multinomial(weights, 1, replacement=True, generator=generator).squeeze(-1)
        return out.to(mask.device)

    def subset(self, weights: Float[Tensor, "batch pos"], counts: Sequence[int]) -> Bool[Tensor, "batch pos"]:
        """`counts[row]` positions per row without replacement, in proportion to the weights."""
        out = torch.zeros(weights.shape, dtype=torch.bool)
        for row, (generator, start) in enumerate(zip(self.generators, self.starts, strict=True)):
            if counts[row]:
                index = torch.multinomial(weights[row, start:].cpu(), counts[row], generator=generator)
                out[row, start + index] = True
        return out.to(weights.device)
