"""Queries and keys apart: how long, and at what angle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sinklens.hooks import Canvas, is_causal, rotated
from sinklens.probes.base import LayerProbe, norms, only, seen


class QKCosine(LayerProbe):
    """Mean cosine between each key and the queries that see it: `mean_i cos(q_i, k_j)`, after RoPE.

    Unit: cosine, in [-1, 1]. 0: the queries are orthogonal to the key on average; 1: all point its way; below 0 they
    point away from it. In a causal layer only queries at or after the key count. nan where no query in scope sees
    the key. Grouped-query models: each query head against the key head it uses. Source: the decomposition
    `q.k = ||q|| ||k|| cos` of arXiv 2601.07894; with QueryNorm and KeyNorm it is complete.

    Args:
        where: Layers, steps and queries to look at. Heads and keys are always all recorded.
    """

    name = "qk_cosine"
    dims = ("layer", "head", "key")
    unit = "cosine"

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"mean cosine between the key and the {self.where.queries} valid queries that may see it"

    def _points(self, model: Any) -> tuple[str, ...]:
        return rotated(model, "q"), rotated(model, "k")

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        query, key = (F.normalize(tensor.float(), dim=-1) for tensor in tensors)  # [batch, pos, head, d_head]
        full = seen(canvas, query.shape[0], query.shape[1], query.device)
        counts = full.where(self.where.queries).to(query.device)[:, :, None, None].float()
        # The mean of cosines is the cosine with the mean unit query: no pattern is formed.
        if is_causal(model):
            total, number = ((x.flip(1).cumsum(1).flip(1)) for x in (query * counts, counts))
        else:
            total, number = ((x.sum(1, keepdim=True)) for x in (query * counts, counts))
        key = key.repeat_interleave(query.shape[2] // key.shape[2], 2)
        cosine = (total * key).sum(-1) / number[..., 0]
        return only(cosine.transpose(1, 2), full.valid)


class QueryNorm(LayerProbe):
    """L2 norm of each query vector, `||q_i||`, after RoPE, which keeps norms; the position is the query's.

    Unit: the model's own activations, in [0, inf). 0: the query scores every key 0 and attends evenly; 1: unit
    length, which means nothing by itself: compare positions within a layer and head. Source: the decomposition
    `q.k = ||q|| ||k|| cos` of arXiv 2601.07894.

    Args:
        where: Layers, steps and queries to look at; other queries are nan. Heads are always all recorded.
    """

    name = "query_norm"
    dims = ("layer", "head", "key")
    unit = "L2 norm"

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"L2 norm of the query vector at this position ({self.where.queries} queries)"

    def _points(self, model: Any) -> tuple[str, ...]:
        return (rotated(model, "q"),)

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (query,) = tensors
        queries = seen(canvas, query.shape[0], query.shape[1], query.device).where(self.where.queries)
        return only(norms(query, canvas), queries)


class QKDecomposition(LayerProbe):
    """What makes a key's scores: `q.k = ||q|| ||k|| cos(q, k)`, its three factors side by side, after RoPE.

    The dim `part` holds "cosine" (mean over the queries that see the key, in [-1, 1]), "key_norm" (of the key head that
    the query head uses) and "query_norm" (of the query at this position), both in the model's own activations, in
    [0, inf). 0 and 1 as in QKCosine, KeyNorm and QueryNorm, which measure them one by one. `norms.qk_at_sinks` compares
    sinks with other keys. Source: arXiv 2601.07894 (released code; there on head averages).

    Args:
        where: Layers, steps and queries to look at. Heads and keys are always all recorded.
    """

    name = "qk"
    dims = ("layer", "head", "part", "key")
    unit = "cosine; L2 norms"
    parts = ("cosine", "key_norm", "query_norm")

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"{QKCosine(self.where).definition}; L2 norm of the key; L2 norm of the query at this position"

    def _points(self, model: Any) -> tuple[str, ...]:
        return rotated(model, "q"), rotated(model, "k")

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        query, key = tensors
        cosine = QKCosine(self.where)._measure(model, layer, canvas, query, key)
        lengths = norms(key, canvas).repeat_interleave(query.shape[2] // key.shape[2], 1)
        return torch.stack([cosine, lengths, QueryNorm(self.where)._measure(model, layer, canvas, query)], 2)

    def coords(self) -> dict[str, list[Any]]:
        """The layers that were measured, and the parts."""
        return {**super().coords(), "part": list(self.parts)}
