"""Edits of what sinks say, not of who looks at them: the pattern stays, their value vectors change."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinklens.hooks import Hook, by_query
from sinklens.interventions.edits.base import PREVIOUS_TOP1, SinkEdit
from sinklens.interventions.edits.layer import Acting, At
from sinklens.interventions.noise import normal
from sinklens.interventions.selectors.base import Selector
from sinklens.values.kinds import AtLeastZero, Seed


@dataclass(frozen=True, repr=False)
class ValueEdit(SinkEdit):
    """Base: the output of every touched query changes by `sum_j A[i, j] (v'_j - v_j)` over the sinks j.

    Exact per query head, also where several query heads share a value head and only one of them has the sink.
    """

    stage: ClassVar[int] = 2

    def in_layer(self, acting: Acting) -> list[Hook]:
        """Hooks on the values, the pattern (looking) and the mixed values (adding)."""
        kept: dict[str, Tensor] = {}

        def note(value: Tensor, *, hook: Any) -> None:
            kept["value"] = value

        def look(pattern: Tensor, *, hook: Any) -> None:
            at = acting.at(pattern, hook)
            if at.block.start == 0:
                kept.pop("change", None)
                value = kept["value"].transpose(1, 2)
                value = value.repeat_interleave(pattern.shape[1] // value.shape[1], 1).float()
                kept["by"] = self.replacement(value, at) - value
            change = (self.apply(pattern, at).float() @ kept["by"]).transpose(1, 2)
            kept["change"] = torch.cat([kept["change"], change], 1) if "change" in kept else change

        def preview(pattern: Tensor, *, hook: Any) -> None:
            acting.preview(pattern, hook)  # the pattern stays as it is

        def add(mixed: Tensor, *, hook: Any) -> Tensor:
            change = kept["change"]
            kept.clear()
            return mixed + change.to(mixed.dtype).view(mixed.shape)

        prefix = f"blocks.{acting.layer}.attn."
        looking = by_query(look, preview=preview, rounds=acting.rounds)
        return [(f"{prefix}v.hook_out", note), (f"{prefix}{self.hook_point}", looking), (f"{prefix}o.hook_in", add)]

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """The attention that goes to changed values."""
        return tensor * at.touched

    @abstractmethod
    def replacement(self, value: Tensor, at: At) -> Tensor:
        """What each key says instead [batch, head, key, d_head]."""


@dataclass(frozen=True, repr=False)
class ZeroValue(ValueEdit):
    """Sinks say nothing: their value vectors are zero for the touched queries.

    Conserves: the pattern. For the output the same as ZeroSinks, which removes the weight instead.
    Assumes: nothing. Changes nothing where the sink is a resting place, whose value is zero already.
    Source: value path of arXiv 2605.09313's code; zero-value sink of arXiv 2601.19657, table 5.

    Args:
        selector: Who is edited.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.
    """

    selector: Selector = PREVIOUS_TOP1

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """Zeros."""
        return torch.zeros_like(value)


@dataclass(frozen=True, repr=False)
class MeanValue(ValueEdit):
    """Sinks say what the average key says: the mean value vector of the row's real keys, per head.

    Conserves: the pattern, and the mean value.
    Assumes: that queries may know of all real keys; in a causal model the mean also holds keys to the right of a
    query, so there only the last query's output means anything.
    Source: value path of arXiv 2605.09313's code.

    Args:
        selector: Who is edited.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.
    """

    selector: Selector = PREVIOUS_TOP1

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """The mean over real keys."""
        real = at.canvas.valid[:, None, :, None].to(value)
        return ((value * real).sum(2, keepdim=True) / real.sum(2, keepdim=True)).expand(value.shape)


@dataclass(frozen=True, repr=False)
class NoiseValue(ValueEdit):
    """Sinks say something random: normal vectors of mean 0.

    Conserves: the pattern.
    Assumes: nothing.
    Source: value path of arXiv 2605.09313's code.

    Args:
        std: Standard deviation; when None that of all value numbers of the row's real keys in the head, so that the
            noise is as loud as an ordinary key.
        selector: Who is edited.
        seed: For the noise.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ContentError: a standard deviation below 0 or not finite.
    """

    std: AtLeastZero | None = None
    selector: Selector = PREVIOUS_TOP1
    _: KW_ONLY
    seed: Seed = 0

    def replacement(self, value: Tensor, at: At) -> Tensor:
        """Normal noise, the same however the batch is made up."""
        drawn = normal(self.seed, at.canvas, at.layer, value.shape[1], value.shape[-1]).to(value)
        if self.std is not None:
            return drawn * self.std
        real = at.canvas.valid[:, None, :, None].to(value)
        count = real.sum((2, 3), keepdim=True) * value.shape[-1]
        mean = (value * real).sum((2, 3), keepdim=True) / count
        return drawn * ((((value - mean) * real) ** 2).sum((2, 3), keepdim=True) / count).sqrt()
