"""Edits of what sinks say, not of who looks at them: the pattern stays, their value vectors change."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from sinklens.hooks import Hook, Where, rows_of, rowwise
from sinklens.interventions.edits.base import At, SinkEdit
from sinklens.interventions.noise import normal
from sinklens.interventions.selectors.attention import Detector


class ValueEdit(SinkEdit):
    """Base: the output of every touched query changes by `sum_j A[i, j] (v'_j - v_j)` over the sinks j.

    Exact per query head, also where several query heads share a value head and only one of them has the sink.
    """

    stage = 2

    def around(self, layer: int, hook: Hook) -> list[Hook]:
        """Hooks on the values, the pattern (looking) and the mixed values (adding)."""
        name, act = hook[0], cast(Any, hook[1])
        kept: dict[str, Tensor] = {}

        def note(value: Tensor, *, hook: Any) -> None:
            kept["value"] = value

        def look(pattern: Tensor, *, hook: Any) -> None:
            found = act(pattern, hook=hook)
            if found is None:
                return
            if rows_of(hook, pattern).start == 0:
                value = kept["value"].transpose(1, 2)
                value = value.repeat_interleave(pattern.shape[1] // value.shape[1], 1).float()
                kept["by"] = self.replacement(value, self._at) - value
            change = (found.float() @ kept["by"]).transpose(1, 2)
            kept["change"] = torch.cat([kept["change"], change], 1) if "change" in kept else change

        def add(mixed: Tensor, *, hook: Any) -> Tensor | None:
            change = kept.pop("change", None)
            kept.clear()
            return None if change is None else mixed + change.to(mixed.dtype).view(mixed.shape)

        prefix = f"blocks.{layer}.attn."

        def before(pattern: Tensor, *, hook: Any) -> None:
            act.look(pattern, hook=hook)  # the pattern stays as it is

        rowwise(look, look=before, sweeps=act.sweeps)
        return [(f"{prefix}v.hook_out", note), (name, look), (f"{prefix}o.hook_in", add)]

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """The attention that goes to changed values."""
        self._at = at
        return tensor * at.touched

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """What each key says instead [batch, head, key, d_head]."""
        raise NotImplementedError(f"{type(self).__name__} has no replacement")


class ZeroValue(ValueEdit):
    """Sinks say nothing: their value vectors are zero for the touched queries.

    Conserves: the pattern. For the output the same as ZeroSinks, which removes the weight instead.
    Assumes: nothing. Changes nothing where the sink is a resting place, whose value is zero already.
    Source: value path of arXiv 2605.09313's code; zero-value sink of arXiv 2601.19657, table 5.
    """

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """Zeros."""
        return torch.zeros_like(value)


class MeanValue(ValueEdit):
    """Sinks say what the average key says: the mean value vector of the row's real keys, per head.

    Conserves: the pattern, and the mean value.
    Assumes: that queries may know of all real keys; in a causal model the mean also holds keys to the right of a
    query, so there only the last query's output means anything.
    Source: value path of arXiv 2605.09313's code.
    """

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """The mean over real keys."""
        real = at.canvas.valid[:, None, :, None].to(value)
        return ((value * real).sum(2, keepdim=True) / real.sum(2, keepdim=True)).expand(value.shape)


class NoiseValue(ValueEdit):
    """Sinks say something random: normal vectors of mean 0.

    Conserves: the pattern.
    Assumes: nothing.
    Source: value path of arXiv 2605.09313's code.

    Args:
        std: Standard deviation; when None that of all value numbers of the row's real keys in the head, so that the
            noise is as loud as an ordinary key.
        detector: Who is edited.
        where: The scope.
        seed: For the noise.
    """

    def __init__(
        self, std: float | None = None, detector: Detector | None = None, where: Where | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(detector, where)
        if std is not None and not 0 <= std < math.inf:
            raise ValueError(f"std={std} must be a finite number of at least 0, or None for the values' own")
        self.std, self.seed = std, seed

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """Normal noise, the same however the batch is made up."""
        drawn = normal(self.seed, at.canvas, at.layer, value.shape[1], value.shape[-1]).to(value)
        if self.std is not None:
            return drawn * self.std
        real = at.canvas.valid[:, None, :, None].to(value)
        count = real.sum((2, 3), keepdim=True) * value.shape[-1]
        mean = (value * real).sum((2, 3), keepdim=True) / count
        return drawn * ((((value - mean) * real) ** 2).sum((2, 3), keepdim=True) / count).sqrt()

    def arguments(self) -> list[str]:
        """Std, detector, seed."""
        std = [] if self.std is None else [f"std={self.std:g}"]
        return [*std, *super().arguments(), *([] if self.seed == 0 else [f"seed={self.seed}"])]
