"""Attention whose queries, keys and values come out of one projection: hook points for each, and their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.pytorch_utils import Conv1D

from sinklens.models.attention import OpenAttention


def without(component: GeneralizedComponent, *points: str) -> None:
    """Take hook points that can never fire off a component, so that whoever hooks them learns it."""
    for name in points:
        delattr(component, name)
        component._hook_registry.pop(name, None)


class Part(GeneralizedComponent):
    """Queries, keys or values of a fused projection: their hook point, and their rows of its weights as they are now.

    It stands nowhere in the transformers model; the projection fires its `hook_out`.
    """

    def __init__(self) -> None:
        super().__init__(name=None)
        without(self, "hook_in")  # the projection has one input, and its own hook point for it

    def set_original_component(self, original_component: nn.Module) -> None:
        """Nothing: the projection wraps what computes."""

    @property
    def weight(self) -> Tensor:
        """Weights [out, in], a view of the projection's."""
        return self.__dict__["rows"]("weight")

    @property
    def bias(self) -> Tensor | None:
        """Likewise [out]; None if there is none."""
        return self.__dict__["rows"]("bias")


class FusedProjection(LinearBridge):
    """A projection to queries, keys and values side by side: after its own hook points it fires those of its parts.

    Args:
        name: Its attribute in the attention module.
        parts: Queries, keys and values, of one size.
    """

    def __init__(self, name: str, parts: tuple[Part, Part, Part]) -> None:
        super().__init__(name=name)
        # Past torch's registration: each part has its name in the attention component.
        self.__dict__["parts"] = parts
        self.__dict__["fires"] = tuple(part.hook_out for part in parts)

    def set_original_component(self, original_component: nn.Module) -> None:
        """Wrap a projection, and give the parts their weights in it."""
        super().set_original_component(original_component)
        for number, part in enumerate(self.__dict__["parts"]):
            part.__dict__["rows"] = lambda name, number=number: self._rows(name, number)

    def _rows(self, name: str, number: int) -> Any:
        module: Any = self.original_component
        plain: Any = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        tensor: Any = getattr(plain, name)
        if tensor is None:
            return None
        by_input = isinstance(plain, Conv1D) and name == "weight"
        return tensor.chunk(3, -1)[number].T if by_input else tensor.chunk(3, 0)[number]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The projection's output [batch, pos, 3 x width] as its hook points and those of its parts leave it."""
        pieces = super().forward(input, *args, **kwargs).chunk(3, -1)
        return torch.cat([point(piece) for point, piece in zip(self.__dict__["fires"], pieces, strict=True)], -1)


class FusedAttention(OpenAttention):
    """Attention with a fused projection; without rotation `hook_rot_q` and `hook_rot_k` carry what is projected.

    Args:
        name: As of every component.
        config: Likewise.
        projection: The attribute of the projection.
        output: That of the output projection.
        rotates: Whether queries and keys are rotated between the projection and their product.
    """

    def __init__(self, name: str, config: Any, *, projection: str, output: str, rotates: bool = False) -> None:
        parts = Part(), Part(), Part()
        whole = FusedProjection(projection, parts)
        q, k, v = parts
        super().__init__(name, config, {"qkv": whole, "o": LinearBridge(name=output), "q": q, "k": k, "v": v})
        if not rotates:
            without(self, "hook_cos", "hook_sin")

    def _weight_layout_in_out(self, proj: Any) -> bool | None:
        return False if isinstance(proj, Part) else super()._weight_layout_in_out(proj)
