"""How a model that sees block by block cuts a text into blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.values.content import Value
from sinklens.values.exact import Range

Aligned = Literal["start", "prompt"]


@dataclass(frozen=True, repr=False)
class Blocks(Value):
    """Blocks of positions, each of which sees itself, both ways, and the blocks before it; never a later one.

    Attributes:
        length: Positions of a block.
        aligned: Where blocks are counted from: the "start" of each text (SDAR, LLaDA2, Fast-dLLM v2, Stable-DiffCoder,
            BD3-LM), so that a prompt's last tokens may share a block with the first new ones; or the end of its
            "prompt" (dllm's BD3LM), whose first block is then the short one.

    Raises:
        ContentError: a length below 1, or an unknown alignment.
    """

    length: Annotated[int, Range(1, 1_000_000)]
    aligned: Aligned = "start"

    def levels(
        self, valid: Bool[Tensor, "batch pos"], prompt: Int[Tensor, " batch"] | None = None
    ) -> Int[Tensor, "batch pos"]:
        """The number of the block of each position: no position sees one with a higher number (`Sight.levels`).

        Args:
            valid: Real positions; padding stands on the left, or on the right.
            prompt: How many tokens of each row were given. Without it blocks are counted from the start, as in the
                training of all these models.
        """
        place = (valid.long().cumsum(-1) - 1).clamp(min=0)
        if self.aligned == "prompt" and prompt is not None:
            place = place + (-prompt.to(place.device) % self.length)[:, None]
        return place.div(self.length, rounding_mode="floor")


def mask_of(valid: Bool[Tensor, "batch pos"], levels: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch 1 query key"]:
    """The mask of attention as transformers takes it: True where a query may look."""
    return (valid[:, None] & (levels[:, None] <= levels[:, :, None]))[:, None]
