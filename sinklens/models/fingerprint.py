"""What decides what a model computes, as one hash: stored scores of any other model are never served."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.errors import ContentError
from sinklens.models.adapted import digest_of
from sinklens.models.rotary import Settled
from sinklens.values.content import Value, plain

CHUNK = 2**26  # bytes that are hashed at once
_DIGESTS: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, repr=False)
class ModelId(Value):
    """Which model something was made on, wherever it was loaded from and in whatever dtype.

    Attributes:
        name: What it was loaded as; for people.
        family: Its family: the same weights in another one see other tokens.
        weights: SHA-256 of its weights in bfloat16.
    """

    name: str
    family: str
    weights: str

    @classmethod
    def of(cls, dlm: Any) -> ModelId:
        """That of a HookedDLM."""
        return cls(str(dlm.name), dlm.family.name, weights_digest(dlm))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelId) and (self.family, self.weights) == (other.family, other.weights)

    def __hash__(self) -> int:
        return hash(self.weights)


def fingerprint(dlm: Any) -> str:
    """Hash of a HookedDLM: weights and buffers bit for bit, modules and their switches, config, and attached hooks.

    A permuted head, a cast, an adapter that is added, merged or switched off, a replaced module: each is another
    hash. It reads all weights (about a second per gigabyte).

    Raises:
        ContentError: a hook on the model whose content cannot be told; give it a name, `sinklens.named`.
    """
    made = hashlib.sha256()
    config = json.loads(dlm.original_model.config.to_json_string(use_diff=False))
    config.pop("dtype", None)  # of every tensor it is hashed below; a cast leaves the config's as it was
    about = {
        "name": dlm.name,
        "revision": dlm.revision,
        "family": dlm.family.name,
        "ids": asdict(dlm.ids),
        "config": config,
        "attention": dlm.attention,
        "compatibility": bool(dlm.compatibility_mode),
        "hooks": _hooks(dlm),
    }
    made.update(json.dumps(about, sort_keys=True, default=str).encode())
    for path, module in dlm.original_model.named_modules():
        if isinstance(module, Settled):
            module.settle()
        made.update(f"{path}:{type(module).__module__}.{type(module).__qualname__}".encode())
        made.update(json.dumps(_switches(module), sort_keys=True).encode())
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):  # accelerate's own only moves tensors
            made.update(json.dumps(_content(f"{path} as its forward", module.forward)).encode())
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                made.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                _bytes(made, tensor)
    return made.hexdigest()[:32]


def weights_digest(dlm: Any) -> str:
    """SHA-256 of a HookedDLM's weights alone, the same in every dtype and folder (`adapted.digest_of`).

    Read once: again only if torch counts a change of a weight, or if another one stands in its place.
    """
    model = dlm.original_model
    state = tuple((name, weight.data_ptr(), weight._version) for name, weight in model.named_parameters())
    known = _DIGESTS.get(model)
    if known is None or known[0] != state:
        known = _DIGESTS[model] = (state, digest_of(model))
    return known[1]


def _bytes(made: Any, tensor: Tensor) -> None:
    flat = tensor.detach().reshape(-1)
    size = max(1, CHUNK // max(1, flat.element_size()))
    for start in range(0, flat.numel(), size):
        made.update(flat[start : start + size].cpu().contiguous().view(torch.uint8).numpy().data)


def _switches(module: Any) -> dict[str, Any]:
    """Plain attributes of a module: adapters are switched, scaled and merged by them."""
    found = {}
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules") or name.endswith("_hooks"):
            continue
        simple = _simple(value)
        if simple is not None:
            found[name] = simple
    return found


def _simple(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return plain(value)
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_simple(each) for each in value]
        return sorted(map(str, parts)) if isinstance(value, set | frozenset) else parts
    if isinstance(value, Mapping):
        return {str(key): _simple(each) for key, each in value.items()}
    return None


def _hooks(dlm: Any) -> list[Any]:
    """The hooks that somebody has left on hook points, on modules, or on the bridge's components."""
    points = {id(point): (name, point) for name, point in dlm.points.items()}.values()
    found = [
        [point.name or name, _content(point.name or name, handle.user_hook)]
        for name, point in points
        for handle in (*point.fwd_hooks, *point.bwd_hooks)
    ]
    modules = [*dlm.original_model.named_modules(), *dlm.wiring.hooked_components()]
    return found + [
        [path, kind, _content(path, function)]
        for path, module in modules
        for kind in ("_forward_hooks", "_forward_pre_hooks")
        for function in getattr(module, kind).values()
    ]


def _content(path: str, function: Any) -> Any:
    try:
        return plain(function)
    except ContentError as error:
        raise ContentError(f"a hook was left on {path}: {error}") from error
