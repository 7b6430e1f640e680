"""Hooks that treat every query by itself, and so may get attention in blocks of queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

HookFunction = Callable[..., Tensor | None]
Hook = tuple[str, HookFunction]


class ByQuery:
    """A hook on scores or pattern that treats every query by itself, so that it may get them in blocks.

    `hook.ctx["queries"]` is the slice of queries that a block holds (`block_of`). One that must see all queries before
    it treats the first (which keys receive most?) is shown previews: before any hook is called, every block goes
    through the `preview` of each hook, as often as all hooks together ask for.

    Args:
        function: The hook, `function(tensor, *, hook)`.
        preview: `preview(tensor, *, hook)` returns what the hook will make of a block, as far as it knows by then, and
            does nothing else; None for "nothing changes". Without a preview the hook cannot stand beside one that asks
            for rounds; that one then gets whole patterns.
        rounds: How often the hook must be shown everything; after so many it knows what it will do.
        hides: For a hook on scores that only takes keys away, from all queries and heads alike:
            `hides(visible, *, hook)` is given the keys that are visible [batch, key], and returns those that stay. It
            is asked instead of the hook where nobody else hooks scores or weights: those need not be formed then, and
            the keys are left out of attention. A query that sees no key that stays looks at its largest.
    """

    def __init__(
        self,
        function: HookFunction,
        *,
        preview: HookFunction | None = None,
        rounds: int = 0,
        hides: HookFunction | None = None,
    ) -> None:
        self.function, self.preview, self.rounds, self.hides = function, preview, rounds, hides

    def __call__(self, tensor: Tensor, *, hook: Any) -> Tensor | None:
        """Call the hook."""
        return self.function(tensor, hook=hook)

    def around(self, wrap: Callable[[HookFunction], HookFunction]) -> ByQuery:
        """The same with its function wrapped, and what it hides."""
        hides = None if self.hides is None else wrap(self.hides)
        return ByQuery(wrap(self.function), preview=self.preview, rounds=self.rounds, hides=hides)

    def __repr__(self) -> str:
        return f"by_query({getattr(self.function, '__qualname__', type(self.function).__name__)})"


def by_query(
    function: HookFunction,
    *,
    preview: HookFunction | None = None,
    rounds: int = 0,
    hides: HookFunction | None = None,
) -> ByQuery:
    """Say of a hook on scores or pattern that it treats every query by itself; see `ByQuery`."""
    return ByQuery(function, preview=preview, rounds=rounds, hides=hides)


def watching(function: HookFunction) -> ByQuery:
    """A hook by query that only measures: it changes nothing, so its preview is nothing."""
    return ByQuery(function, preview=_nothing)


def _nothing(tensor: Tensor, *, hook: Any) -> None:
    return None


def block_of(hook: Any, tensor: Tensor) -> slice:
    """Which queries a tensor of scores or weights [..., query, key] holds: a block of them, or all."""
    return getattr(hook, "ctx", {}).get("queries", slice(0, tensor.shape[-2]))
