"""What a selector is, and what it is shown before it chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.brief import Brief
from sinklens.sinks import Positions, Sight, SinkRule

Fewer = Literal["take", "none"]
Loop = Literal["closed", "open"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """One layer of one forward, as a selector is shown it.

    Attributes:
        model: The model.
        layer: The layer.
        canvas: What the forward sees.
        sight: Who sees whom in the layer.
        queries: Whose attention counts.
        received: What each key receives from them: in this forward before the edit, or in the clean forward of an open
            loop. Zeros for a selector that is `ahead` of it.
        eligible: Keys that may be chosen.
        memory: What the edit remembers of this run.
    """

    model: Any
    layer: int
    canvas: Canvas
    sight: Sight
    queries: Positions
    received: Float[Tensor, "batch head key"]
    eligible: Bool[Tensor, "batch head key"]
    memory: Memory

    @property
    def counting(self) -> Bool[Tensor, "batch query"]:
        """The queries whose attention counts."""
        counting = self.canvas.positions(self.queries)[:, self.sight.keys - self.sight.count :]
        return counting.to(self.sight.valid.device)

    def numbers(
        self, rule: SinkRule
    ) -> tuple[Float[Tensor, "batch one"] | None, Float[Tensor, "batch one key"] | None]:
        """How many queries count, and how many of them can see each key; None for rules that do not ask."""
        if type(rule) is SinkRule and (rule.epsilon is None or rule.units in ("sum", "zscore")):
            return None, None
        return self.counting.sum(-1, keepdim=True).float(), self.sight.seen_by(self.counting)[:, None]

    def sinks(self, rule: SinkRule) -> Bool[Tensor, "batch head key"]:
        """The eligible keys that are sinks by a rule in this forward."""
        return rule(self.received, self.eligible, *self.numbers(rule))


class Selector(Brief, ABC):
    """Finds the keys that an edit acts on, per row, layer and head. A description only: notes go into the memory.

    A selector of your own is a frozen dataclass with the method `select`.

    Attributes:
        fewer: What to do where fewer keys are found than were `wanted`: "take" those (counted as heads_with_fewer), or
            "none" (counted as heads_without_sink).
        loop: "closed" reads the edited run: the layer's attention BEFORE this edit acts on it, with the edits of
            earlier layers and steps in it. (Read after the edit, a masked key would have no mass, would not be chosen
            again, and masking would alternate from step to step.) "open" reads a forward without any edit, run beside
            every step on the same canvas; arXiv 2510.15731 does not say which it used. Costs a second forward.
    """

    fewer: Fewer = "take"
    loop: Loop = "closed"

    @property
    def wanted(self) -> int:
        """How many keys are asked for in each head; 0 for as many as there are."""
        return 0

    @property
    def looks_back(self) -> bool:
        """Whether it must be shown the forward before each one in which it chooses (`observe`)."""
        return False

    @property
    def earliest(self) -> int:
        """The first step of a run at which it can find a key."""
        return 0

    def counting(self, auto: Positions) -> Positions:
        """Whose attention counts; `auto` is what "auto" means of the model (`hooks.usual_queries`)."""
        return "all"

    def candidates(self) -> Positions:
        """Which positions may be chosen."""
        return "all"

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Whether the keys are known before this forward's attention is: then no preview is needed."""
        return self.loop == "open"

    def of_new(self, model: Any) -> bool:
        """Whether it needs no other attention than that of queries that are new at each step (`hooks.only_new`)."""
        return False

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise, before the first forward, for what cannot be found on this canvas of this model.

        Raises:
            ScopeError: more keys wanted than a row has.
        """
        shortest = int(canvas.valid.sum(-1).min())
        if self.wanted > shortest:
            raise ScopeError(f"{self!r} asks for {self.wanted} keys, and the shortest row has {shortest} positions")

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Further hooks that it needs in a layer of the forward that is about to be edited.

        Raises:
            ScopeError: it cannot choose in this forward.
        """
        return []

    def observe(self, evidence: Evidence) -> None:
        """Note what the next forward will need of this one."""

    def find(self, evidence: Evidence) -> tuple[Bool[Tensor, "batch head key"], Bool[Tensor, "batch head"]]:
        """The keys to act on, and the heads in which fewer were found than `wanted`."""
        selected = self.select(evidence)
        short = selected.sum(-1) < self.wanted
        return (selected & ~short[..., None] if self.fewer == "none" else selected), short

    @abstractmethod
    def select(self, evidence: Evidence) -> Bool[Tensor, "batch head key"]:
        """The keys to act on, all of them eligible."""


def set_field(value: Any, name: str, content: Any) -> None:
    """Write one form of a field: in `__post_init__` of a frozen dataclass, and nowhere else."""
    object.__setattr__(value, name, content)


def as_heads(flags: Bool[Tensor, "batch key"], evidence: Evidence) -> Bool[Tensor, "batch one key"]:
    """Flags of positions, for every head alike."""
    return flags[:, None].to(evidence.received.device)


def nowhere(evidence: Evidence) -> Bool[Tensor, "batch head key"]:
    """No key at all."""
    return torch.zeros_like(evidence.eligible)
