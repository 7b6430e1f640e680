"""Edits before the softmax: every row of weights still sums to 1, or to less by what an added key takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Memory, by_query
from sinklens.interventions.edits.base import PREVIOUS_TOP1, AttentionEdit, SinkEdit
from sinklens.interventions.edits.layer import At, Count, View, uncounted
from sinklens.interventions.selectors.base import Selector


@dataclass(frozen=True, repr=False)
class ScoreEdit(SinkEdit):
    """Base of the edits of `hook_attn_scores`."""

    hook_point: ClassVar[str] = "hook_attn_scores"

    def pattern(self, tensor: Tensor) -> Tensor:
        """Softmax of the scores (queries without any key: zero)."""
        pattern = tensor.float().softmax(-1)
        return pattern.nan_to_num(0.0) if bool(pattern[..., 0].isnan().any()) else pattern


@dataclass(frozen=True, repr=False)
class Masking(ScoreEdit):
    """Base: removes keys before the softmax."""

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """Scores with -inf at the touched entries."""
        masked = at.add(tensor, float("-inf"))
        # Other bridges write the lowest number, not -inf, where the model does not look.
        unseen = torch.finfo(tensor.dtype).min / 2
        lost = masked.amax(-1) <= unseen
        if not bool(lost.any()):
            return masked
        lost = lost & (tensor.amax(-1) > unseen)
        at.count("rows_that_kept_one_key", lost.sum((1, 2)))
        largest = torch.zeros_like(at.touched).scatter(-1, tensor.argmax(-1, keepdim=True), True)
        return torch.where(lost[..., None] & largest, tensor, masked)


@dataclass(frozen=True, repr=False)
class MaskSinks(Masking):
    """Set the sinks' scores to minus infinity before the softmax, so that the rest of the row takes their mass.

    Conserves: row sums (1), and the proportions of the other keys. Equal to removing the sinks after the softmax and
    giving their mass to the other keys in proportion.
    Assumes: a query keeps at least one key; one that would lose all keeps its largest, and this is counted.
    Source: arXiv 2510.15731, section 4.3.

    Example:
        >>> import sinklens as sl
        >>> sl.MaskSinks(sl.SameStep(top_k=1), where=sl.Where(layers=[1]))
        MaskSinks(SameStep(top_k=1), where=Scope(layers=(1,)))

    Args:
        selector: Who is edited; the paper's PreviousStep(top_k=1) unless said otherwise.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.
    """

    selector: Selector = PREVIOUS_TOP1


@dataclass(frozen=True, repr=False)
class BiasSinks(ScoreEdit):
    """Add `bias` to the sinks' scores before the softmax: their odds against the other keys change by exp(bias).

    Conserves: row sums (1), and the proportions of the other keys. 0 is the identity; -inf would be MaskSinks, which
    also looks after queries that lose every key, so it must be finite.
    Assumes: that not every key of a query is touched: a constant added to all of them does nothing.
    Source: the "bias b" of causal sink studies (score path of arXiv 2605.09313, which subtracts 1e4).

    Args:
        bias: What to add, in logits; below 0 weakens the sink.
        selector: Who is edited.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ValueError: a bias that is not finite.
    """

    bias: float
    selector: Selector = PREVIOUS_TOP1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.bias):
            raise ValueError(f"bias={self.bias} must be finite; to remove sinks entirely use MaskSinks")

    @property
    def changes(self) -> bool:
        """Unless the bias is 0."""
        return self.bias != 0

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """Scores with the bias at the touched entries."""
        return at.add(tensor, self.bias)


@dataclass(frozen=True, repr=False)
class NullKey(AttentionEdit):
    """An extra key with value zero takes part in the softmax: every row over real keys sums to less than 1.

    `A'[i, j] = exp(s[i, j]) / (exp(logit) + sum_k exp(s[i, k]))`. A sink that does nothing but rest has a place to go.
    Conserves: the proportions of the real keys; each query's weights are scaled by one factor. The absorbed mass is
    counted ("mass" over "rows" queries).
    Assumes: nothing; logit -inf is the identity, and logit 0 is softmax-off-by-one.
    Source: the sink logits of gpt-oss, and the zero-value sink token of arXiv 2601.19657 (which is trained; here the
    model has never seen it).

    Args:
        logit: Score of the extra key, the same for all queries (-inf or finite).
        where: As in AttentionEdit.
        queries: As in AttentionEdit.

    Raises:
        ValueError: a logit of nan or +inf.
    """

    logit: float = 0.0
    stage: ClassVar[int] = 1
    counted: ClassVar[tuple[str, ...]] = ("mass", "rows")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit == math.inf:
            raise ValueError(f"logit={self.logit} must be finite or -inf; at +inf nothing would be left for real keys")

    @property
    def changes(self) -> bool:
        """Unless the extra key gets nothing."""
        return self.logit != -math.inf

    def of_new(self, model: Any) -> bool:
        """Yes: each query has its own."""
        return True

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks on scores (looking) and pattern (scaling)."""
        hooks: list[Hook] = []
        for layer in self.layers(model):
            share: dict[str, Tensor] = {}
            look = partial(self._look, share)
            scale, preview = (partial(self._scale, model, canvas, share, count) for count in (memory.count, uncounted))
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", by_query(look, preview=look)))
            hooks.append((f"blocks.{layer}.attn.hook_pattern", by_query(scale, preview=preview)))
        return hooks

    def _look(self, share: dict[str, Tensor], scores: Tensor, *, hook: Any) -> None:
        share["kept"] = torch.sigmoid(scores.float().logsumexp(-1, keepdim=True) - self.logit)

    def _scale(
        self, model: Any, canvas: Canvas | None, share: dict[str, Tensor], count: Count, pattern: Tensor, *, hook: Any
    ) -> Tensor:
        asked = in_scope(self, View.of(model, pattern, hook, canvas), pattern)
        kept = torch.where(asked, share.pop("kept"), 1.0)
        count("mass", (1 - kept).sum((1, 2, 3)))
        count("rows", asked.sum((1, 2, 3)))
        return pattern * kept.to(pattern.dtype)


def in_scope(edit: AttentionEdit, view: View, pattern: Tensor) -> Tensor:
    """The heads and queries of a block that an edit touches [batch, head, query, 1]."""
    queries = view.edited(edit.queries)[:, None, :, None].to(pattern.device)
    return edit.heads(view.canvas, pattern.shape[1], pattern.device)[..., None, None] & queries
