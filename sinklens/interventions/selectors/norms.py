"""Who is edited, by the norms of keys."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Memory, rotated
from sinklens.interventions.selectors.base import Evidence, Selector
from sinklens.sinks import Positions
from sinklens.sinks import largest as largest_keys
from sinklens.values.kinds import Count


@dataclass(frozen=True, repr=False)
class ByKeyNorm(Selector):
    """The k keys with the smallest L2 norm in each head (query heads share those of their key head), after RoPE.

    Low norms go with high attention in many autoregressive models (arXiv 2406.11430); whether the keys that have them
    matter is what an edit asks.

    Args:
        top_k: How many.
        largest: The largest norms instead.
        keys: Among which keys: "all", "masked", "committed", "prompt", "response" or "last".

    Raises:
        ContentError: less than one key, or an unknown set of keys.
    """

    top_k: Count = 1
    _: KW_ONLY
    largest: bool = False
    keys: Positions = "all"

    @property
    def wanted(self) -> int:
        """`top_k`."""
        return self.top_k

    def candidates(self) -> Positions:
        """The `keys`."""
        return self.keys

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Yes: attention plays no part."""
        return True

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """One hook, on the keys after RoPE."""
        return [norm_hook(model, layer, memory)]

    def select(self, evidence: Evidence) -> Tensor:
        """Keys with the smallest norms."""
        norms = key_norms(evidence)
        return largest_keys(norms if self.largest else -norms, evidence.eligible, self.top_k)


def norm_hook(model: Any, layer: int, memory: Memory) -> Hook:
    """A hook that notes the norms of a layer's keys, for `key_norms`."""

    def note(keys: Tensor, *, hook: Any) -> None:
        memory.notes["key norms", layer] = keys.detach().float().norm(dim=-1).transpose(1, 2)

    return f"blocks.{layer}.{rotated(model, 'k')}", note


def hidden_norm_hook(model: Any, layer: int, memory: Memory) -> Hook:
    """A hook that notes the L2 norms of the residual stream at a layer's input [batch, pos]."""

    def note(residual: Tensor, *, hook: Any) -> None:
        memory.notes["hidden norms", layer] = residual.detach().float().norm(dim=-1)

    return f"blocks.{layer}.hook_in", note


def key_norms(evidence: Evidence) -> Float[Tensor, "batch head key"]:
    """L2 norm of each key of this forward, as every query head has it."""
    norms: Tensor = evidence.memory.notes["key norms", evidence.layer]
    return norms.repeat_interleave(evidence.received.shape[1] // norms.shape[1], 1)
