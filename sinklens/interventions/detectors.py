"""Who is edited: detectors find the sinks that an edit acts on."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Positions
from sinklens.sinks import SinkRule


class Detector:
    """Finds the sinks of each row, layer and head. Subclasses say from which step's attention.

    What counts is the layer's attention BEFORE this edit acts on it (edits of earlier layers are in it). Read
    after the edit, a masked key would have no mass, would not be chosen again, and masking would alternate from
    step to step.

    Args:
        rule: When a key is a sink. Give this or `top_k`.
        top_k: Shorthand for `SinkRule(epsilon=None, top_k=...)`: the k keys that receive most.
        queries: Whose attention counts. "auto": all queries of a diffusion model; the last one of an
            autoregressive model (arXiv 2510.15731, section 4.3).
    """

    needs_previous = False

    def __init__(
        self, rule: SinkRule | None = None, *, top_k: int | None = None, queries: Positions | Literal["auto"] = "auto"
    ) -> None:
        if rule is not None and top_k is not None:
            raise ValueError("give a rule or top_k, not both; SinkRule(epsilon=3.0, top_k=5) has both in one rule")
        self.rule = rule or (SinkRule() if top_k is None else SinkRule(epsilon=None, top_k=top_k))
        self.queries: Positions | Literal["auto"] = queries
        self._seen: dict[int, tuple[int, Tensor]] = {}

    def reset(self) -> None:
        """Forget what earlier steps showed."""
        self._seen = {}

    def query_set(self, *, causal: bool) -> Positions:
        """The queries whose attention counts, "auto" resolved."""
        if self.queries != "auto":
            return self.queries
        if causal and self.rule.epsilon is not None and self.rule.units == "sum" and self.rule.epsilon >= 1:
            raise ScopeError(
                f"{self!r} reads the last query of an autoregressive model, whose attention to a key is at most 1, so "
                f"epsilon={self.rule.epsilon:g} can never fire; use top_k, a smaller epsilon, or queries='all'"
            )
        return "last" if causal else "all"

    def observe(self, layer: int, received: Float[Tensor, "batch head key"], canvas: Canvas) -> None:
        """Remember this step's received attention for the next."""
        self._seen[layer] = (canvas.step, received)

    def select(
        self, layer: int, received: Float[Tensor, "batch head key"], eligible: Tensor, canvas: Canvas
    ) -> Bool[Tensor, "batch head key"]:
        """The sinks that the edit acts on at this step."""
        raise NotImplementedError(f"{type(self).__name__} has no select")

    def __repr__(self) -> str:
        parts = [
            repr(self.rule) if self.rule != SinkRule(None, top_k=self.rule.top_k or 1) else f"top_k={self.rule.top_k}"
        ]
        parts += [] if self.queries == "auto" else [f"queries={self.queries!r}"]
        return f"{type(self).__name__}({', '.join([*parts, *self._more()])})"

    def _more(self) -> list[str]:
        return []


class SameStep(Detector):
    """Sinks of the very forward that is edited (arXiv 2605.09313's protocol)."""

    def select(self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas) -> Tensor:
        """Sinks by this step's attention."""
        return self.rule(received, eligible)


class PreviousStep(Detector):
    """Sinks of step t - 1, edited at step t (arXiv 2510.15731, section 4.3).

    Args:
        rule: As in Detector.
        top_k: As in Detector.
        queries: As in Detector.
        first: What to do at step 0, which has no previous step: "none" edits nothing (the default; the paper
            does not say), "same" uses step 0's own attention.
    """

    needs_previous = True

    def __init__(
        self,
        rule: SinkRule | None = None,
        *,
        top_k: int | None = None,
        queries: Positions | Literal["auto"] = "auto",
        first: Literal["none", "same"] = "none",
    ) -> None:
        super().__init__(rule, top_k=top_k, queries=queries)
        if first not in ("none", "same"):
            raise ValueError(f"first={first!r} must be 'none' or 'same'")
        self.first = first

    def _more(self) -> list[str]:
        return [] if self.first == "none" else [f"first={self.first!r}"]

    def select(self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas) -> Tensor:
        """Sinks by the previous step's attention."""
        step, before = self._seen.get(layer, (-2, received))
        if step != canvas.step - 1:
            return self.rule(received, eligible) if self.first == "same" else torch.zeros_like(eligible)
        # A baseline's sequence grows (and shrinks between gaps): keys that did not exist received nothing.
        keys = received.shape[-1]
        before = torch.nn.functional.pad(before, (0, max(keys - before.shape[-1], 0)))[..., :keys]
        return self.rule(before, eligible & (before > 0))
