"""Copies and pickles of a HookedDLM: the plain transformers model is copied, and wrapped anew."""

from __future__ import annotations

from typing import Any

from sinklens.errors import ModelError
from sinklens.models.loading import Checkpoint

Hooks = list[tuple[str, Any, bool]]  # point, the user's function, whether it is permanent


def reduced(dlm: Any) -> tuple[Any, tuple[Any, ...]]:
    """What `copy.deepcopy` and `pickle` need to make an equal HookedDLM: the hooks that are attached go along.

    Raises:
        ModelError: something that a new bridge would not have: folded weights, hooks on components themselves.
    """
    if dlm.compatibility_mode:
        raise ModelError("a model in TransformerLens's compatibility mode cannot be copied; copy it before")
    hooks: Hooks = []
    for name, point in {id(point): (name, point) for name, point in dlm.hook_dict.items()}.values():
        if point.bwd_hooks:
            raise ModelError(f"{name} has a backward hook, which cannot be copied; remove it first")
        hooks += [(point.name or name, handle.user_hook, handle.is_permanent) for handle in point.fwd_hooks]
    checkpoint = Checkpoint(dlm.original_model, dlm.tokenizer, dlm.family, dlm.ids, dlm.name, dlm.revision)
    return rebuilt, (type(dlm), checkpoint, dlm.attention, hooks)


def rebuilt(cls: Any, checkpoint: Checkpoint, path: str, hooks: Hooks) -> Any:
    """The HookedDLM that `reduced` described."""
    dlm = cls(checkpoint, check=False)
    dlm.attention = path
    for name, function, permanent in hooks:
        dlm.points[name].add_hook(function, is_permanent=permanent)
    return dlm
