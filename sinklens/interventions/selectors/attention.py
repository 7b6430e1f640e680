"""Who is edited, by received attention: of the same step, of the step before, of the last query."""

from __future__ import annotations

from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory, only_new, usual_queries
from sinklens.interventions.brief import brief
from sinklens.interventions.selectors.base import Evidence, Fewer, Loop, Selector, nowhere, set_field
from sinklens.sinks import Positions, SinkRule

NOT_SAID = SinkRule(queries="auto")


def one_rule(rule: SinkRule, top_k: int | None) -> SinkRule:
    """The rule, or the ranking that `top_k` is short for.

    Raises:
        ValueError: both were given.
    """
    if top_k is None:
        return rule
    if rule is not NOT_SAID:
        raise ValueError("give a rule or top_k, not both; SinkRule(epsilon=3.0, top_k=5) has both in one rule")
    return SinkRule(epsilon=None, top_k=top_k, queries="auto")


def rule_text(rule: SinkRule, queries: str = "auto") -> str:
    """The rule as one would give it: "top_k=2", its repr, or "" for the default."""
    if rule == SinkRule(epsilon=None, top_k=rule.top_k or 1, queries="auto" if queries == "auto" else "last"):
        return f"top_k={rule.top_k}"
    return "" if rule == NOT_SAID else repr(rule)


@dataclass(frozen=True, repr=False)
class ByRule(Selector):
    """Base: the sinks by a rule. A leaf says of which forward.

    Args:
        rule: When a key is a sink, by whose attention, among which keys. Give this or `top_k`; when neither is given,
            `SinkRule(queries="auto")`. "auto" is all queries of a diffusion model and the last one of an autoregressive
            model (arXiv 2510.15731, section 4.3); of a model that sees block by block those of the block.
        top_k: Shorthand for `SinkRule(epsilon=None, top_k=..., queries="auto")`: the k keys that receive most. The
            number is then in `rule`.
        fewer: As in Selector.
        loop: As in Selector.

    Raises:
        ValueError: rule and top_k at once, or an unknown option.
        ScopeError: a rule that can never fire.
    """

    rule: SinkRule = NOT_SAID
    _: KW_ONLY
    top_k: InitVar[int | None] = None
    fewer: Fewer = "take"
    loop: Loop = "closed"

    def __post_init__(self, top_k: int | None) -> None:
        set_field(self, "rule", one_rule(self.rule, top_k))
        if self.rule.queries != "auto":
            self._must_fire(self.rule.queries)

    @property
    def wanted(self) -> int:
        """The rule's `top_k`."""
        return self.rule.top_k or 0

    def counting(self, auto: Positions) -> Positions:
        """The rule's `queries`, "auto" resolved.

        Raises:
            ScopeError: a rule that can never fire by these queries.
        """
        queries = self.rule.counting(auto)
        self._must_fire(queries)
        return queries

    def _must_fire(self, queries: Positions) -> None:
        rule = self.rule
        if not rule.can_fire(queries):
            raise ScopeError(
                f"{self!r} reads the last query alone, whose attention to a key is at most 1, so "
                f"epsilon={rule.epsilon:g} can never fire; use top_k, a smaller epsilon, or a rule with queries='all'"
            )

    def of_new(self, model: Any) -> bool:
        """If such queries are those that count, and no forward runs beside."""
        return self.loop == "closed" and only_new(model, [self.counting(usual_queries(model))])

    def candidates(self) -> Positions:
        """The rule's `keys`."""
        return self.rule.keys

    def check(self, model: Any, canvas: Canvas) -> None:
        """As in Selector, and for a rule that can never fire."""
        super().check(model, canvas)
        self.counting(usual_queries(model))

    def __repr__(self) -> str:
        return brief(self, rule=rule_text(self.rule))


@dataclass(frozen=True, repr=False)
class SameStep(ByRule):
    """Sinks of the very forward that is edited (arXiv 2605.09313's protocol)."""

    def select(self, evidence: Evidence) -> Tensor:
        """Sinks by this forward's attention."""
        return evidence.sinks(self.rule)


class Before(NamedTuple):
    """What a layer of the forward before showed."""

    step: int
    received: Tensor
    number: Tensor | None
    visible: Tensor | None


@dataclass(frozen=True, repr=False)
class PreviousStep(ByRule):
    """Sinks of step t - 1, edited at step t (arXiv 2510.15731, section 4.3).

    The loop shows it the forward before every one that it acts in. By hand, `edit.watch(model, canvas, memory)` gives
    the hooks for that forward.

    Args:
        rule: As in ByRule.
        top_k: As in ByRule.
        fewer: As in Selector.
        loop: As in Selector; the paper does not say.
        first: What to do at step 0, which has no previous step: "none" edits nothing (the default; the paper
            does not say), "same" uses step 0's own attention.

    Raises:
        ValueError: as in ByRule.
        ScopeError: as in ByRule.
    """

    _: KW_ONLY
    first: Literal["none", "same"] = "none"

    @property
    def looks_back(self) -> bool:
        """Yes."""
        return True

    @property
    def earliest(self) -> int:
        """The second, unless step 0 looks at itself."""
        return int(self.first == "none")

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Yes, but for a first step that looks at itself."""
        return super().ahead(layer, memory) or self.first == "none" or _note(layer) in memory.notes

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """None, but there must have been a forward before.

        Raises:
            ScopeError: it was not shown the forward before this one.
        """
        before, step = memory.notes.get(_note(layer)), 0 if canvas is None else canvas.step
        if before is None and (step > 0 or (canvas is None and self.first == "none")):
            raise ScopeError(
                f"{self!r} has not been shown the forward before this one, so it would find nothing; attach "
                "edit.watch(model, canvas, memory) to a forward and edit.hooks(model, canvas, memory) to the next, "
                "with one memory, or use it in denoise" + ("" if step else ", or say first='same', or SameStep")
            )
        if before is not None and before.step not in (step - 1, step):
            raise ScopeError(
                f"{self!r} was last shown step {before.step}, and acts at step {step}; attach "
                "edit.watch(model, canvas, memory) to the forward before, or use it in denoise"
            )
        return []

    def observe(self, evidence: Evidence) -> None:
        """Remember this forward for the next."""
        before = Before(evidence.canvas.step, evidence.received, *evidence.numbers(self.rule))
        evidence.memory.notes[_note(evidence.layer)] = before

    def select(self, evidence: Evidence) -> Tensor:
        """Sinks by the attention of the forward before."""
        before: Before | None = evidence.memory.notes.get(_note(evidence.layer))
        if before is None:
            return nowhere(evidence) if self.first == "none" else evidence.sinks(self.rule)
        keys = evidence.received.shape[-1]
        received, visible = _widened(before.received, keys), before.visible
        visible = None if visible is None else _widened(visible, keys).clamp(min=1)
        return self.rule(received, evidence.eligible & (received > 0), before.number, visible)


@dataclass(frozen=True, repr=False)
class LastQuery(PreviousStep):
    """Sinks by the attention of the last query alone, of the step before: the paper's rule for autoregressive models.

    The same as `PreviousStep` with a rule whose `queries` are "last", and what PreviousStep does by itself with an
    autoregressive model. Source: arXiv 2510.15731, section 4.3.

    Args:
        rule: As in ByRule, with `queries` taken to be "last"; one query's attention to a key is at most 1.
        top_k: As in ByRule.
        fewer: As in Selector.
        loop: As in Selector.
        first: As in PreviousStep.

    Raises:
        ValueError: as in ByRule; a rule that names other queries.
        ScopeError: as in ByRule.
    """

    def __post_init__(self, top_k: int | None) -> None:
        rule = one_rule(self.rule, top_k)
        if rule.queries not in ("all", "auto", "last"):
            raise ValueError(f"{rule!r} counts {rule.queries} queries, and LastQuery the last one; use PreviousStep")
        set_field(self, "rule", replace(rule, queries="last"))
        super().__post_init__(None)

    def __repr__(self) -> str:
        return brief(self, rule=rule_text(self.rule, "last"))


def _note(layer: int) -> tuple[str, int]:
    return "before", layer


def _widened(tensor: Tensor, keys: int) -> Tensor:
    """As many keys as there are now; new ones received nothing. A baseline's sequence grows, or shrinks at a gap."""
    return pad(tensor, (0, max(keys - tensor.shape[-1], 0)))[..., :keys]
