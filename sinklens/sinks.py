"""What a sink is: received attention and the one rule that calls a key a sink. Pure torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Units = Literal["sum", "mean", "percent", "zscore"]


def received_attention(
    pattern: Float[Tensor, "*batch query key"], queries: Bool[Tensor, "*#batch query"] | None = None
) -> Float[Tensor, "*batch key"]:
    """Attention that each key receives: the column sum `C_j = sum_i A[i, j]` over valid queries.

    Range [0, number of queries]; over the keys it averages (queries / keys), which is 1 when both are all
    real positions. 0: nobody attends to the key. arXiv 2510.15731, section 4.1 (there as a column mean).

    Args:
        pattern: Attention weights, rows (fixed query) sum to 1.
        queries: Which queries count; all when None. Padding must never count.
    """
    if queries is None:
        return pattern.float().sum(-2)
    return torch.einsum("...qk,...q->...k", pattern.float(), queries.float().expand(pattern.shape[:-1]))


def uniform_null(keys: int, *, causal: bool) -> Float[Tensor, " key"]:
    """Received attention if every query spread its attention evenly over the keys that it may see.

    1 for every key of a bidirectional model. For a causal one key j receives `sum_{i>=j} 1/(i+1)`: the first
    key gets the harmonic number H_S (4.74 at S = 64), which passes epsilon = 3 without being a sink.
    """
    if not causal:
        return torch.ones(keys)
    weights = 1 / torch.arange(1, keys + 1, dtype=torch.float64)
    return weights.flip(0).cumsum(0).flip(0).float()


@dataclass(frozen=True)
class SinkRule:
    """When a key is a sink. The only definition in sinklens: edits use it online, metrics offline.

    Key j is a sink iff its received attention exceeds the mean of the OTHER valid keys by `epsilon`
    (arXiv 2510.15731, equation 3), per step, layer and head. That equation is printed for column means, where
    epsilon = 3 can never fire, so the unit is explicit:

    - "sum": C_j = sum_i A[i, j], averaging 1 over keys (the default; the reading that fits the paper's figures)
    - "mean": C_j / queries, in [0, 1]
    - "percent": 100 C_j / queries
    - "zscore": (C_j - mean) / population std over all valid keys, compared with epsilon alone
      (Attention Floating, arXiv 2601.07894)

    `top_k` keeps at most the k largest of the keys that pass. With `epsilon=None` there is no threshold and
    the k largest keys are the sinks (the paper's masking experiment, section 4.3).

    Raises:
        ValueError: an unknown unit; "mean" with epsilon >= 1 (cannot fire); neither epsilon nor top_k.
    """

    epsilon: float | None = 3.0
    units: Units = "sum"
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.units not in get_args(Units):
            raise ValueError(f"units={self.units!r} is unknown; the units are {', '.join(get_args(Units))}")
        if self.epsilon is None and self.top_k is None:
            raise ValueError("SinkRule(epsilon=None) ranks keys and so needs top_k, for example top_k=1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} selects nothing; it must be at least 1")
        if self.epsilon is not None and self.units == "mean" and self.epsilon >= 1:
            raise ValueError(
                f"epsilon={self.epsilon:g} in units 'mean' can never fire, because a column mean is at most 1; "
                "use units='sum' (arXiv 2510.15731 read so that its figures hold) or an epsilon below 1"
            )
        if self.epsilon is not None and not self.epsilon > -float("inf"):
            raise ValueError(f"epsilon={self.epsilon} must be a finite number")

    def __call__(
        self,
        received: Float[Tensor, "*batch key"],
        keys: Bool[Tensor, "*#batch key"] | None = None,
        queries: Float[Tensor, "*#batch"] | int | None = None,
    ) -> Bool[Tensor, "*batch key"]:
        """Which keys are sinks.

        Args:
            received: Column sums (`received_attention`).
            keys: Which keys are real and eligible; all when None.
            queries: How many queries were summed, for "mean" and "percent"; the total of `received` when None
                (equal, because rows sum to 1).
        """
        received = received.float()
        valid = torch.ones_like(received, dtype=torch.bool) if keys is None else keys.expand(received.shape)
        score = received.masked_fill(~valid, float("-inf"))
        passed = valid if self.epsilon is None else valid & self._passes(self.epsilon, received, valid, queries)
        if self.top_k is None:
            return passed
        k = min(self.top_k, received.shape[-1])
        top = torch.zeros_like(passed).scatter(-1, score.masked_fill(~passed, float("-inf")).topk(k, -1).indices, True)
        return top & passed

    def _passes(self, epsilon: float, received: Tensor, valid: Tensor, queries: Tensor | int | None) -> Tensor:
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
        unit = {"sum": 1.0, "mean": 1.0 / queries, "percent": 100.0 / queries}[self.units]
        others = (total - inside) / (count - 1).clamp(min=1)
        return (received - others) * unit > epsilon
