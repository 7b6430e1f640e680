"""How spread each query's attention is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas
from sinklens.probes.base import LayerProbe, only, seen


class AttentionEntropy(LayerProbe):
    """Entropy of each query's attention row, `-sum_j A[i, j] ln A[i, j]`; the position is the query's.

    Unit: nats, in [0, ln(keys)]. 0: one key gets everything; 1: as spread as an even row over e = 2.7 keys;
    ln(keys): even over all keys. The row is taken as the model used it: an edit that removes mass without
    renormalising leaves a row that does not sum to 1. Source: Shannon's entropy of a row of A as
    arXiv 2510.15731, section 4.1, defines it.

    Args:
        where: Layers, steps and queries to look at; other queries are nan. Heads and keys are always all counted.
    """

    name = "attention_entropy"
    dims = ("layer", "head", "key")
    unit = "nats"
    points = ("attn.hook_pattern",)
    join = True

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"entropy of the attention row of the query at this position ({self.where.queries} queries)"

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        return torch.special.entr(pattern.float()).sum(-1)

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (entropy,) = tensors
        queries = seen(canvas, len(entropy), entropy.shape[-1], entropy.device).where(self.where.queries)
        return only(entropy, queries)
