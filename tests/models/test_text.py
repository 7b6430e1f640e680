"""One rule for special tokens: those that the checkpoint's tokenizer puts in front of a text, for whoever asks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parts_text import GRAMMAR, WORDS, twin

from sinklens import HookedDLM, Plan, denoise
from sinklens.decoding.prompts import token_rows
from sinklens.errors import PromptError

TEXTS = [" ".join(WORDS[3:9]), " ".join(WORDS[12:14]), "", "<|bos|> " + WORDS[2], WORDS[4] + " <|eos|>"]
BOS = GRAMMAR.bos


def words(text: str) -> list[int]:
    return [GRAMMAR.id[word] for word in text.split()]


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_every_way_to_tokens_is_the_same(name: str, before: bool, after: bool) -> None:
    """BOS where the tokenizer puts it, once; what it puts behind a text is left off; an empty text is BOS."""
    dlm: Any = twin(name, before=before, after=after)
    for text in TEXTS:
        plain = words(text)
        expected = plain if plain and (not before or plain[0] == BOS) else [BOS, *plain]
        assert dlm.encode(text) == expected
        assert dlm.to_tokens(text).tolist() == [expected]
        assert dlm.to_str_tokens(text) == [GRAMMAR.tokens[token] for token in expected]
        assert token_rows(dlm, [text]) == [expected]
        assert denoise(dlm, text, Plan(new_tokens=1), progress=False).tokens[0, : len(expected)].tolist() == expected
        logits, cache = dlm.run_with_cache(text)
        by_ids, same = dlm.run_with_cache(torch.tensor([expected]))
        assert torch.equal(logits, by_ids)
        assert torch.equal(dlm(text), dlm(torch.tensor([expected])))
        assert torch.equal(cache["pattern", 1], same["pattern", 1])
    assert dlm.get_token_position(WORDS[4], TEXTS[0]) == 1 + before


@pytest.mark.parametrize("before", [True, False])
def test_an_explicit_wish_is_kept(before: bool) -> None:
    dlm: Any = twin(before=before)
    plain = words(TEXTS[0])
    assert dlm.to_tokens(TEXTS[0], prepend_bos=True).tolist() == [[BOS, *plain]]
    assert dlm.to_tokens(TEXTS[0], prepend_bos=False).tolist() == [plain]
    assert dlm.to_tokens(TEXTS[3], prepend_bos=True).tolist() == [words(TEXTS[3])]
    assert torch.equal(dlm(TEXTS[0], prepend_bos=True), dlm(torch.tensor([[BOS, *plain]])))
    assert dlm.to_single_token(WORDS[4]) == GRAMMAR.id[WORDS[4]]
    with pytest.raises(PromptError, match="prepend_bos=True, and tiny-dlm has no BOS"):
        twin(before=False, bos=False).to_tokens(TEXTS[0], prepend_bos=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_texts_beside_each_other_are_as_each_alone(name: str, side: str) -> None:
    """What is padding is known, and not guessed from pad tokens: one text here ends in the pad, EOS."""
    dlm: Any = twin(name)
    texts = [TEXTS[0], TEXTS[1], TEXTS[4]]
    together = dlm(texts, padding_side=side)
    for row, text in zip(together, texts, strict=True):
        alone = dlm(text)[0]
        own = row[-len(alone) :] if side == "left" else row[: len(alone)]
        torch.testing.assert_close(own, alone, atol=1e-4, rtol=1e-4)


def test_no_text_is_cut_in_silence() -> None:
    dlm: Any = twin()
    long = " ".join([WORDS[1]] * 200)
    for call in (dlm.to_tokens, dlm, dlm.run_with_cache):
        with pytest.raises(PromptError, match="a text of 201 tokens exceeds the context of 128"):
            call(long)
    assert dlm.to_tokens(long, truncate=True).shape == (1, 128)
    assert dlm.to_tokens(long, truncate=False).shape == (1, 201)
    for wrong in ([], [3], ["mora", None]):
        with pytest.raises(PromptError, match="is no text"):
            dlm.to_tokens(wrong)


@pytest.mark.parametrize("before", [True, False])
def test_another_tokenizer_is_taken_as_it_is(before: bool) -> None:
    """TransformerLens's setter loads it once more, from wherever it came, with BOS in front of every text."""
    dlm: Any = twin(before=not before)
    old, vocabulary = dlm.tokenizer, dlm.cfg.d_vocab
    own = twin(before=before).tokenizer
    try:
        dlm.tokenizer = own
        assert dlm.tokenizer is own
        plain = words(TEXTS[0])
        assert dlm.encode(TEXTS[0]) == dlm.to_tokens(TEXTS[0])[0].tolist() == ([BOS, *plain] if before else plain)
        assert dlm.cfg.d_vocab == vocabulary
    finally:
        dlm.tokenizer = old


def test_a_word_of_the_tokenizers_that_the_embedding_has_not_is_refused() -> None:
    dlm = HookedDLM.from_pretrained("tiny-arm")
    tokenizer = copy.deepcopy(dlm.tokenizer)
    tokenizer.add_tokens(["zzzfoo"])
    dlm.tokenizer = tokenizer
    for way in (dlm.encode, dlm.to_tokens, lambda text: dlm.encode(text, chat=False), dlm):
        with pytest.raises(PromptError, match=r"token id 67 is outside the vocabulary of 67"):
            way("zzzfoo")
