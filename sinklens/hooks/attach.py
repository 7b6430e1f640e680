"""Attaching hooks to a forward, and counting that they fire."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

from torch import Tensor

from sinklens.errors import HookNeverFired
from sinklens.hooks.by_query import ByQuery, Hook
from sinklens.interrupts import surely
from sinklens.sinks.rule import Positions

R = TypeVar("R")


def with_hooks(
    model: Any, parts: Sequence[tuple[str, Sequence[Hook]]], fired: dict[str, int], forward: Callable[[], R]
) -> R:
    """What a forward gives with the hooks of all parts attached, in order. Whatever happens, they are gone afterwards.

    Args:
        model: A HookedDLM or any TransformerBridge.
        parts: A label and hooks for each; edits first, then probes, so that probes see what the model used.
        fired: Firing counts by label, added to.
        forward: Runs the model once.

    Raises:
        HookNeverFired: a hook was attached and the forward did not call it.
    """
    silent: set[tuple[str, str]] = set()
    points = _points(model, {name for _, hooks in parts for name, _ in hooks})
    added: list[tuple[Any, set[int], Callable]] = []  # noted first and hooked then: an interrupt may fall in between

    def attach() -> R:
        for label, hooks in parts:
            fired.setdefault(label, 0)
            for name, function in hooks:
                if name not in points:
                    raise HookNeverFired(f"{label} wants hook point {name!r}, which this model does not have")
                silent.add((label, name))
                counting = _counting(function, label, name, fired, silent)
                added.append((points[name], set(points[name]._forward_hooks), counting))
                points[name].add_hook(counting)
        return forward()

    out = surely(attach, lambda: _detach(added))
    for label, name in silent:
        raise HookNeverFired(f"{label} was attached to {name} and the forward never called it")
    return out


def _detach(added: Sequence[tuple[Any, set[int], Callable]]) -> None:
    """Take off the hooks that were added, also one that torch has and TransformerLens has not noted yet."""
    for point, before, function in added:
        handles = {handle.hook.id: handle.user_hook for handle in point.fwd_hooks}
        for key in [key for key in point._forward_hooks if key not in before]:
            if handles.get(key, function) is function:
                del point._forward_hooks[key]
        point.fwd_hooks[:] = [handle for handle in point.fwd_hooks if handle.user_hook is not function]


def _counting(function: Callable, label: str, name: str, fired: dict[str, int], silent: set) -> Callable:
    def wrap(inner: Callable) -> Callable:
        def hook_function(tensor: Tensor, *, hook: Any) -> Tensor | None:
            fired[label] += getattr(hook, "ctx", {}).get("queries", slice(0, 0)).start == 0  # a forward's blocks: once
            silent.discard((label, name))
            return inner(tensor, hook=hook)

        return hook_function

    return function.around(wrap) if isinstance(function, ByQuery) else wrap(function)


def _points(model: Any, names: set[str]) -> Mapping[str, Any]:
    """Hook points by name. A bridge collects them anew whenever it is asked; a HookedDLM keeps them."""
    if not names:
        return {}
    kept = getattr(model, "points", None)
    return model.hook_dict if kept is None else kept


def autoregressive(model: Any) -> bool:
    """Whether a model is causal: what a HookedDLM knows, or the module that a bridge wraps, else the config."""
    known = getattr(model, "is_causal", None)
    if known is None and hasattr(model, "blocks"):
        known = getattr(getattr(model.blocks[0].attn, "original_component", None), "is_causal", None)
    return bool(known) if known is not None else getattr(model.cfg, "attention_dir", "causal") == "causal"


def usual_queries(model: Any) -> Positions:
    """Whose attention counts where nothing else is said ("auto"): of an autoregressive model that of the last query
    (arXiv 2510.15731, section 4.3), of one that sees block by block that of the block, and of all queries of others.
    """
    if getattr(model, "in_blocks", None) is not None:
        return "block"
    return "last" if autoregressive(model) else "all"


def only_new(model: Any, sets: Collection[Positions]) -> bool:
    """Whether all of these sets of positions are new at each step: of the block that is being decided, or of a baseline
    the last. A forward of what is new (`Plan.cache`) has no others.
    """
    new = {"last"} if getattr(model, "in_blocks", None) is None else {"block", "masked", "last"}
    return set(sets) <= new


def rotated(model: Any, which: Literal["q", "k"]) -> str:
    """The hook point of the queries or keys that attention multiplies: after RoPE, or as projected without RoPE."""
    point = f"attn.hook_rot_{which}"
    name = f"blocks.0.{point}"
    return point if name in _points(model, {name}) else f"attn.{which}.hook_out"
