"""Who is edited, by attention: detectors find the sinks that an edit acts on."""

from __future__ import annotations

import copy
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook
from sinklens.sinks import Positions, SinkRule

Queries = Positions | Literal["auto"]


class Detector:
    """Finds the sinks of each row, layer and head. Subclasses say from which step's attention, or from what else.

    Args:
        rule: When a key is a sink. Give this or `top_k`.
        top_k: Shorthand for `SinkRule(epsilon=None, top_k=...)`: the k keys that receive most.
        queries: Whose attention counts. "auto": the rule's own `queries`; if these are "all", all queries of a
            diffusion model and the last one of an autoregressive model (arXiv 2510.15731, section 4.3).
        fewer: What to do where fewer than top_k keys pass: "take" those (counted as heads_with_fewer), or "none"
            (counted as heads_without_sink).
        loop: "closed" reads the edited run: the layer's attention BEFORE this edit acts on it, with the edits of
            earlier layers and steps in it. (Read after the edit, a masked key would have no mass, would not be chosen
            again, and masking would alternate from step to step.) "open" reads a forward without any edit, run beside
            every step on the same canvas; the paper does not say which it used. Costs a second forward.

    Raises:
        ValueError: rule and top_k at once, or an unknown option.
    """

    needs_previous = False
    _claimed = False

    def __init__(
        self,
        rule: SinkRule | None = None,
        *,
        top_k: int | None = None,
        queries: Queries = "auto",
        fewer: Literal["take", "none"] = "take",
        loop: Literal["closed", "open"] = "closed",
    ) -> None:
        if rule is not None and top_k is not None:
            raise ValueError("give a rule or top_k, not both; SinkRule(epsilon=3.0, top_k=5) has both in one rule")
        if queries != "auto" and queries not in get_args(Positions):
            known = ", ".join(("auto", *get_args(Positions)))
            raise ValueError(f"queries={queries!r} is unknown; choose from {known}")
        if fewer not in ("take", "none"):
            raise ValueError(f"fewer={fewer!r} must be 'take' or 'none'")
        if loop not in ("closed", "open"):
            raise ValueError(f"loop={loop!r} must be 'closed' (the edited run) or 'open' (a clean forward beside it)")
        self.rule = rule or (SinkRule() if top_k is None else SinkRule(epsilon=None, top_k=top_k))
        self.queries: Queries = queries
        self.fewer: Literal["take", "none"] = fewer
        self.loop: Literal["closed", "open"] = loop
        self.watched: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._seen: dict[int, tuple[int, Tensor, Tensor | None]] = {}

    def reset(self) -> None:
        """Forget what earlier steps showed."""
        self._seen, self.watched = {}, {}

    def own(self) -> Self:
        """A copy with a memory of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def claim(self) -> Self:
        """This detector for the first edit that asks, a copy for every other: no two edits share a memory."""
        if self._claimed:
            return self.own()
        self._claimed = True
        return self

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for more keys than a row has."""
        shortest = int(canvas.valid.sum(-1).min())
        if self.rule.top_k is not None and self.rule.top_k > shortest:
            raise ScopeError(f"{self!r} asks for {self.rule.top_k} keys, and the shortest row has {shortest} positions")

    def query_set(self, *, causal: bool) -> Positions:
        """The queries whose attention counts, "auto" resolved."""
        if self.queries != "auto":
            return self.queries
        if self.rule.queries != "all":
            return self.rule.queries
        if causal and self.rule.epsilon is not None and self.rule.units == "sum" and self.rule.epsilon >= 1:
            raise ScopeError(
                f"{self!r} reads the last query of an autoregressive model, whose attention to a key is at most 1, so "
                f"epsilon={self.rule.epsilon:g} can never fire; use top_k, a smaller epsilon, or queries='all'"
            )
        return "last" if causal else "all"

    def ahead(self, canvas: Canvas | None) -> bool:
        """Whether the keys are known before this forward's attention is: then the edit works row by row."""
        return self.loop == "open"

    def hooks(self, model: Any, layer: int, canvas: Canvas | None) -> list[Hook]:
        """Further hooks that the detector needs in a layer."""
        return []

    def observe(
        self, layer: int, received: Float[Tensor, "batch head key"], canvas: Canvas, visible: Tensor | None = None
    ) -> None:
        """Remember this step's received attention for the next."""
        self._seen[layer] = (canvas.step, received, visible)

    def find(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> tuple[Bool[Tensor, "batch head key"], Bool[Tensor, "batch head"]]:
        """The keys to act on, and the heads in which fewer than top_k were found."""
        selected = self.select(layer, received, eligible, canvas, visible)
        short = selected.sum(-1) < (self.rule.top_k or 0)
        return (selected & ~short[..., None] if self.fewer == "none" else selected), short

    def select(
        self,
        layer: int,
        received: Float[Tensor, "batch head key"],
        eligible: Bool[Tensor, "batch head key"],
        canvas: Canvas,
        visible: Float[Tensor, "batch head key"] | None = None,
    ) -> Bool[Tensor, "batch head key"]:
        """The sinks that the edit acts on at this step.

        Args:
            layer: The layer.
            received: Received attention of this forward, by the queries that count.
            eligible: Keys that may be chosen.
            canvas: What the forward sees.
            visible: In a causal model, how many of the queries can see each key.
        """
        raise NotImplementedError(f"{type(self).__name__} has no select")

    def arguments(self) -> list[str]:
        """What was asked for, as text: it must tell this detector from every other."""
        ranked = self.rule == SinkRule(None, top_k=self.rule.top_k or 1)
        parts = [f"top_k={self.rule.top_k}" if ranked else repr(self.rule)]
        defaults = {"queries": "auto", "fewer": "take", "loop": "closed"}
        return parts + [f"{n}={getattr(self, n)!r}" for n, value in defaults.items() if getattr(self, n) != value]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.arguments())})"


class SameStep(Detector):
    """Sinks of the very forward that is edited (arXiv 2605.09313's protocol)."""

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """Sinks by this step's attention."""
        return self.rule(received, eligible, visible=visible)


class PreviousStep(Detector):
    """Sinks of step t - 1, edited at step t (arXiv 2510.15731, section 4.3).

    Args:
        rule: As in Detector.
        top_k: As in Detector.
        queries: As in Detector.
        fewer: As in Detector.
        loop: As in Detector; the paper does not say.
        first: What to do at step 0, which has no previous step: "none" edits nothing (the default; the paper
            does not say), "same" uses step 0's own attention.
    """

    needs_previous = True

    def __init__(
        self,
        rule: SinkRule | None = None,
        *,
        top_k: int | None = None,
        queries: Queries = "auto",
        fewer: Literal["take", "none"] = "take",
        loop: Literal["closed", "open"] = "closed",
        first: Literal["none", "same"] = "none",
    ) -> None:
        super().__init__(rule, top_k=top_k, queries=queries, fewer=fewer, loop=loop)
        if first not in ("none", "same"):
            raise ValueError(f"first={first!r} must be 'none' or 'same'")
        self.first = first

    def ahead(self, canvas: Canvas | None) -> bool:
        """Yes, but for a first step that looks at itself."""
        return self.loop == "open" or self.first == "none" or (canvas is not None and canvas.step > 0)

    def arguments(self) -> list[str]:
        """As in Detector, and `first`."""
        return super().arguments() + ([] if self.first == "none" else [f"first={self.first!r}"])

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """Sinks by the previous step's attention."""
        step, before, saw = self._seen.get(layer, (-2, received, visible))
        if step != canvas.step - 1:
            same = self.first == "same"
            return self.rule(received, eligible, visible=visible) if same else torch.zeros_like(eligible)
        # A baseline's sequence grows (and shrinks between gaps): keys that did not exist received nothing.
        keys = received.shape[-1]
        before, saw = (
            None if each is None else torch.nn.functional.pad(each, (0, max(keys - each.shape[-1], 0)))[..., :keys]
            for each in (before, saw)
        )
        return self.rule(before, eligible & (before > 0), visible=None if saw is None else saw.clamp(min=1))


class LastQuery(PreviousStep):
    """Sinks by the attention of the last query alone, of the step before: the paper's rule for autoregressive models.

    The same as `PreviousStep(queries="last")`, and what PreviousStep does by itself with an autoregressive model.
    Source: arXiv 2510.15731, section 4.3.

    Args:
        rule: As in Detector; one query's attention to a key is at most 1.
        top_k: As in Detector.
        fewer: As in Detector.
        loop: As in Detector.
        first: As in PreviousStep.
    """

    def __init__(
        self,
        rule: SinkRule | None = None,
        *,
        top_k: int | None = None,
        fewer: Literal["take", "none"] = "take",
        loop: Literal["closed", "open"] = "closed",
        first: Literal["none", "same"] = "none",
    ) -> None:
        super().__init__(rule, top_k=top_k, queries="last", fewer=fewer, loop=loop, first=first)
        if self.rule.epsilon is not None and self.rule.units == "sum" and self.rule.epsilon >= 1:
            raise ScopeError(f"one query's attention to a key is at most 1: {self.rule!r} can never fire; use top_k")

    def arguments(self) -> list[str]:
        """As in PreviousStep; the queries go without saying."""
        return [part for part in super().arguments() if not part.startswith("queries=")]
