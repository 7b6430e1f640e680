"""Edits before the softmax: every row still sums to 1, or to less by what an added key takes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Where, plain_canvas, rows_of, rowwise
from sinklens.interventions.edits.base import At, Edit, SinkEdit
from sinklens.interventions.selectors.attention import Detector


class ScoreEdit(SinkEdit):
    """Base of the edits of `hook_attn_scores`."""

    hook_point = "hook_attn_scores"

    def pattern(self, tensor: Tensor) -> Tensor:
        """Softmax of the scores (rows without any key: zero)."""
        pattern = tensor.float().softmax(-1)
        return pattern.nan_to_num(0.0) if bool(pattern[..., 0].isnan().any()) else pattern


class MaskSinks(ScoreEdit):
    """Set the sinks' scores to minus infinity before the softmax, so that the rest of the row takes their mass.

    Conserves: row sums (1), and the proportions of the other keys. Equal to removing the sinks after the softmax and
    giving their mass to the other keys in proportion.
    Assumes: a row keeps at least one key; one that would lose all keeps its largest, and this is counted.
    Source: arXiv 2510.15731, section 4.3.
    """

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """Scores with -inf at the touched entries."""
        masked = at.add(tensor, float("-inf"))
        # Other bridges write the lowest number, not -inf, where the model does not look.
        unseen = torch.finfo(tensor.dtype).min / 2
        lost = masked.amax(-1) <= unseen
        if not bool(lost.any()):
            return masked
        lost = lost & (tensor.amax(-1) > unseen)
        self.count("rows_that_kept_one_key", lost.sum((1, 2)))
        largest = torch.zeros_like(at.touched).scatter(-1, tensor.argmax(-1, keepdim=True), True)
        return torch.where(lost[..., None] & largest, tensor, masked)


class BiasSinks(ScoreEdit):
    """Add `bias` to the sinks' scores before the softmax: their odds against the other keys change by exp(bias).

    Conserves: row sums (1), and the proportions of the other keys. 0 is the identity; -inf would be MaskSinks, which
    also looks after rows that lose every key, so it must be finite.
    Assumes: that not every key of a row is touched: a constant added to a whole row does nothing.
    Source: the "bias b" of causal sink studies (score path of arXiv 2605.09313, which subtracts 1e4).

    Args:
        bias: What to add, in logits; below 0 weakens the sink.
        detector: Who is edited.
        where: The scope.
    """

    def __init__(self, bias: float, detector: Detector | None = None, where: Where | None = None) -> None:
        super().__init__(detector, where)
        if not math.isfinite(bias):
            raise ValueError(f"bias={bias} must be finite; to remove sinks entirely use MaskSinks")
        self.bias = float(bias)

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """Scores with the bias at the touched entries."""
        return at.add(tensor, self.bias)

    def arguments(self) -> list[str]:
        """Bias and detector."""
        return [f"{self.bias:g}", *super().arguments()]


class NullKey(Edit):
    """An extra key with value zero takes part in the softmax: every row over real keys sums to less than 1.

    `A'[i, j] = exp(s[i, j]) / (exp(logit) + sum_k exp(s[i, k]))`. A sink that does nothing but rest has a place to go.
    Conserves: the proportions of the real keys; each row is scaled by one factor. The absorbed mass is counted ("mass"
    over "rows" query rows).
    Assumes: nothing; logit -inf is the identity, and logit 0 is softmax-off-by-one.
    Source: the sink logits of gpt-oss, and the zero-value sink token of arXiv 2601.19657 (which is trained; here the
    model has never seen it).

    Args:
        logit: Score of the extra key, the same for all queries (-inf or finite).
        where: Layers, heads, steps and queries; keys have no meaning here.
    """

    stage = 1

    def __init__(self, logit: float = 0.0, where: Where | None = None) -> None:
        super().__init__(where)
        if math.isnan(logit) or logit == math.inf:
            raise ValueError(f"logit={logit} must be finite or -inf; at +inf nothing would be left for real keys")
        self.logit = float(logit)

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on scores (looking) and pattern (scaling)."""
        hooks: list[Hook] = []
        for layer in self.layers(model) if self.acts(canvas) else []:
            share: dict[str, Tensor] = {}
            look, scale = partial(self._look, share), partial(self._scale, share, canvas)
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", rowwise(look, look=look)))
            hooks.append((f"blocks.{layer}.attn.hook_pattern", rowwise(scale, look=self.quietly(scale))))
        return hooks

    def _look(self, share: dict[str, Tensor], scores: Tensor, *, hook: Any) -> None:
        share["kept"] = torch.sigmoid(scores.float().logsumexp(-1, keepdim=True) - self.logit)

    def _scale(self, share: dict[str, Tensor], canvas: Canvas | None, pattern: Tensor, *, hook: Any) -> Tensor:
        seen = canvas or plain_canvas((pattern.shape[0], pattern.shape[-1]), pattern.device)
        rows = self.rows(seen, pattern.shape[1], pattern.device)[:, :, rows_of(hook, pattern)]
        kept = torch.where(rows, share.pop("kept"), 1.0)
        self.count("mass", (1 - kept).sum((1, 2, 3)))
        self.count("rows", rows.sum((1, 2, 3)))
        return pattern * kept.to(pattern.dtype)

    def arguments(self) -> list[str]:
        """The logit."""
        return [f"{self.logit:g}"]
