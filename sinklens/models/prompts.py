"""What may be given as a prompt, read into four forms: text, token ids, ids without pads, messages. One or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sinklens.errors import PromptError
from sinklens.values.content import Value
from sinklens.values.kinds import shown

# What tokenizers put beside the ids that says nothing about what the prompt is.
_BESIDE = {"token_type_ids", "special_tokens_mask", "offset_mapping", "length", "assistant_masks"}
_FORMS = (
    "a prompt is a text, token ids, an encoding (a tokenizer's result, with input_ids and attention_mask), or a list "
    "of messages [{'role': ..., 'content': ...}]"
)


@dataclass(frozen=True, repr=False)
class Unpadded(Value):
    """Token ids of which an attention mask has said that they are the prompt."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Chat(Value):
    """Messages for the chat template: (role, content) of each turn."""

    turns: tuple[tuple[str, str], ...]


Prompt = str | tuple[int, ...] | Unpadded | Chat
Given = Prompt | Sequence[Any] | Mapping[str, Any] | Tensor | np.ndarray  # one or several, to be read


def read_prompts(given: Given) -> list[Prompt]:
    """One prompt or several, as a list of prompts; each is again something that can be given.

    A flat list of ids or a 1-D tensor is one prompt, as is a list of messages; a 2-D tensor, a list of prompts of any
    kinds and an encoding of several rows are several. Positions that an attention mask leaves out are no prompt.

    Raises:
        PromptError: anything else, quoting it.
    """
    if isinstance(given, str):
        return [str(given)]
    if isinstance(given, Unpadded | Chat):
        return [given]
    if isinstance(given, Mapping):
        return _encoded(given)
    if isinstance(given, Tensor | np.ndarray):
        return _of_array(given)
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray | Set):
        raise _refused(given)
    listed = list(given)
    if listed and all(isinstance(each, Mapping) and "role" in each for each in listed):
        return [Chat(tuple(map(_turn, listed)))]
    if listed and all(map(_is_id, listed)):
        return [tuple(map(int, listed))]
    return [_single(each, index) for index, each in enumerate(listed)]


def rows_beside(read: Sequence[Prompt]) -> int:
    """How many rows of ids of one length prompts are; such rows may have been padded. 1 if each is by itself."""
    lengths = {len(each) if isinstance(each, tuple) else None for each in read}
    return len(read) if len(lengths) == 1 and None not in lengths else 1


def _single(given: Any, index: int) -> Prompt:
    if _is_id(given) or isinstance(given, bool | float):
        raise PromptError(f"prompt {index} is {shown(given)}; token ids are whole numbers in a list, and {_FORMS}")
    read = read_prompts(given)
    if len(read) > 1:
        raise PromptError(f"prompt {index} holds {len(read)} prompts, {shown(given)}; give them side by side")
    return read[0] if read else ()


def _of_array(given: Tensor | np.ndarray) -> list[Prompt]:
    """Ids of a tensor or an array, by rows; texts and others of an array, one by one."""
    texts = isinstance(given, np.ndarray) and given.dtype.kind in "UO"
    if given.ndim not in (1, 2) or (texts and given.ndim == 2):
        raise PromptError(
            f"prompts of shape {tuple(given.shape)}: one prompt has token ids along one dimension, several along two"
        )
    if texts:
        return read_prompts(list(given))
    exact = given.dtype.kind in "iu" if isinstance(given, np.ndarray) else not _inexact(given)
    if 0 not in given.shape and not exact:
        raise PromptError(f"prompts of {given.dtype}: token ids are whole numbers, not {shown(given.tolist())}")
    rows = given.tolist() if given.ndim == 2 else [given.tolist()]
    return [tuple(row) for row in rows]


def _encoded(given: Mapping[str, Any]) -> list[Prompt]:
    """The rows of a tokenizer's result."""
    if "input_ids" not in given:
        hint = "; a message stands in a list, [{...}]" if "role" in given else f"; {_FORMS}"
        raise PromptError(f"{shown(dict(given))} is no prompt{hint}")
    unknown = [key for key in given if key not in {"input_ids", "attention_mask", *_BESIDE}]
    if unknown:
        raise PromptError(f"an encoding with {unknown[0]!r} says more than prompts; give input_ids and attention_mask")
    rows = _rows("input_ids", given["input_ids"])
    types = given.get("token_type_ids")
    if types is not None and any(map(any, _rows("token_type_ids", types))):
        raise PromptError(f"token_type_ids={shown(_listed(types))}: a prompt is one segment, whose types are all 0")
    if given.get("attention_mask") is None:
        return list(rows)
    masks = _rows("attention_mask", given["attention_mask"])
    if list(map(len, rows)) != list(map(len, masks)):
        raise PromptError(
            f"input_ids have rows of {shown([*map(len, rows)])} tokens, and attention_mask of "
            f"{shown([*map(len, masks)])}"
        )
    return [_unmasked(row, mask) for row, mask in zip(rows, masks, strict=True)]


def _unmasked(row: Sequence[int], mask: Sequence[int]) -> Unpadded:
    kept = [place for place, real in enumerate(mask) if real]
    if not set(mask) <= {0, 1} or kept != list(range(kept[0], kept[-1] + 1) if kept else []):
        raise PromptError(
            f"attention_mask={shown(list(mask))} must be 1 at a prompt's tokens, which stand side by side, and 0 at "
            "the pads"
        )
    return Unpadded(tuple(row[place] for place in kept))


def _rows(name: str, given: Any) -> list[tuple[int, ...]]:
    """Whole numbers by rows, of whatever an encoding holds; truth values are 0 and 1 in a mask."""
    listed = _listed(given)
    outer: list[Any] = [_listed(each) for each in listed] if isinstance(listed, list) else [None]
    rows: list[list[Any]] = outer if outer and all(isinstance(each, list) for each in outer) else [outer]
    mask = name == "attention_mask"
    if not all(_is_id(each) or (mask and isinstance(each, bool)) for row in rows for each in row):
        raise PromptError(f"{name}={shown(given)} must be whole numbers: one row, or several")
    return [tuple(map(int, row)) for row in rows]


def _listed(given: Any) -> Any:
    """Arrays and tuples as lists; everything else as it is."""
    if isinstance(given, Tensor | np.ndarray):
        return given.tolist()
    return list(given) if isinstance(given, tuple) else given


def _turn(message: Mapping[str, Any]) -> tuple[str, str]:
    if set(message) != {"role", "content"} or not all(isinstance(each, str) for each in message.values()):
        raise PromptError(f"the message {shown(dict(message))} must have a role and a content, both texts")
    return str(message["role"]), str(message["content"])


def _is_id(value: Any) -> bool:
    """Whether something is one whole number: Python's, numpy's, or that of a tensor without dimensions."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not _inexact(value)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or str(tensor.dtype) == "torch.bool"


def _refused(given: Any) -> PromptError:
    return PromptError(f"{shown(given)} is no prompt; {_FORMS}")
