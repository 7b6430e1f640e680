"""Normalisations whose input is too large for its squares: what they give is 0, and looks like any other number."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import NormalizationBridge

from sinklens.interrupts import surely
from sinklens.models.calls import Around, surround

R = TypeVar("R")
Look = Callable[[nn.Module, Tensor], object]
_LOOK: ContextVar[Look | None] = ContextVar("sinklens_norms", default=None)


class Watched(Around):
    """A normalisation that shows its input to whoever watches."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        _show(self, next(iter((*args, *kwargs.values()))))
        return super().__call__(*args, **kwargs)


class WatchedBridge(Around):
    """TransformerLens's component of a normalisation, which computes by itself where its scale or output is hooked."""

    def _hf_autograd_forward_with_hooks(self, x: Tensor) -> Tensor:
        _show(self, x)
        inner: Any = super()
        return inner._hf_autograd_forward_with_hooks(x)

    def _python_norm_forward(self, hidden_states: Tensor) -> Tensor:
        _show(self, hidden_states)
        inner: Any = super()
        return inner._python_norm_forward(hidden_states)


def _show(norm: nn.Module, tensor: Tensor) -> None:
    look = _LOOK.get()
    if look is not None:
        look(norm, tensor.detach())


def keep_watched(dlm: Any) -> None:
    """Let every normalisation of a HookedDLM show its input, also one that was put in since."""
    for module in dlm.original_model.modules():
        if type(module).__name__.endswith("Norm"):
            surround(module, Watched)
    for slot in dlm.wiring.slots:
        if isinstance(slot.component, NormalizationBridge):
            surround(slot.component, WatchedBridge)


def watching(look: Look, body: Callable[[], R]) -> R:
    """What `body` gives while `look` is shown the input of every normalisation that is kept watched."""
    before = _LOOK.get()

    def watched() -> R:
        _LOOK.set(look)
        return body()

    return surely(watched, lambda: _LOOK.set(before))


def length(norm: nn.Module, tensor: Float[Tensor, "*rest d"]) -> Float[Tensor, " *rest"]:
    """The length of what is normalised, in the dtype in which it is squared: infinite where a square overflows."""
    if tensor.dtype == torch.float64 and isinstance(norm, nn.LayerNorm | nn.RMSNorm):  # transformers' own use float32
        return torch.linalg.vector_norm(tensor, dim=-1)
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    return torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float32)
