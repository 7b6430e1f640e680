"""Classes of tokens by their text: special marks, white space, punctuation, digits, words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from sinklens.errors import ScopeError

Class = Literal["bos", "eos", "mask", "white space", "punctuation", "digit", "word"]
CLASSES: tuple[str, ...] = get_args(Class)
_MARKS = {
    "bos": r"<\|(bos|startoftext|begin_of_text)\|>|<s>|<bos>|<cls>|\[CLS\]",
    "eos": r"<\|(eos|endoftext|eot_id|end_of_text|im_end)\|>|</s>|<eos>|<sep>|\[SEP\]",
}


def token_class(text: str) -> str:
    """Class of a token by its text: one of CLASSES."""
    for name, pattern in _MARKS.items():
        if re.fullmatch(pattern, text):
            return name
    if re.fullmatch(r"<\|?\w*mask\w*\|?>|\[MASK\]", text, re.IGNORECASE):
        return "mask"
    stripped = text.strip()
    if not stripped:
        return "white space"
    if stripped.isdigit():
        return "digit"
    return "word" if any(character.isalnum() for character in stripped) else "punctuation"


def ids_of_class(model: Any, name: str) -> list[int]:
    """Token ids of a class in a model's vocabulary; "mask" is the model's mask token.

    Raises:
        ValueError: an unknown class, a model without a tokenizer, or a class that its vocabulary does not hold.
    """
    if name not in CLASSES:
        raise ValueError(f"token class {name!r} is unknown; the classes are {', '.join(CLASSES)}")
    mask = getattr(getattr(model, "ids", None), "mask", None)
    if name == "mask" and mask is not None:
        return [int(mask)]
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"token class {name!r} needs a tokenizer, and {model!r} has none; give token ids instead")
    ids = _vocabulary(tokenizer).get(name)
    if not ids:
        raise ValueError(f"no token of {model!r} is of class {name!r}, so it could never be found; use another class")
    return list(ids)


def in_vocabulary(model: Any, ids: Sequence[int], whose: object, error: type[Exception] = ScopeError) -> None:
    """Raise for token ids that a model does not have.

    Args:
        model: The model.
        ids: The ids.
        whose: What names them, for the error.
        error: What to raise.

    Raises:
        ScopeError: or another `error`; quoting the first such id and the size of the vocabulary.
    """
    size = int(model.cfg.d_vocab)
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise error(f"{whose}: token id {wrong[0]} is outside the vocabulary of {size}")


_KNOWN: WeakKeyDictionary[Any, tuple[int, Mapping[str, list[int]]]] = WeakKeyDictionary()


def _vocabulary(tokenizer: Any) -> Mapping[str, list[int]]:
    """Token ids by class; a vocabulary is decoded once, and again if it has grown."""
    size, classes = _KNOWN.get(tokenizer, (-1, {}))
    if size != len(tokenizer):
        classes = {}
        for index, text in enumerate(tokenizer.batch_decode([[index] for index in range(len(tokenizer))])):
            classes.setdefault(token_class(text), []).append(index)
        _KNOWN[tokenizer] = len(tokenizer), classes
    return classes
