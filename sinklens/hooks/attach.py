"""Attaching hooks to a forward, and counting that they fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from sinklens.errors import HookNeverFired
from sinklens.hooks.by_query import ByQuery
from sinklens.hooks.protocols import Hook


@contextmanager
def attached(model: Any, parts: Sequence[tuple[str, Sequence[Hook]]], fired: dict[str, int]) -> Iterator[None]:
    """Attach the hooks of all parts, in order, for one forward.

    Args:
        model: A HookedDLM or any TransformerBridge.
        parts: A label and hooks for each; edits first, then probes, so that probes see what the model used.
        fired: Firing counts by label, added to.

    Raises:
        HookNeverFired: a hook was attached and the forward did not call it.
    """
    handles, silent = [], set()
    points = _points(model, {name for _, hooks in parts for name, _ in hooks})
    try:
        for label, hooks in parts:
            fired.setdefault(label, 0)
            for name, function in hooks:
                if name not in points:
                    raise HookNeverFired(f"{label} wants hook point {name!r}, which this model does not have")
                silent.add((label, name))
                handles.append((points[name], points[name].add_hook(_counting(function, label, name, fired, silent))))
        yield
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
    for label, name in silent:
        raise HookNeverFired(f"{label} was attached to {name} and the forward never called it")


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


def rotated(model: Any, which: Literal["q", "k"]) -> str:
    """The hook point of the queries or keys that attention multiplies: after RoPE, or as projected without RoPE."""
    point = f"attn.hook_rot_{which}"
    name = f"blocks.0.{point}"
    return point if name in _points(model, {name}) else f"attn.{which}.hook_out"
