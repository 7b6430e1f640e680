"""Keep only some keys: what a cache of limited size would hold."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Where
from sinklens.interventions.edits.scores import MaskSinks
from sinklens.interventions.noise import noise
from sinklens.interventions.selectors.attention import SameStep
from sinklens.interventions.selectors.places import ByKeyNorm
from sinklens.sinks import largest

By = Literal["received", "key_norm", "random", "recency"]


class _AllBut(SameStep):
    """Every key but the best `budget` of them."""

    def __init__(self, budget: float, by: By, seed: int) -> None:
        super().__init__(queries="all")
        self.budget, self.by, self.seed = budget, by, seed
        self._norms = ByKeyNorm()

    def reset(self) -> None:
        """Forget the last forward."""
        super().reset()
        self._norms = ByKeyNorm()

    def ahead(self, canvas: Canvas | None) -> bool:
        """Unless attention ranks the keys."""
        return self.by != "received"

    def hooks(self, model: Any, layer: int, canvas: Canvas | None) -> list[Hook]:
        """On the keys, if their norm decides."""
        return self._norms.hooks(model, layer, canvas) if self.by == "key_norm" else []

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """The keys that are not kept."""
        if self.by == "received":
            score = received
        elif self.by == "key_norm":
            norms = self._norms._norms[layer]
            score = -norms.repeat_interleave(received.shape[1] // norms.shape[1], 1)
        elif self.by == "random":
            score = noise(self.seed, canvas, layer, received.shape[1]).to(received.device)
        else:
            score = torch.arange(received.shape[-1], device=received.device).float().expand(received.shape)
        keys = eligible.sum(-1, keepdim=True)
        budget = (self.budget * keys.double() - 1e-9).ceil() if isinstance(self.budget, float) else self.budget
        return eligible & ~largest(score, eligible, budget)


class KeepKeys(MaskSinks):
    """Mask every key but the best ones, per head: the eviction of a key-value cache, emulated exactly.

    Conserves: row sums (1), and the proportions of the kept keys.
    Assumes: that a key that is gone at this step may be back at the next (a real cache forgets it for good).
    Source: "key_norm" keeps the LOWEST norms, ceil(share x keys) of them in each key head, with the first layers
    skipped by `where` (arXiv 2406.11430, its code skips layers 0 and 1); "recency" keeps the last positions of the row
    (the window of arXiv 2309.17453, without its sinks); "received" this step's received attention before the edit.

    Args:
        budget: A share in (0, 1] (a float, rounded up), or a number of keys (an int).
        by: "received", "key_norm", "random" or "recency".
        where: The scope; `keys` limits who may be evicted or kept.
        seed: For "random".

    Raises:
        ValueError: a budget that keeps nothing, or an unknown `by`.
    """

    def __init__(self, budget: float, by: By = "received", where: Where | None = None, *, seed: int = 0) -> None:
        if by not in get_args(By):
            raise ValueError(f"by={by!r} is unknown; choose from {', '.join(get_args(By))}")
        if isinstance(budget, bool) or not budget > 0 or (isinstance(budget, float) and budget > 1):
            raise ValueError(f"budget={budget} must be a share in (0, 1], or a whole number of keys (an int)")
        super().__init__(_AllBut(budget, by, seed), where)
        self.budget, self.by, self.seed = budget, by, seed

    def check(self, model: Any, canvas: Canvas) -> None:
        """A budget above the number of keys keeps all, which would be no edit."""
        shortest = int(canvas.valid.sum(-1).min())
        if isinstance(self.budget, int) and self.budget >= shortest:
            raise ScopeError(f"{self!r} keeps every key: the shortest row has {shortest} positions")

    def arguments(self) -> list[str]:
        """Budget, by, seed."""
        seed = [f"seed={self.seed}"] if self.by == "random" else []
        return [repr(self.budget), f"by={self.by!r}", *seed]
