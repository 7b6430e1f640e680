"""Who sees whom: the mask of attention as an object that everything asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Direction = Literal["bidirectional", "causal"]
BLOCK = 2**22  # entries of a mask that exist at once while columns are summed


@dataclass(frozen=True, eq=False)
class Sight:
    """Which keys each query may look at, in every row of a batch.

    One of four ways to know it, and the questions do not depend on which: a mask [batch or 1, query, key]; among real
    positions a direction, a direction within a window, or levels. Queries need not be keys: with a cache the queries
    are the last `queries` of the keys.

    Attributes:
        valid: Real keys [batch or 1, key]; padding is False.
        direction: "bidirectional", or "causal": no key to the right of the query.
        window: Only keys closer to the query than this many positions; None for no limit. Local attention.
        mask: The whole relation [batch or 1, query, key], if it is nothing simpler; the other fields then only say
            which positions are real.
        queries: How many queries there are, the last ones of the keys; as many as keys when None.
        levels: No query sees a key of a higher level [batch or 1, key]; None for no levels. Block-causal attention: the
            number of the block.
    """

    valid: Bool[Tensor, "batch key"]
    direction: Direction = "bidirectional"
    window: int | None = None
    mask: Bool[Tensor, "batch query key"] | None = None
    queries: int | None = None
    levels: Int[Tensor, "batch key"] | None = None

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction={self.direction!r} is unknown; choose from {', '.join(get_args(Direction))}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1: a query sees itself")
        if self.levels is not None and (self.direction == "causal" or self.window is not None):
            raise ValueError("levels say by themselves who sees whom; give no direction and no window beside them")

    @classmethod
    def of(
        cls, keys: int, direction: Direction = "bidirectional", window: int | None = None, *, blocks: int | None = None
    ) -> Sight:
        """One row of `keys` real positions; `blocks`: in blocks of so many, none of which sees a later one."""
        levels = None if blocks is None else torch.arange(keys)[None] // blocks
        return cls(torch.ones(1, keys, dtype=torch.bool), direction, window, levels=levels)

    @classmethod
    def from_mask(
        cls, mask: Tensor | None, *, batch: int, queries: int, keys: int, direction: Direction, device: torch.device
    ) -> Sight:
        """What an attention function was told.

        Args:
            mask: As transformers makes it for sdpa: boolean (True: may look) or added to the scores,
                [batch or 1, 1, query or 1, key]; None for none.
            batch: Rows.
            queries: Number of queries.
            keys: Number of keys.
            direction: What a mask of None means.
            device: Where the mask is wanted.
        """
        on = torch.ones(1, keys, dtype=torch.bool, device=device)
        if mask is None:
            sight = cls(on, direction, queries=queries)
            sight.__dict__["whole"] = True  # known without looking, at every layer of every forward
            return sight
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = seen[:, 0]
        if seen.shape[-2] == 1:
            return cls(seen[:, 0], "bidirectional", queries=queries)
        # A position is real if it sees itself: true in every mask rule, whatever the last query sees. Of those before
        # all queries, whose rows are not there, it is real if anybody looks at it.
        own = torch.arange(queries, device=device)
        real = seen.any(-2)
        real[:, keys - queries :] = seen[:, own, own + keys - queries]
        return cls(real, direction, mask=seen, queries=queries)

    def of_rows(self, rows: slice) -> Sight:
        """The sight of some rows of the batch."""
        valid = self.valid[rows] if len(self.valid) > 1 else self.valid
        mask = self.mask[rows] if self.mask is not None and len(self.mask) > 1 else self.mask
        levels = self.levels[rows] if self.levels is not None and len(self.levels) > 1 else self.levels
        return replace(self, valid=valid, mask=mask, levels=levels)

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.valid.shape[-1]

    @property
    def count(self) -> int:
        """Number of queries."""
        return self.keys if self.queries is None else self.queries

    @property
    def open(self) -> bool:
        """Whether every query sees every key."""
        return self._ordered and self.direction == "bidirectional" and self.whole

    @cached_property
    def whole(self) -> bool:
        """Whether every position is real."""
        return bool(self.valid.all())

    @property
    def real(self) -> Bool[Tensor, "batch query"]:
        """Which queries are real positions."""
        return self.valid[:, self.keys - self.count :]

    def rows(self, block: slice) -> Bool[Tensor, "batch query key"]:
        """Where some queries look, [batch or 1, query or 1, key]; one row says it if all look alike."""
        if self.mask is not None:
            return self.mask[:, block]
        seen = self.valid[:, None]
        if self.levels is not None:
            return seen & (self.levels[:, None] <= self.levels[:, self.keys - self.count :][:, block, None])
        if self.direction == "bidirectional" and self.window is None:
            return seen
        key = torch.arange(self.keys, device=self.valid.device)
        query = key[self.keys - self.count :][block, None]
        if self.direction == "causal":
            seen = seen & (key <= query)
        return seen if self.window is None else seen & ((key - query).abs() < self.window)

    def seen_by(self, queries: Bool[Tensor, "batch query"] | None = None) -> Float[Tensor, "batch key"]:
        """How many of the given queries (all real ones when None) can see each key."""
        return self.sums(self._counting(queries).float())

    def null(self, queries: Bool[Tensor, "batch query"] | None = None) -> Float[Tensor, "batch key"]:
        """Received attention if every given query spread its attention evenly over the keys that it may see.

        Bidirectional: (number of queries) / (number of keys), which is 1 if all count. Causal: key j receives the sum
        over i >= j of 1 / (i + 1), so that the first key of S gets the harmonic number H_S (4.74 at S = 64), which
        passes epsilon = 3 without being a sink. With a window a key beyond it gets nothing. In blocks of B a key of
        block b receives the sum over blocks c >= b of 1 / (c + 1), and the last block alone gives every key the same.
        """
        counting = self._counting(queries)
        return self.sums(counting.double() / self.sees().clamp(min=1).double()).float()

    def blind(self, visible: Bool[Tensor, "batch key"]) -> Bool[Tensor, "batch query"]:
        """Queries that see a key, and none of those that are visible [batch or 1, query]."""
        before = torch.stack(torch.broadcast_tensors(self.valid, visible & self.valid))
        if self._ordered:
            some = before.cummax(-1).values if self.direction == "causal" else before.any(-1, keepdim=True)
            some = some.expand(before.shape)[..., self.keys - self.count :]
        else:
            parts = [(self.rows(block) & before[:, :, None]).any(-1) for block in self._blocks()]
            some = torch.cat(parts, -1).expand(*before.shape[:2], self.count)
        return some[0] & ~some[1]

    def sees(self) -> Float[Tensor, "batch query"]:
        """How many keys each query may look at."""
        if self._ordered:
            before = self.valid.cumsum(-1)
            reach = before if self.direction == "causal" else before[:, -1:].expand(before.shape)
            return reach[:, self.keys - self.count :].float()
        return torch.cat([self.rows(block).sum(-1) for block in self._blocks()], -1).float()

    @property
    def _ordered(self) -> bool:
        """Whether nothing but order and padding hides a key: sums then need no mask."""
        return self.mask is None and self.window is None and self.levels is None

    def _counting(self, queries: Tensor | None) -> Tensor:
        return self.real if queries is None else queries & self.real

    def sums(self, values: Float[Tensor, "batch *rest query"]) -> Float[Tensor, "batch *rest key"]:
        """For each key the sum over the queries that may look at it, whatever each query holds."""
        flat = values.reshape(len(values), -1, self.count)
        if self._ordered:
            total = flat.sum(-1, keepdim=True)
            if self.direction == "causal":
                total = F.pad(flat, (self.keys - self.count, 0)).flip(-1).cumsum(-1).flip(-1)
            total = total * self.valid[:, None].to(flat.dtype)
        else:
            blocks = self._blocks()
            total = sum(
                (flat[..., block] @ self.rows(block).to(flat.dtype) for block in blocks),
                start=torch.zeros(1, 1, self.keys, dtype=flat.dtype, device=flat.device),
            )
        return total.reshape(-1, *values.shape[1:-1], self.keys)

    def _blocks(self) -> list[slice]:
        size = max(1, BLOCK // (len(self.valid) * self.keys))
        return [slice(start, min(start + size, self.count)) for start in range(0, self.count, size)]


def uniform_null(keys: int, direction: Direction = "bidirectional") -> Float[Tensor, " key"]:
    """Received attention of each of `keys` real positions under uniform attention (`Sight.null`)."""
    return Sight.of(keys, direction).null()[0]
