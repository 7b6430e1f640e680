"""What a forward is run with: what attention is told of it, also of positions before it that a cache holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources.transformers_driver import TransformersDriver

from sinklens.interrupts import surely
from sinklens.sinks import Blocks
from sinklens.sinks.blocks import mask_of

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Behind:
    """What a forward of new positions needs to know of those before them, whose keys and values are kept.

    Attributes:
        cache: Keys and values of every layer; those of the new positions are added to it.
        mask: Where the new ones look [batch, 1, query, key].
        places: What the new positions are called [batch, query].
    """

    cache: Any
    mask: Tensor
    places: Tensor

    def options(self) -> dict[str, Any]:
        """The same as transformers takes it."""
        told = {"attention_mask": self.mask, "position_ids": self.places}
        return {"past_key_values": self.cache, "use_cache": True, **told}


@dataclass(frozen=True, eq=False)
class Forward:
    """What attention needs to know of the forward that runs.

    Attributes:
        serving: The hook points that an attention module serves, by module.
        tokens: Token ids [batch, pos]; None with embeddings as input.
        valid: Real positions [batch, pos]; None if all are.
        mask_token: Id of the mask token; None where there is none.
        path: "auto", "pattern" (whole patterns) or "blocks" (blocks of queries).
        levels: No query sees a key of a higher level [batch, pos]; as the model's own blocks say when None.
        cached: Every layer sees all keys of its cache, and new ones causally, however many its cache holds: the mask
            that transformers makes is that of the first layer.
        behind: The forward is of new positions alone; None for one of all.
    """

    serving: Mapping[torch.nn.Module, Any] = field(default_factory=dict)
    tokens: Tensor | None = None
    valid: Tensor | None = None
    mask_token: int | None = None
    path: str = "auto"
    levels: Tensor | None = None
    cached: bool = False
    behind: Behind | None = None


FORWARD: ContextVar[Forward] = ContextVar("sinklens_forward", default=Forward())  # noqa: B039 - frozen, never changed


def running(forward: Forward, body: Callable[[], R]) -> R:
    """What `body` gives while attention is told about the forward that runs inside it."""
    before = FORWARD.get()

    def told() -> R:
        FORWARD.set(forward)
        return body()

    return surely(told, lambda: FORWARD.set(before))


class Driver(TransformersDriver):
    """Runs the transformers model, and tells attention what it is run on, however TransformerLens came by it.

    Attributes:
        first_position: What the first position of a text is called, where positions are not counted from 0.
        blocks: How a model that sees block by block cuts a text.
        pad: What is to stand where nothing is, if the model looks at that, too (ESM counts masks).
    """

    first_position = 0
    blocks: Blocks | None = None
    pad: int | None = None

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        """As TransformersDriver's; text has become token ids and a mask by now."""
        behind = FORWARD.get().behind
        kwargs |= {} if behind is None else behind.options()
        mask = kwargs.get("attention_mask")
        valid = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        given = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        first, blocks = self.first_position, self.blocks if mask is None or valid is not None else None
        if isinstance(given, Tensor) and (first or blocks is not None):
            real = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device) if valid is None else valid
            if kwargs.get("position_ids") is None:
                kwargs["position_ids"] = positions(real, first)
            if blocks is not None:
                levels = FORWARD.get().levels
                levels = blocks.levels(real) if levels is None else levels.to(real.device)
                kwargs["attention_mask"] = mask_of(real, levels)
        if self.pad is not None and valid is not None and input_ids is not None:
            input_ids = input_ids.masked_fill(~valid.to(input_ids.device), self.pad)
        inner = super().forward
        return running(replace(FORWARD.get(), tokens=input_ids, valid=valid), lambda: inner(input_ids, **kwargs))


def positions(valid: Tensor, first: int = 0) -> Tensor:
    """The number of each position, counted from each row's first real one."""
    return (valid.long().cumsum(-1) - 1).clamp(min=0) + first
