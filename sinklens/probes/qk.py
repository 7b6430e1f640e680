"""Queries and keys apart: how long, and at what angle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from sinklens.hooks import Scope, rotated
from sinklens.probes.base import Layer, LayerProbe, derived, norms, only, to_query_heads
from sinklens.sinks import Positions


@dataclass(frozen=True, repr=False)
class QKCosine(LayerProbe):
    """Mean cosine between each key and the queries that see it: `mean_i cos(q_i, k_j)`, after RoPE.

    Unit: cosine, in [-1, 1]. 0: the queries are orthogonal to the key on average; 1: all point its way; below 0 they
    point away from it. Only queries that may look at the key count: in a causal layer those at or after it. nan where
    no query in scope does. Grouped-query models: each query head against the key head it uses. Source: the
    decomposition `q.k = ||q|| ||k|| cos` of arXiv 2601.07894; with QueryNorm and KeyNorm it is complete.

    Attributes:
        where: Layers, heads and steps to look at. Keys are always all recorded.
        queries: Which queries count.
    """

    where: Scope = Scope()
    queries: Positions = "all"
    own = "qk_cosine"
    dims = ("layer", "head", "key")
    unit = "cosine"

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"mean cosine between the key and the {self.queries} valid queries that may see it"

    def points_of(self, model: Any) -> tuple[str, ...]:
        """Where the model has its queries and keys."""
        return rotated(model, "q"), rotated(model, "k")

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The means."""
        query, key = tensors
        return mean_cosine(layer, query, key, self.queries)


@dataclass(frozen=True, repr=False)
class QueryNorm(LayerProbe):
    """L2 norm of each query vector, `||q_i||`, after RoPE, which keeps norms, by the query's position.

    Unit: the model's own activations, in [0, inf). 0: the query scores every key 0 and attends evenly; 1: unit
    length, which means nothing by itself: compare positions within a layer and head. Source: the decomposition
    `q.k = ||q|| ||k|| cos` of arXiv 2601.07894.

    Attributes:
        where: Layers, heads and steps to look at.
        queries: Which queries to measure; others are nan.
    """

    where: Scope = Scope()
    queries: Positions = "all"
    own = "query_norm"
    dims = ("layer", "head", "query")
    unit = "L2 norm"

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"L2 norm of the query vector at this position ({self.queries} queries)"

    def points_of(self, model: Any) -> tuple[str, ...]:
        """Where the model has its queries."""
        return (rotated(model, "q"),)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The norms."""
        return norms(tensors[0], layer.queries(self.queries, tensors[0]))


@dataclass(frozen=True, repr=False)
class QKDecomposition(LayerProbe):
    """What of a key makes its scores: two factors of `q.k = ||q|| ||k|| cos(q, k)`, side by side, after RoPE.

    The dim `part` holds "cosine" (mean over the queries that see the key, in [-1, 1]) and "key_norm" (of the key head
    that the query head uses, in the model's own activations, in [0, inf)). 0 and 1 as in QKCosine and KeyNorm, which
    measure them one by one. The third factor belongs to the query: `QueryNorm` has it. `norms.qk_at_sinks` compares
    sinks with other keys. Source: arXiv 2601.07894 (released code; there on head averages).

    Attributes:
        where: Layers, heads and steps to look at. Keys are always all recorded.
        queries: Which queries count for the cosine.
    """

    where: Scope = Scope()
    queries: Positions = "all"
    own = "qk"
    dims = ("layer", "head", "part", "key")
    unit = "cosine; L2 norm"
    parts = ("cosine", "key_norm")

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"mean cosine between the key and the {self.queries} valid queries that may see it; L2 norm of the key"

    def points_of(self, model: Any) -> tuple[str, ...]:
        """Where the model has its queries and keys."""
        return rotated(model, "q"), rotated(model, "k")

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """Both parts."""
        query, key = tensors
        lengths = norms(to_query_heads(key, query.shape[2]), layer.keys("all", key))
        return torch.stack([mean_cosine(layer, query, key, self.queries), lengths], 2)

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        """What was measured, and the parts."""
        return {**super().coords(seen), "part": list(self.parts)}


def mean_cosine(layer: Layer, query: Tensor, key: Tensor, which: Positions) -> Tensor:
    """Mean cosine of each key with the queries that see it [batch, head, key].

    The mean of cosines is the cosine with the mean unit query, so no pattern is formed.
    """
    query, key = (F.normalize(tensor.float(), dim=-1) for tensor in (query, key))
    counts = layer.queries(which, query)
    heads = query.shape[2]
    summed = layer.sight.sums(rearrange(query * counts[..., None, None], "batch query h d -> batch (h d) query"))
    summed = rearrange(summed, "batch (h d) key -> batch key h d", h=heads)
    cosine = (summed * to_query_heads(key, heads)).sum(-1) / layer.sight.seen_by(counts)[..., None]
    return only(rearrange(cosine, "batch key h -> batch h key"), layer.keys("all", key))
