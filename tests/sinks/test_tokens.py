"""Token ids of a class: the bundled vocabulary read by eye, stand-ins for tokenizers, and readable errors."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sinklens import HookedDLM
from sinklens.sinks.tokens import CLASSES, ids_of_class, token_class


class Vocabulary:
    """A tokenizer that decodes one token at a time."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(self.texts[index] for index in row) for row in rows]


def model_of(*texts: str, mask: int | None = None) -> Any:
    return SimpleNamespace(tokenizer=Vocabulary(*texts), ids=SimpleNamespace(mask=mask))


TEXTS = ("<s>", "</s>", "[MASK]", " ", "\n", ".", " ,", "12", " the", "x", "<|endoftext|>", "\t\t")
EXPECTED = {
    "bos": [0],
    "eos": [1, 10],
    "mask": [2],
    "white space": [3, 4, 11],
    "punctuation": [5, 6],
    "digit": [7],
    "word": [8, 9],
}


@pytest.mark.parametrize("name", CLASSES)
def test_ids_of_each_class(name: str) -> None:
    assert ids_of_class(model_of(*TEXTS), name) == EXPECTED[name]


def test_every_token_has_one_class() -> None:
    every = sorted(index for name in CLASSES for index in ids_of_class(model_of(*TEXTS), name))
    assert every == list(range(len(TEXTS)))


def test_the_mask_is_the_models_own_whatever_its_text() -> None:
    """LLaDA-like vocabularies may spell it oddly, and a stray look-alike is no mask of this model."""
    assert ids_of_class(model_of("[MASK]", "word", "odd", mask=2), "mask") == [2]
    assert ids_of_class(SimpleNamespace(tokenizer=None, ids=SimpleNamespace(mask=0)), "mask") == [0]


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_the_bundled_vocabulary(name: str) -> None:
    dlm = HookedDLM.from_pretrained(name)
    assert ids_of_class(dlm, "punctuation") == [4, 5, 6]
    assert [dlm.tokenizer.decode([index]) for index in (4, 5, 6)] == [".", ",", "?"]
    assert ids_of_class(dlm, "white space") == [3]
    assert [ids_of_class(dlm, kind) for kind in ("bos", "eos", "mask")] == [[0], [1], [2]]
    assert ids_of_class(dlm, "word") == list(range(7, 67))
    assert ids_of_class(SimpleNamespace(tokenizer=dlm.tokenizer), "punctuation") == [4, 5, 6]  # any bridge has one
    with pytest.raises(ValueError, match=r"no token of .*tiny.* is of class 'digit'"):
        ids_of_class(dlm, "digit")


@pytest.mark.parametrize("name", ["comma", "", "Punctuation", "masked"])
def test_an_unknown_class_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="bos, eos, mask, white space, punctuation, digit, word"):
        ids_of_class(model_of(*TEXTS), name)


def test_a_model_without_tokenizer_is_named(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    with pytest.raises(ValueError, match=r"HookedDLM\(.* has none; give token ids instead"):
        ids_of_class(dlm, "word")
    assert ids_of_class(dlm, "mask") == [62]


def test_classes_of_texts_and_of_ids_agree() -> None:
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    for name in ("bos", "eos", "mask", "white space", "punctuation", "word"):
        for index in ids_of_class(dlm, name):
            assert token_class(dlm.token_strings([index])[0]) == name
