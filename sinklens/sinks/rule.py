"""The one rule that calls a key a sink. Pure torch."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.sinks.received import largest
from sinklens.values.content import Value
from sinklens.values.kinds import Count, Finite

Units = Literal["sum", "mean", "percent", "zscore", "share"]
Positions = Literal["all", "masked", "committed", "prompt", "response", "last", "block"]
Queries = Literal["all", "masked", "committed", "prompt", "response", "last", "block", "auto"]


@dataclass(frozen=True, repr=False)
class SinkRule(Value):
    """When a key is a sink. The only definition in sinklens: edits use it online, metrics offline.

    Key j is a sink iff its received attention exceeds the mean of the OTHER valid keys by `epsilon`
    (arXiv 2510.15731, equation 3), per step, layer and head. That equation is printed for column means, where
    epsilon = 3 can never fire, so the unit is explicit:

    - "sum": C_j = sum_i A[i, j], averaging 1 over keys (the default; the reading that fits the paper's figures)
    - "mean": C_j / queries, in [0, 1]
    - "percent": 100 C_j / queries
    - "zscore": (C_j - mean) / population std over all valid keys, compared with epsilon alone
      (Attention Floating, arXiv 2601.07894)
    - "share": C_j / (queries that can see key j), in [0, 1], compared with epsilon alone (Gu et al., arXiv 2410.10781)

    `top_k` keeps at most the k largest of the keys that pass. With `epsilon=None` there is no threshold and the k
    largest keys that receive anything are the sinks (the paper's masking experiment, section 4.3). `per="mean"`
    averages the heads first, so that all heads of a layer share their sinks. `queries` names whose attention counts
    and `keys` which positions can be sinks, and are compared with each other: "all", "masked", "committed", "prompt",
    "response" or "last" (arXiv 2510.15731, section 4.2, tells masked from committed queries; for autoregressive models
    section 4.3 reads the last query). "auto" is the paper's protocol for both: all queries of a diffusion model, the
    last one of an autoregressive model; of one that sees block by block it is the "block" that is being decided.
    Padding never counts. Named rules with their papers: `sinks.named`.

    Example:
        >>> import sinklens as sl
        >>> import torch
        >>> sl.SinkRule()(torch.tensor([5.0, 0.6, 0.7, 0.5, 0.6, 0.6]))
        tensor([ True, False, False, False, False, False])

    Raises:
        ValueError: an unknown unit or set; an epsilon that can never fire ("mean" and "share" from 1, "percent" from
            100); neither epsilon nor top_k.
    """

    epsilon: Finite | None = 3.0
    units: Units = "sum"
    top_k: Count | None = None
    per: Literal["head", "mean"] = "head"
    queries: Queries = "all"
    keys: Positions = "all"

    def __post_init__(self) -> None:
        if self.epsilon is None and self.top_k is None:
            raise ValueError("SinkRule(epsilon=None) ranks keys and so needs top_k, for example top_k=1")
        if self.epsilon is None:
            return
        limit = {"mean": 1, "share": 1, "percent": 100}.get(self.units)
        if limit is not None and self.epsilon >= limit:
            raise ValueError(
                f"epsilon={self.epsilon:g} in units {self.units!r} can never fire, because it is at most {limit}; use "
                f"units='sum' (arXiv 2510.15731 read so that its figures hold) or an epsilon below {limit}"
            )

    def counting(self, auto: Positions) -> Positions:
        """Whose attention counts: `queries`, and for "auto" whatever that is of the model (`hooks.usual_queries`)."""
        return auto if self.queries == "auto" else self.queries

    def can_fire(self, queries: Positions) -> bool:
        """Whether any attention could pass, counted over these queries: one query gives a key at most 1 in all."""
        return self.epsilon is None or self.units != "sum" or queries != "last" or self.epsilon < 1

    def must_fire(self, queries: Positions) -> None:
        """Raise a ValueError if nothing could pass, counted over these queries: no sinks would be found, silently."""
        if not self.can_fire(queries):
            raise ValueError(
                f"{self!r} reads the last query alone, whose attention to a key is at most 1, so "
                f"epsilon={self.epsilon:g} can never fire; use top_k, a smaller epsilon, or queries='all'"
            )

    def __call__(
        self,
        received: Float[Tensor, "*batch key"],
        keys: Bool[Tensor, "*#batch key"] | None = None,
        queries: Float[Tensor, "*#batch"] | int | None = None,
        visible: Float[Tensor, "*#batch key"] | None = None,
    ) -> Bool[Tensor, "*batch key"]:
        """Which keys are sinks.

        Args:
            received: Column sums (`received_attention`); with per="mean" the heads are the dim before the keys.
            keys: Which keys are real and eligible; all when None.
            queries: How many queries were summed, for "mean" and "percent"; the total of `received` when None
                (equal, because rows sum to 1).
            visible: For "share": how many of them can see each key (`Sight.seen_by`); `queries` when None, which
                is right for bidirectional models.
        """
        if self.per == "mean":
            received = received.mean(-2, keepdim=True).expand(received.shape)
        received = received.float()
        valid = torch.ones_like(received, dtype=torch.bool) if keys is None else keys.expand(received.shape)
        if self.epsilon is None:  # a key that nobody attends to is no sink, however short the ranking
            passed = valid & (received > 0)
        else:
            passed = valid & self._passes(self.epsilon, received, valid, queries, visible)
        return passed if self.top_k is None else largest(received, passed, self.top_k)

    def _passes(
        self, epsilon: float, received: Tensor, valid: Tensor, queries: Tensor | int | None, visible: Tensor | None
    ) -> Tensor:
        count = valid.sum(-1, keepdim=True)
        inside = received.where(valid, torch.zeros_like(received))
        total = inside.sum(-1, keepdim=True)
        if self.units == "zscore":
            mean = total / count
            deviation = ((inside - mean).square() * valid).sum(-1, keepdim=True).div(count).sqrt()
            return received > mean + epsilon * deviation
        if queries is None:
            queries = received.sum(-1, keepdim=True)
        elif isinstance(queries, Tensor):
            queries = queries.unsqueeze(-1)
        if self.units == "share":
            return received / (queries if visible is None else visible) > epsilon
        unit = {"sum": 1.0, "mean": 1.0 / queries, "percent": 100.0 / queries}[self.units]
        others = (total - inside) / (count - 1).clamp(min=1)
        return (received - others) * unit > epsilon

    def __repr__(self) -> str:
        shown = ("epsilon", "units") if self.epsilon is not None else ("epsilon",)
        parts = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name in shown or self._said(f)]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _said(self, field: Field) -> bool:
        return getattr(self, field.name) != field.default

    def words(self) -> str:
        """The rule as a phrase."""
        if self.epsilon is None:
            text = f"the {self.top_k} positions with the most received attention"
        elif self.units == "zscore":
            text = (
                f"received attention above the mean of all positions by more than {self.epsilon:g} standard deviations"
            )
        elif self.units == "share":
            text = f"more than {self.epsilon:g} of the attention of the queries that see the position"
        else:
            unit = {"sum": "column sum", "mean": "column mean", "percent": "percent of the queries"}[self.units]
            text = f"received attention above the mean of the other positions by more than {self.epsilon:g} ({unit})"
        text += "" if self.top_k is None or self.epsilon is None else f", at most the {self.top_k} largest"
        return text + self._sets()

    def _sets(self) -> str:
        text = ", heads averaged" if self.per == "mean" else ""
        text += "" if self.queries in ("all", "auto") else f"; by {self.queries} queries"
        return text + ("" if self.keys == "all" else f"; among {self.keys} keys")

    def cut(self, keys: int) -> float | None:
        """The column sum above which a key is a sink, for S = `keys` keys and queries of a bidirectional model.

        None where it depends on the data ("zscore", and rankings without a threshold).
        """
        if self.epsilon is None or self.units == "zscore":
            return None
        if self.units == "share":
            return self.epsilon * keys
        scale = {"sum": 1.0, "mean": float(keys), "percent": keys / 100}[self.units]
        return 1 + self.epsilon * scale * (keys - 1) / keys

    def explain(self, keys: int) -> str:
        """The cut in every unit for S = `keys` keys and queries of a bidirectional model, as text."""
        lines = [f"{self} at S = {keys}:"]
        cut = self.cut(keys)
        if cut is None:
            what = "ranks keys; there is no threshold" if self.epsilon is None else "the cut depends on the data"
            if self.epsilon is not None and self.epsilon**2 >= keys - 1:
                what = f"can never fire: a z-score among {keys} keys is at most {math.sqrt(keys - 1):.3f}"
            return f"{lines[0]} {what}"
        lines.append(
            f"  column sum            C_j > {cut:.3f}   (1 = average key, {keys} = every query's whole attention)"
        )
        lines.append(f"  mean over queries     C_j / S > {cut / keys:.4f}   (uniform: {1 / keys:.4f})")
        lines.append(f"  percent of attention  > {100 * cut / keys:.2f} %   (uniform: {100 / keys:.2f} %)")
        lines.append(f"  at most {math.ceil(keys / cut) - 1 if cut >= 1 else keys} of {keys} keys can be sinks at once")
        if cut >= keys:
            lines.append(f"  can never fire: a column sum is at most {keys}")
        return "\n".join(lines)
