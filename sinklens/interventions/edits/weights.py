"""Edits after the softmax: what happens to the attention that sinks had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sinklens.errors import NotFinite, ScopeError
from sinklens.hooks import Canvas
from sinklens.interventions.edits.base import PREVIOUS_TOP1, SinkEdit
from sinklens.interventions.edits.layer import At
from sinklens.interventions.noise import noise
from sinklens.interventions.selectors.base import Selector
from sinklens.values.kinds import AtLeastZero, Index, Seed, Share

To = Literal["proportional", "uniform", "self"] | Index | Callable[[Tensor, At], Tensor]


@dataclass(frozen=True, repr=False)
class NoOp(SinkEdit):
    """Find the sinks and leave everything as it is: the control of the instrument itself.

    Conserves: everything, bit for bit (compared with a run that reads the pattern, too).
    Assumes: nothing.
    Source: the no-op parity test of arXiv 2605.09313's code.

    Args:
        selector: Who is edited.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.
    """

    selector: Selector = PREVIOUS_TOP1

    @property
    def changes(self) -> bool:
        """Never."""
        return False

    def apply(self, tensor: Tensor, at: At) -> None:
        """Nothing."""


@dataclass(frozen=True, repr=False)
class ZeroSinks(SinkEdit):
    """Set the sinks' weights to zero after the softmax; their mass is lost.

    Conserves: the other keys' weights. Row sums drop by exactly the sinks' mass.
    Assumes: nothing.
    Source: the score-path control of arXiv 2605.09313 without its renormalisation.

    Args:
        selector: Who is edited.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.
    """

    selector: Selector = PREVIOUS_TOP1

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """The pattern with zeros at the touched entries."""
        return tensor.masked_fill(at.touched, 0.0)


@dataclass(frozen=True, repr=False)
class ScaleSinks(SinkEdit):
    """Multiply the sinks' weights by `factor` after the softmax.

    Conserves: without renormalising, the other keys' weights (row sums change); with it, row sums and the
    proportions of the other keys, which take or give the difference. Factor 1 is the identity, 0 without
    renormalising is ZeroSinks, 0 with it MaskSinks.
    Assumes: with renormalising and a factor above 1, that the others have enough to give; a query of which they
    have not is left as it is and counted ("rows_left").
    Source: "prob_scale" of arXiv 2605.09313's code (factor 0.1, the rest scaled so that rows sum to 1).

    Args:
        factor: At least 0.
        selector: Who is edited.
        renormalise: Whether the other keys make up for it.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ContentError: a factor below 0 or not finite.
    """

    factor: AtLeastZero
    selector: Selector = PREVIOUS_TOP1
    _: KW_ONLY
    renormalise: bool = False

    @property
    def changes(self) -> bool:
        """Unless the factor is 1."""
        return self.factor != 1

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """The pattern with scaled sinks."""
        scaled = torch.where(at.touched, tensor * self.factor, tensor)
        if not self.renormalise:
            return scaled
        mass = (tensor * at.touched).sum(-1, keepdim=True)
        rest = (tensor * ~at.touched).sum(-1, keepdim=True)
        left = rest + (1 - self.factor) * mass
        fine = (rest > 0) & (left >= 0)
        at.count("rows_left", (~fine & at.touched.any(-1, keepdim=True)).sum((1, 2, 3)))
        grown = torch.where(at.touched, scaled, tensor * (left / rest.where(fine, 1)))
        return torch.where(fine, grown, tensor)


@dataclass(frozen=True, repr=False)
class Redistribute(SinkEdit):
    """Take a share of the sinks' weight after the softmax and give it to other keys of the same row.

    Conserves: row sums, exactly. `to="proportional"` with share 1 equals MaskSinks.
    Assumes: a query has a key to give to (one that it may see, and that is not touched); where it has none its weights
    are left as they are, and that is counted ("rows_left").
    Source: ACT (arXiv 2406.15765) is "proportional" with share 0.6 (its beta is 0.4), in chosen heads only.

    Args:
        to: Who gets it: "proportional" (the others, in proportion to what they have), "uniform" (the others, evenly),
            "self" (the query's own position), a position (counted from the row's first real token), or a function
            (pattern, at) -> weights [batch, head, query, key], at least 0, that sum to 1 for each query. Give a
            function a name, `sinklens.named("what it does", function)`: two without one cannot be told apart.
        selector: Who is edited.
        share: How much of the sinks' weight is taken, in [0, 1].
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ContentError: an unknown target, or a share out of its range.
    """

    to: To = "proportional"
    selector: Selector = PREVIOUS_TOP1
    _: KW_ONLY
    share: Share = 1.0

    @property
    def changes(self) -> bool:
        """Unless the share is 0."""
        return self.share != 0

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a position that a row does not have."""
        super().check(model, canvas)
        shortest = int(canvas.valid.sum(-1).min())
        if isinstance(self.to, int) and self.to >= shortest:
            raise ScopeError(f"{self!r}: the shortest row has positions 0 to {shortest - 1}")

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """The pattern with the sinks' weight moved."""
        weights = self._weights(tensor.float(), at).to(tensor.dtype)
        taken = torch.where(at.touched, tensor * self.share, 0.0)
        moved = taken.sum(-1, keepdim=True)
        able = weights.sum(-1, keepdim=True) > 0
        at.count("rows_left", (~able & (moved > 0)).sum((1, 2, 3)))
        return torch.where(able, tensor - taken + moved * weights, tensor)

    def _weights(self, pattern: Tensor, at: At) -> Tensor:
        """Who gets how much of one unit; zeros where nobody can."""
        others = at.visible & ~at.touched
        if self.to == "proportional":
            weights = pattern * others
        elif self.to == "uniform":
            weights = others.float()
        elif self.to == "self":
            own = torch.arange(pattern.shape[-1], device=pattern.device) == at.places[:, None]
            weights = (own & others).float()
        elif isinstance(self.to, int):
            start = at.canvas.valid.int().argmax(-1).to(pattern.device)
            place = torch.arange(pattern.shape[-1], device=pattern.device) == (start + self.to)[:, None]
            weights = (place[:, None, None, :] & others).float()
        else:
            return self._given(self.to, pattern, at)
        total = weights.sum(-1, keepdim=True)
        return weights / total.where(total > 0, 1)

    def _given(self, function: Callable[[Tensor, At], Tensor], pattern: Tensor, at: At) -> Tensor:
        weights = function(pattern, at)
        sums = weights.sum(-1)[at.touched.any(-1)]
        if bool((weights < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise NotFinite(f"{self!r}: the weights of a function must be at least 0 and sum to 1 for each query")
        return weights


@dataclass(frozen=True, repr=False)
class Swap(SinkEdit):
    """Exchange each sink's weight with that of a random other key, after the softmax.

    The sink's mass lands on another key, and that key's small weight on the sink. Conserves: row sums, and the set of
    weights in each row (so its entropy).
    Assumes: that there are as many other keys as sinks; sinks without a partner stay, and are counted
    ("keys_without_partner"). Where a query may not look everywhere (a causal model, a local window), only queries that
    see both keys are touched.
    Source: sinklens; it separates "a key must take the mass" from "this key must".

    Args:
        selector: Who is edited.
        seed: For the draw of the partners.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.
    """

    selector: Selector = PREVIOUS_TOP1
    _: KW_ONLY
    seed: Seed = 0

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """The pattern with exchanged columns."""
        keys = tensor.shape[-1]
        free = at.canvas.valid[:, None].to(tensor.device) & ~at.selected
        draw = noise(self.seed, at.canvas, at.layer, tensor.shape[1]).to(tensor.device)
        order = draw.masked_fill(~free, -1.0).argsort(dim=-1, descending=True, stable=True)
        rank = at.selected.cumsum(-1) - 1  # the n-th sink gets the n-th key of the draw
        paired = at.selected & (rank < free.sum(-1, keepdim=True))
        if at.block.start == 0:  # keys, not queries: once for all blocks
            at.count("keys_without_partner", (at.selected & ~paired).sum((1, 2)))
        identity = torch.arange(keys, device=tensor.device).expand(at.selected.shape)
        partner = torch.where(paired, order.gather(-1, rank.clamp(min=0)), identity)
        # The way back, partner -> sink; unpaired keys write to a place that is cut off.
        there = torch.where(paired, partner, keys)
        source = torch.nn.functional.pad(partner, (0, 1)).scatter(-1, there, identity)[..., :keys]
        source = source[:, :, None, :].expand(tensor.shape)
        pair = at.touched | at.touched.gather(-1, source)
        both = at.visible & at.visible.expand(tensor.shape).gather(-1, source)
        return torch.where(pair & both, tensor.gather(-1, source), tensor)
