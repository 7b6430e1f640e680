"""How spread each query's attention is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Scope
from sinklens.probes.base import PATTERN, Layer, LayerProbe, derived, only
from sinklens.sinks import Positions


@dataclass(frozen=True, repr=False)
class AttentionEntropy(LayerProbe):
    """Entropy of what each query gives: `-sum_j A[i, j] ln A[i, j]`, by the query's position.

    Unit: nats, in [0, ln(keys)]. 0: one key gets everything; 1: as spread as evenly over e = 2.7 keys; ln(keys): even
    over all keys. Attention is taken as the model used it: an edit that removes mass without renormalising leaves a
    query whose weights do not sum to 1. Source: Shannon's entropy of a row of A as arXiv 2510.15731, section 4.1,
    defines it.

    Attributes:
        where: Layers, heads and steps to look at. Keys are always all counted.
        queries: Which queries to measure; others are nan.
    """

    where: Scope = Scope()
    queries: Positions = "all"
    own = "attention_entropy"
    dims = ("layer", "head", "query")
    unit = "nats"
    points = (PATTERN,)

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"entropy of the attention of the query at this position ({self.queries} queries)"

    def gather(self, kept: list[Any], pattern: Tensor, layer: Layer, block: slice) -> None:
        """The entropy of each query of the block."""
        kept.append(torch.special.entr(pattern.float()).sum(-1))

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The entropies of the queries in question."""
        return only(tensors[0], layer.queries(self.queries, tensors[0]))
