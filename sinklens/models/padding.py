"""Pads: rows laid out as one batch, and pads told from prompts in rows that somebody else laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.errors import PromptError


def padded(
    rows: Sequence[Sequence[int]], pad: int, *, left: bool = True
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Rows of token ids as one batch, and which of its positions are real."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    valid = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        places = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[index, places] = torch.tensor(list(row), dtype=torch.long)
        valid[index, places] = True
    return tokens, valid


@dataclass(frozen=True)
class Pads:
    """The tokens with which somebody may have padded a model's prompts, where no attention mask says so.

    Attributes:
        certain: Tokens that are nothing but pads.
        doubtful: Tokens that pad and mean something, too (EOS): a prompt may begin or end with them.
        head: What the tokenizer puts in front of every text; nothing of a prompt stands before it.
    """

    certain: frozenset[int]
    doubtful: frozenset[int]
    head: tuple[int, ...]

    @classmethod
    def of(cls, dlm: Any) -> Pads:
        """The pads of a checkpoint and of its tokenizer. A mask token is a gap, and never a pad."""
        ids: Any = dlm.ids
        own: Any = dlm.tokenizer
        kinds = ("bos", "eos", "unk", "sep", "cls", "mask")
        means = {ids.bos, ids.eot, *ids.eos, *(getattr(own, f"{kind}_token_id", None) for kind in kinds)}
        pads = {ids.pad, getattr(own, "pad_token_id", None)} - {None, ids.mask}
        # A checkpoint that names no pad gets another token as one: EOS, BOS, or 0 where nothing is named.
        named = set(own.all_special_ids) if own is not None else pads if means - {None} else set()
        certain = (pads & named) - means
        head = (ids.bos,) if dlm.prepends_bos else ()
        return cls(frozenset(certain), frozenset(pads - certain), head)

    def removed(self, row: Sequence[int], beside: int = 1) -> list[int]:
        """A row without its pads.

        What is nothing but a pad is no prompt. A token that means something else, too, is taken for a pad in front of
        what the tokenizer puts in front of a text, and nowhere else; where it may be one (at an end of rows of one
        length, several times at an end of a row by itself) the row is refused.

        Args:
            row: Token ids.
            beside: How many rows of one length it is one of.

        Raises:
            PromptError: pads between other tokens, or tokens that may be pads.
        """
        ids = list(row)
        lead, trail = _run(ids, self.certain), _run(ids[::-1], self.certain)
        ids = ids[lead : len(ids) - trail] if lead < len(ids) else []
        inside = self.certain & set(ids)
        if inside:
            raise PromptError(f"{_shown(row)} has the pad token {min(inside)} between other tokens; {_ADVICE}")
        if lead or trail:
            return ids
        lead, trail = _run(ids, self.doubtful), _run(ids[::-1], self.doubtful)
        if lead and self.head and tuple(ids[lead : lead + len(self.head)]) == self.head:
            ids, lead = ids[lead:], 0
        if max(lead, trail) >= (1 if beside > 1 else 2):
            where, token = ("begins", ids[0]) if lead else ("ends", ids[-1])
            raise PromptError(f"{_shown(row)} {where} with {token}, a pad that may also be part of a prompt; {_ADVICE}")
        return ids


_ADVICE = "say which tokens are the prompt: give {'input_ids': ..., 'attention_mask': ...}, or leave the pads out"


def _run(ids: Sequence[int], tokens: frozenset[int]) -> int:
    """How many of some tokens stand at the beginning."""
    return next((place for place, token in enumerate(ids) if token not in tokens), len(ids))


def _shown(row: Sequence[int]) -> str:
    ids = list(row)
    return f"the prompt {ids}" if len(ids) <= 16 else f"the prompt [{', '.join(map(str, ids[:8]))}, ..., {ids[-1]}]"
