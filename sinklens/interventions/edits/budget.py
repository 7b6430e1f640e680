"""Keep only some keys: what a cache of limited size would hold."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.brief import brief
from sinklens.interventions.edits.scores import Masking
from sinklens.interventions.noise import noise
from sinklens.interventions.selectors.base import Evidence, Selector, set_field
from sinklens.interventions.selectors.norms import hidden_norm_hook, key_norms, norm_hook
from sinklens.sinks import Positions, largest
from sinklens.values.kinds import Seed

By = Literal["received", "key_norm", "hidden_norm", "random", "random_tokens", "recency"]
Unit = Literal["auto", "share", "keys"]


@dataclass(frozen=True, repr=False)
class AllBut(Selector):
    """Every key but the best `budget` of them; see KeepKeys."""

    budget: int | float
    by: By
    seed: Seed
    keys: Positions

    def candidates(self) -> Positions:
        """The `keys`."""
        return self.keys

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Unless attention ranks the keys."""
        return self.by != "received"

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """On the keys or on the layer's input, if their norm decides."""
        made = {"key_norm": norm_hook, "hidden_norm": hidden_norm_hook}.get(self.by)
        return [] if made is None else [made(model, layer, memory)]

    def select(self, evidence: Evidence) -> Tensor:
        """The keys that are not kept."""
        eligible = evidence.eligible
        keys = eligible.sum(-1, keepdim=True)
        budget = (self.budget * keys.double() - 1e-9).ceil() if isinstance(self.budget, float) else self.budget
        return eligible & ~largest(self._score(evidence), eligible, budget)

    def _score(self, evidence: Evidence) -> Tensor:
        received = evidence.received
        match self.by:
            case "received":
                return received
            case "key_norm":
                return -key_norms(evidence)
            case "hidden_norm":
                norms: Tensor = evidence.memory.notes["hidden norms", evidence.layer]
                return norms[:, None].to(received.device).expand(received.shape)
            case "random":
                return noise(self.seed, evidence.canvas, evidence.layer, received.shape[1]).to(received.device)
            case "random_tokens":
                draw = noise(self.seed, evidence.canvas, evidence.layer, 1).to(received.device)
                return draw.expand(received.shape)
            case "recency":
                return torch.arange(received.shape[-1], device=received.device).float().expand(received.shape)


@dataclass(frozen=True, repr=False)
class KeepKeys(Masking):
    """Mask every key but the best ones, per head: the eviction of a key-value cache, emulated exactly.

    Conserves: row sums (1), and the proportions of the kept keys.
    Assumes: that a key that is gone at this step may be back at the next (a real cache forgets it for good).
    Source: "key_norm" keeps the LOWEST norms, ceil(share x keys) of them in each key head, with the first layers
    skipped by `where` (arXiv 2406.11430, its code skips layers 0 and 1); "hidden_norm" the LARGEST norms of the
    residual stream at the layer's input, in all heads alike (RankViT in the code beside arXiv 2405.02330); "recency"
    keeps the last positions of the row (the window of arXiv 2309.17453, without its sinks); "received" this step's
    received attention before the edit.

    Args:
        budget: A share in (0, 1] (a float, rounded up), or a number of keys (an int).
        by: "received", "key_norm", "hidden_norm", "recency", "random" (in each head by itself) or "random_tokens" (the
            same in all heads of a layer, as hidden norms and places are).
        seed: For the random ones.
        keys: Who may be evicted or kept: "all", "masked", "committed", "prompt", "response" or "last".
        unit: "share" or "keys", what the budget counts; "auto" tells by its type, and becomes one of them: 1.0 are all
            keys, and 1 is one.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ValueError: a budget that keeps nothing, an unknown `by`, unit or set of keys.
    """

    budget: int | float
    by: By = "received"
    _: KW_ONLY
    seed: Seed = 0
    keys: Positions = "all"
    unit: Unit = "auto"
    selector: Selector = field(init=False, compare=False)

    def __post_init__(self) -> None:
        budget = self.budget
        unit = ("keys" if isinstance(budget, int) else "share") if self.unit == "auto" else self.unit
        if not (budget > 0 and (int(budget) == budget if unit == "keys" else budget <= 1)):
            raise ValueError(
                f"budget={budget} with unit={self.unit!r} must be a share in (0, 1], or a whole number of keys (an int)"
            )
        set_field(self, "unit", unit)
        set_field(self, "budget", int(budget) if unit == "keys" else float(budget))
        set_field(self, "selector", AllBut(self.budget, self.by, self.seed, self.keys))
        super().__post_init__()

    def check(self, model: Any, canvas: Canvas) -> None:
        """A budget above the number of keys keeps all, which would be no edit."""
        shortest = int(canvas.valid.sum(-1).min())
        if isinstance(self.budget, int) and self.budget >= shortest:
            raise ScopeError(f"{self!r} keeps every key: the shortest row has {shortest} positions")

    @property
    def changes(self) -> bool:
        """Unless all keys are kept."""
        return self.unit == "keys" or self.budget != 1

    def __repr__(self) -> str:
        return brief(self, unit="")  # the budget shows it
