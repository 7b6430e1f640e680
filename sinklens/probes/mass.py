"""How much attention a set of keys gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.errors import HookNeverFired, ScopeError
from sinklens.hooks import Canvas, Hook, Where
from sinklens.probes.base import LayerProbe, seen
from sinklens.sinks import Positions, received_attention
from sinklens.sinks.tokens import CLASSES, ids_of_class


class MassOn(LayerProbe):
    """Attention mass that each head puts on a set of keys: `mean_i sum_{j in set} A[i, j]` over valid queries.

    Unit: share of attention, in [0, 1]. 0: no query looks at the set (or the row has none of its keys); 1: every
    query looks nowhere else. Sets that divide the keys between them add up to 1. nan where a row has no query in
    scope. Source: the absorption rate of arXiv 2601.07894 (there averaged over heads, in percent). With
    `where=Where(queries="masked")` it counts the queries that arXiv 2510.09309 counts.

    The variable is named after the set, "mass_on_masked", "mass_on_position_0", "mass_on_token_13", followed by
    "_from_masked" and so on where the queries are not all.

    Args:
        what: Which keys: "all", "masked", "committed", "prompt", "response" or "last"; or a token class (`CLASSES`:
            "bos", "eos", "mask", "white space", "punctuation", "digit", "word"), by the tokens that stand there at
            the step; or one or several positions, counted from each row's first real token, so [0] is the BOS token.
        tokens: Instead of `what`: the keys that hold one of these token ids.
        where: Layers, steps and queries to look at. Heads are always all recorded.
        name: Name of the record variable, if the one above is unwieldy.

    Raises:
        ScopeError: a ValueError: an unknown set, a negative position, or not exactly one of `what` and `tokens`.
    """

    dims = ("layer", "head")
    unit = "share of attention"
    points = ("attn.hook_pattern",)

    def __init__(
        self,
        what: str | int | Sequence[int] | None = None,
        *,
        tokens: Sequence[int] | None = None,
        where: Where | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(where)
        known = ", ".join((*get_args(Positions), *CLASSES))
        if (what is None) == (tokens is None):
            raise ScopeError(f"give MassOn either a set of keys ({known}, or positions) or tokens=[ids], not both")
        if isinstance(what, str) and what not in (*get_args(Positions), *CLASSES):
            raise ScopeError(f"the set of keys {what!r} is unknown; choose from {known}, or give positions or tokens=")
        self.kind = what if isinstance(what, str) else None
        numbers = tokens if what is None else () if isinstance(what, str) else what
        self.numbers = (numbers,) if isinstance(numbers, int) else tuple(int(number) for number in numbers or ())
        if self.kind is None and (not self.numbers or min(self.numbers) < 0):
            given = f"tokens={list(self.numbers)}" if what is None else f"positions {list(self.numbers)}"
            raise ScopeError(f"{given}: give at least one, counted from 0 (from each row's first real token)")
        self.of_tokens = tokens is not None or what in CLASSES
        self._ids: tuple[Any, list[int]] = (None, list(self.numbers))
        self._tokens: Tensor | None = None
        joined = "_".join(map(str, self.numbers))
        suffix = "" if self.where.queries == "all" else f"_from_{self.where.queries}"
        kind = (self.kind or "").replace(" ", "_") or (f"token_{joined}" if self.of_tokens else f"position_{joined}")
        self.name = name or f"mass_on_{kind}{suffix}"
        self._named = name

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        held = f"token ids {list(self.numbers)}" if self.of_tokens else f"positions {list(self.numbers)} of the row"
        keys = f"{self.kind} {'tokens' if self.of_tokens else 'keys'}" if self.kind else f"keys at {held}"
        return f"share of their attention that {self.where.queries} valid queries put on {keys}, on average"

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on `hook_pattern`; and on `embed.hook_in`, which carries the ids, for tokens without a canvas."""
        if self.kind in CLASSES and self._ids[0] is not model:
            self._ids = (model, ids_of_class(model, str(self.kind)))
        hooks = super().fwd_hooks(model, canvas)
        self._tokens = canvas.tokens if canvas else None
        return [("embed.hook_in", self._note), *hooks] if self.of_tokens and canvas is None else hooks

    def _note(self, tokens: Tensor, *, hook: Any) -> None:
        self._tokens = tokens.detach()

    def _keys(self, canvas: Canvas) -> Bool[Tensor, "batch key"]:
        if self.kind is not None and not self.of_tokens:
            return canvas.where(cast(Positions, self.kind))
        numbers = torch.tensor(self._ids[1], device=canvas.valid.device)
        if self.of_tokens:
            if self._tokens is None:
                raise HookNeverFired(f"{self!r} saw no token ids: give the model ids, not embeddings")
            return canvas.valid & torch.isin(self._tokens.to(numbers.device), numbers)
        first = canvas.valid.int().argmax(-1, keepdim=True)
        place = torch.arange(canvas.valid.shape[1], device=numbers.device) - first
        return canvas.valid & torch.isin(place, numbers)

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        return received_attention(pattern, canvas.where(self.where.queries)[:, None, rows].to(pattern.device))

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (received,) = tensors
        full = seen(canvas, len(received), received.shape[-1], received.device)
        queries = full.where(self.where.queries)[:, None].to(received.device)
        return (received * self._keys(full)[:, None].to(received.device)).sum(-1) / queries.sum(-1)

    def _arguments(self) -> list[str]:
        numbers = list(self.numbers)
        what = repr(self.kind) if self.kind else f"tokens={numbers}" if self.of_tokens else repr(numbers)
        return [what, *([f"name={self._named!r}"] if self._named else [])]
