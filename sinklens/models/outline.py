"""The outline of a checkpoint: what config.json and the tokenizer's files say of it, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sinklens.models import loading
from sinklens.models.families import Family
from sinklens.models.files import SMALL
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.reading import Reading
from sinklens.models.special_ids import SpecialIds
from sinklens.sinks import Blocks


@dataclass(frozen=True, repr=False)
class Outline(Reading):
    """A checkpoint without its weights: enough to read prompts, and to refuse what cannot be done with it.

    It stands where a HookedDLM would in everything that comes before the first forward.

    Attributes:
        name: What it would be loaded as.
        family: What kind of checkpoint it is.
        ids: Special-token ids.
        tokenizer: Its tokenizer; None if it ships none.
        n_layers: Number of layers.
        n_heads: Number of query heads.
        n_ctx: Longest sequence that it was built for.
        d_vocab: Rows of the embedding.
        in_blocks: As of a HookedDLM.
    """

    name: str
    family: Family
    ids: SpecialIds
    tokenizer: Any
    n_layers: int
    n_heads: int
    n_ctx: int
    d_vocab: int
    in_blocks: Blocks | None
    device = torch.device("cpu")

    @property
    def cfg(self) -> Outline:
        """Where a HookedDLM has its sizes."""
        return self

    @property
    def is_causal(self) -> bool:
        """Whether it is an autoregressive baseline."""
        return self.family.causal


Sketched = Outline | HookedDLM  # what says of itself what it is, with weights and without


def outline(
    name: str,
    revision: str | None = None,
    *,
    family: str | None = None,
    mask_token_id: int | None = None,
    block_length: int | None = None,
) -> Outline:
    """Read config.json and the tokenizer of a bundled twin, a folder, or a Hub id.

    Raises:
        CheckpointError: as `HookedDLM.from_pretrained`, for everything that is not about weights.
    """
    said = loading.describe(
        name, revision, patterns=SMALL, family=family, mask_token_id=mask_token_id, block_length=block_length
    )
    config = said.config
    n_ctx = config.max_position_embeddings - said.family.first_position(config)
    sizes = config.num_hidden_layers, config.num_attention_heads, n_ctx, config.vocab_size
    return Outline(name, said.family, said.ids, said.tokenizer, *sizes, said.family.blocks_of(config))
