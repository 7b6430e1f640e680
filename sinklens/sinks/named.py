"""Named sink rules, each as its paper or its released code has it (literature: sections 1, 3, 4.2, 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinklens.sinks import SinkRule
from sinklens.sinks.rule import Positions
from sinklens.values.kinds import Count, Finite, reads


@dataclass(frozen=True, repr=False)
class ActRule(SinkRule):
    """ACT (arXiv 2406.15765): a key is a sink iff queries that see it give it more than alpha / N on average.

    `epsilon` is alpha (5 in the paper), N the number of keys. The released code uses a fixed 0.1 instead and leaves
    the first sink alone. It has no other units.
    """

    epsilon: Finite | None = 5.0
    units: Literal["sum"] = "sum"

    def _passes(
        self, epsilon: float, received: Tensor, valid: Tensor, queries: Tensor | int | None, visible: Tensor | None
    ) -> Tensor:
        if queries is None:
            queries = received.sum(-1, keepdim=True)
        elif isinstance(queries, Tensor):
            queries = queries.unsqueeze(-1)
        return received / (queries if visible is None else visible) > epsilon / valid.sum(-1, keepdim=True)

    def can_fire(self, queries: Positions) -> bool:
        """Always, in a text of more than alpha keys: alpha / N shrinks with the text."""
        return True

    def words(self) -> str:
        """The rule as a phrase."""
        text = f"more than {self.epsilon:g} / (number of keys) of the attention of the queries that see the position"
        return text + self._sets()

    def cut(self, keys: int) -> float | None:
        """alpha, whatever the number of keys."""
        return self.epsilon


@dataclass(frozen=True, repr=False)
class StreamingRule(SinkRule):
    """StreamingLLM (arXiv 2309.17453): the first `top_k` keys (4 there), whatever they receive."""

    epsilon: None = None
    units: Literal["sum"] = "sum"
    top_k: Count = 4

    def words(self) -> str:
        """The rule as a phrase."""
        return f"the first {self.top_k} positions" + self._sets()

    def __call__(
        self,
        received: Tensor,
        keys: Tensor | None = None,
        queries: Tensor | int | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The first valid keys."""
        valid = torch.ones_like(received, dtype=torch.bool) if keys is None else keys.expand(received.shape)
        return valid & (valid.cumsum(-1) <= (self.top_k or 0))


RULES: dict[str, SinkRule] = {
    "rulli": SinkRule(epsilon=3.0, units="sum"),  # arXiv 2510.15731, equation 3, with column sums
    "gu": SinkRule(epsilon=0.3, units="share"),  # arXiv 2410.10781, Sink_k; give `visible` for a causal model
    "floating": SinkRule(epsilon=3.0, units="zscore", per="mean"),  # arXiv 2601.07894, released code
    "sink_aware": SinkRule(epsilon=2.0, units="zscore", per="mean"),  # arXiv 2602.17664, its soft mask passes 1/2 there
    "act": ActRule(),
    "streaming": StreamingRule(),
}


@reads()
def rule(name: str) -> SinkRule:
    """A named rule.

    Example:
        >>> import sinklens as sl
        >>> sl.rule("act").words()
        'more than 5 / (number of keys) of the attention of the queries that see the position'

    Raises:
        ValueError: listing the names.
    """
    if name not in RULES:
        raise ValueError(f"sink rule {name!r} is unknown; the named rules are {', '.join(RULES)}")
    return RULES[name]
