"""How much attention a set of keys gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.errors import HookNeverFired, ScopeError
from sinklens.hooks import Canvas, Hook, Scope
from sinklens.probes.base import Layer, ReceivedProbe, derived
from sinklens.sinks import Positions
from sinklens.sinks.tokens import CLASSES, Class, ids_of_class, in_vocabulary
from sinklens.values.kinds import Index


@dataclass(frozen=True, repr=False)
class MassOn(ReceivedProbe):
    """Attention mass that each head puts on a set of keys: `mean_i sum_{j in set} A[i, j]` over valid queries.

    Unit: share of attention, in [0, 1]. 0: no query looks at the set (or the row has none of its keys); 1: every
    query looks nowhere else. Sets that divide the keys between them add up to 1. nan where a row has no query in
    scope. Source: the absorption rate of arXiv 2601.07894 (there averaged over heads, in percent). With
    `queries="masked"` it counts the queries that arXiv 2510.09309 counts.

    The variable is named after the set, "mass_on_masked", "mass_on_position_0", "mass_on_token_13", followed by
    "_from_masked" and so on where the queries are not all.

    Attributes:
        what: Which keys: "all", "masked", "committed", "prompt", "response" or "last"; or a token class (`CLASSES`:
            "bos", "eos", "mask", "white space", "punctuation", "digit", "word"), by the tokens that stand there at
            the step; or one or several positions, counted from each row's first real token, so [0] is the BOS token.
        tokens: Instead of `what`: the keys that hold one of these token ids.
        queries: Whose attention counts.
        where: Layers, heads and steps to look at.

    Raises:
        ScopeError: a ValueError: an unknown set, a negative position, or not exactly one of `what` and `tokens`.
    """

    what: Positions | Class | Index | Sequence[Index] | None = None
    _: KW_ONLY
    tokens: Index | Sequence[Index] | None = None
    queries: Positions = "all"
    where: Scope = Scope()
    dims = ("layer", "head")
    unit = "share of attention"
    kind_error = ScopeError

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ", ".join((*get_args(Positions), *CLASSES))
        if (self.what is None) == (self.tokens is None):
            raise ScopeError(f"give MassOn either a set of keys ({known}, or positions) or tokens=[ids], not both")
        for name in ("what", "tokens"):
            given = getattr(self, name)
            if isinstance(given, int):
                object.__setattr__(self, name, (given,))
            elif given == ():
                raise ScopeError(f"{name}=[]: give at least one, counted from 0 (from each row's first real token)")

    @property
    def by_token(self) -> bool:
        """Whether the keys are told by the tokens that they hold."""
        return self.tokens is not None or self.what in CLASSES

    @derived
    def own(self) -> str:
        """The variable of this set."""
        if isinstance(self.what, str):
            name = self.what.replace(" ", "_")
        else:
            name = "_".join(map(str, ("position" if self.tokens is None else "token", *self._numbers)))
        return f"mass_on_{name}" + ("" if self.queries == "all" else f"_from_{self.queries}")

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        if isinstance(self.what, str):
            keys = f"{self.what} {'tokens' if self.by_token else 'keys'}"
        else:
            numbers = list(self._numbers)
            keys = f"keys at positions {numbers} of the row" if self.tokens is None else f"keys of token ids {numbers}"
        return f"share of their attention that {self.queries} valid queries put on {keys}, on average"

    @property
    def _numbers(self) -> tuple[int, ...]:
        return cast(tuple[int, ...], self.what if self.tokens is None else self.tokens)

    def whose(self, model: Any) -> tuple[Positions, ...]:
        """The queries whose attention counts."""
        return (self.queries,)

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """Hooks on `hook_pattern`; and on `embed.hook_in`, which carries the ids, for tokens without a canvas."""

        def note(tokens: Tensor, *, hook: Any) -> None:
            seen["tokens"] = tokens.detach()

        hooks = super().hooks(model, canvas, seen)
        if not self.by_token:
            return hooks
        if isinstance(self.what, str):
            seen["ids"] = ids_of_class(model, self.what)
        else:
            in_vocabulary(model, self._numbers, self)
            seen["ids"] = list(self._numbers)
        if canvas is None:
            return [("embed.hook_in", note), *hooks]
        seen["tokens"] = canvas.tokens
        return hooks

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The shares."""
        received = tensors[0][0]
        queries = layer.queries(self.queries, received)[:, None]
        return (received * self._keys(layer, received)[:, None]).sum(-1) / queries.sum(-1)

    def _keys(self, layer: Layer, like: Tensor) -> Bool[Tensor, "batch key"]:
        if isinstance(self.what, str) and not self.by_token:
            return layer.keys(cast(Positions, self.what), like)
        valid = layer.keys("all", like)
        if not self.by_token:
            place = torch.arange(valid.shape[1], device=valid.device) - valid.int().argmax(-1, keepdim=True)
            return valid & torch.isin(place, torch.tensor(self._numbers, device=valid.device))
        if "tokens" not in layer.seen:
            raise HookNeverFired(f"{self!r} saw no token ids: give the model ids, not embeddings")
        ids = torch.tensor(layer.seen["ids"], device=valid.device)
        return valid & torch.isin(layer.seen["tokens"].to(valid.device), ids)
