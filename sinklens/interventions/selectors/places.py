"""Who is edited, by what stands there: positions, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.selectors.base import Evidence, Fewer, Selector, as_heads, set_field
from sinklens.sinks import Positions, SinkRule
from sinklens.sinks.tokens import Class, ids_of_class, in_vocabulary
from sinklens.values.kinds import Count, Index


@dataclass(frozen=True, repr=False)
class Fixed(Selector):
    """The same positions at every step, in every layer and head, counted from each row's first real token.

    Fixed([0]) is the BOS token, the static sink of autoregressive models (arXiv 2309.17453).

    Args:
        positions: One or several, from 0.
        keys: Only where such a position stands: "all", "masked", "committed", "prompt", "response" or "last".

    Raises:
        ValueError: no position, one below 0, or an unknown set of keys.
    """

    positions: Index | Sequence[Index]
    _: KW_ONLY
    keys: Positions = "all"

    def __post_init__(self) -> None:
        if not self.places:
            raise ValueError("positions=[]: give at least one, counted from 0")
        set_field(self, "positions", self.places)

    @property
    def places(self) -> tuple[int, ...]:
        """The positions, as a tuple."""
        return (self.positions,) if isinstance(self.positions, int) else tuple(self.positions)

    def candidates(self) -> Positions:
        """The `keys`."""
        return self.keys

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Yes: attention plays no part."""
        return True

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a position that a row does not have."""
        shortest = int(canvas.valid.sum(-1).min())
        if max(self.places) >= shortest:
            raise ScopeError(f"{self!r}: the shortest row has positions 0 to {shortest - 1}")

    def of_new(self, model: Any) -> bool:
        """Yes: attention plays no part."""
        return True

    def select(self, evidence: Evidence) -> Tensor:
        """The positions that are there."""
        valid = evidence.canvas.valid
        place = valid.long().cumsum(-1) - 1
        there = torch.isin(place, torch.tensor(self.places, device=place.device)) & valid
        return evidence.eligible & as_heads(there, evidence)


@dataclass(frozen=True, repr=False)
class ByToken(Selector):
    """Keys by the token that stands there at the step: a class, or ids.

    Args:
        what: A class of `sinks.tokens.CLASSES` ("mask", "punctuation", "white space", ...), or token ids.
        top_k: At most this many, those that receive most from all queries; all keys with such a token when None.
        fewer: As in Selector.
        keys: Only where such a token stands: "all", "masked", "committed", "prompt", "response" or "last".

    Raises:
        ValueError: no token, or an unknown option.
    """

    what: Class | Index | Sequence[Index]
    _: KW_ONLY
    top_k: Count | None = None
    fewer: Fewer = "take"
    keys: Positions = "all"

    def __post_init__(self) -> None:
        if isinstance(self.what, int):
            set_field(self, "what", (self.what,))
        if not self.what:
            raise ValueError(f"ByToken({self.what!r}) names no token; give at least one id, or a class such as 'mask'")

    @property
    def wanted(self) -> int:
        """`top_k`."""
        return self.top_k or 0

    def candidates(self) -> Positions:
        """The `keys`."""
        return self.keys

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Unless attention ranks the keys."""
        return self.top_k is None

    def check(self, model: Any, canvas: Canvas) -> None:
        """As in Selector, and for a class or an id that the vocabulary does not hold."""
        super().check(model, canvas)
        self._ids(model)

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """None; notes the class's ids in the model's vocabulary.

        Raises:
            ScopeError: there is no canvas to say which tokens there are.
        """
        if canvas is None:
            raise ScopeError(f"{self!r} needs to know the tokens; use it in denoise, or fwd_hooks(model, canvas)")
        if "ids" not in memory.notes:
            memory.notes["ids"] = self._ids(model)
        return []

    def _ids(self, model: Any) -> tuple[int, ...]:
        if isinstance(self.what, str):
            return tuple(ids_of_class(model, self.what))
        ids: Any = self.what
        in_vocabulary(model, ids, self)
        return ids

    def of_new(self, model: Any) -> bool:
        """Yes: attention plays no part."""
        return True

    def select(self, evidence: Evidence) -> Tensor:
        """Keys that hold such a token."""
        tokens = evidence.canvas.tokens
        ids = torch.tensor(evidence.memory.notes["ids"], device=tokens.device)
        there = evidence.eligible & as_heads(torch.isin(tokens, ids), evidence)
        if self.top_k is None:
            return there
        return SinkRule(epsilon=None, top_k=self.top_k)(evidence.received, there)
