"""Whatever is given as a prompt or an answer is read as what it says, or refused in one error that quotes it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from conftest import IDS as MODEL_IDS
from conftest import _stock
from fuzzing import fuzz, refused
from hypothesis import strategies as st
from parts_text import GRAMMAR, PAD, WORDS, ids_of, spaced_tokenizer, twin

from sinklens import HookedDLM, Plan, log_likelihood
from sinklens.decoding.answers import answered_rows
from sinklens.decoding.loop import denoising_steps
from sinklens.decoding.prompts import token_rows
from sinklens.tasks import Prompts

BOS, EOS = GRAMMAR.bos, GRAMMAR.eos
WORD = st.sampled_from(WORDS[:-1])
IDS = st.lists(st.integers(GRAMMAR.first_word, len(GRAMMAR.tokens) - 2), min_size=1, max_size=6)
SOME = st.lists(IDS, min_size=1, max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.lists(WORD, max_size=4).map(" ".join)}
    ),
    min_size=1,
    max_size=4,
)
KEYS = ["input_ids", "attention_mask", "role", "content", "text"]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=3)
    | st.sampled_from([*WORDS[:3], np.float32(1.5), np.int64(8), torch.tensor(7), torch.tensor([1.5]), object, EOS]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.sampled_from(["input_ids", "attention_mask", "role", "content", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def written(row: list[int], form: str) -> Any:
    """One row of ids in a form."""
    match form:
        case "tuple":
            return tuple(row)
        case "tensor":
            return torch.tensor(row, dtype=torch.int32)
        case "array":
            return np.array(row, dtype=np.uint16)
        case "numbers":
            return [np.int64(token) for token in row]
        case "scalars":
            return [torch.tensor(token) for token in row]
        case "encoding":
            return {"input_ids": row, "attention_mask": [1] * len(row)}
        case "one row":
            return torch.tensor([row])
        case "text":
            return " ".join(GRAMMAR.tokens[token] for token in row)
    return row


FORM = st.sampled_from(["list", "tuple", "tensor", "array", "numbers", "scalars", "encoding", "one row", "text"])


@fuzz(rows=SOME, forms=st.lists(FORM, min_size=4, max_size=4))
def test_rows_in_any_mixture_of_forms(rows: list[list[int]], forms: list[str]) -> None:
    given = [written(row, form) for row, form in zip(rows, forms, strict=False)]
    expected = [[BOS, *row] if form == "text" else row for row, form in zip(rows, forms, strict=False)]
    assert token_rows(twin(), given) == expected
    task = Prompts(given)
    assert token_rows(twin(), [task[index].prompt for index in range(len(task))]) == expected
    for one, ids in zip(given, expected, strict=True):
        assert twin().encode(one) == ids


@fuzz(
    rows=SOME,
    left=st.booleans(),
    told=st.booleans(),
    own=st.booleans(),
    more=st.integers(0, 3),
    form=st.sampled_from(["lists", "tensor", "array", "tensors"]),
)
def test_pads_are_no_prompt_or_are_refused(
    rows: list[list[int]], left: bool, told: bool, own: bool, more: int, form: str
) -> None:
    """With a mask, or with a pad that is nothing else, always; where EOS pads, never guessed."""
    dlm = twin(before=False, pad=PAD) if own else twin(before=False)
    pad, width = dlm.ids.pad, max(map(len, rows)) + more
    pads = [[pad] * (width - len(row)) for row in rows]
    full = [[*p, *row] if left else [*row, *p] for p, row in zip(pads, rows, strict=True)]
    real = [[[0] * len(p), [1] * len(row)] for p, row in zip(pads, rows, strict=True)]
    mask = [before + behind if left else behind + before for before, behind in real]
    shapes: dict[str, Any] = {"tensor": torch.tensor, "array": np.array, "tensors": lambda x: list(torch.tensor(x))}
    laid = shapes.get(form, list)(full)
    given = {"input_ids": laid, "attention_mask": shapes.get(form, list)(mask)} if told else laid
    padded = sum(map(len, pads))
    said = refused(lambda: token_rows(dlm, given), [f"with {pad}, a pad that may also be part of a prompt"])
    if said is None:
        by_itself = len(rows) == 1 and padded == 1 and not (told or own)  # one EOS at an end of one row is what it says
        assert token_rows(dlm, given) == (full if by_itself else rows)
    else:
        assert padded
        assert not told
        assert not own


@fuzz(messages=MESSAGES, before=st.booleans())
def test_messages_are_what_the_template_makes_of_them(messages: list[dict[str, str]], before: bool) -> None:
    dlm = twin(before=before)
    own: Any = dlm.tokenizer
    expected = own.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert token_rows(dlm, messages) == token_rows(dlm, [messages]) == [expected]
    assert token_rows(dlm, own.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")) == [
        expected
    ]
    assert token_rows(dlm, own.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)) == [expected]


@fuzz(given=JUNK)
def test_anything_is_read_or_refused(given: Any) -> None:
    """What is read is whole numbers of the vocabulary, and the same when what was read is given again."""
    plan = Plan(new_tokens=1)
    if refused(lambda: token_rows(twin(), given)) is not None:
        assert refused(lambda: next(denoising_steps(twin(), given, plan))) is not None
        assert refused(lambda: log_likelihood(twin(), given, [[9]])) is not None
        return
    rows = token_rows(twin(), given)
    assert all(type(token) is int and 0 <= token < int(twin().cfg.d_vocab) for row in rows for token in row)
    assert rows
    assert not any(isinstance(each, float | bool) for each in _leaves(given))
    task = Prompts(given)
    assert token_rows(twin(), [task[index].prompt for index in range(len(task))]) == rows


def _leaves(given: Any) -> list[Any]:
    """What an example holds that could be an id; masks may be truth values."""
    if isinstance(given, dict):
        return _leaves(given["input_ids"])
    return [leaf for each in given for leaf in _leaves(each)] if isinstance(given, list | tuple) else [given]


SPACE = st.sampled_from(["", " ", "\n", "  ", " \n"])
PIECES = st.lists(st.sampled_from([f"w{number}" for number in range(5)]), min_size=1, max_size=3).map(" ".join)


@lru_cache
def spaced() -> HookedDLM:
    """A baseline that tells words with a space in front from those without."""
    return HookedDLM.from_transformers(_stock("Llama"), spaced_tokenizer(), "Llama", ids=MODEL_IDS, check=False)


@fuzz(
    prompt=PIECES | st.just(""),
    answer=PIECES,
    edges=st.tuples(SPACE, SPACE, SPACE),
    separator=st.sampled_from([" ", "\n", "", None]),
)
def test_an_answer_is_read_behind_its_prompt_or_refused(
    prompt: str, answer: str, edges: tuple[str, str, str], separator: str | None
) -> None:
    """By hand: the text that the rule makes of both, as one; the prompt's part of it without its white space."""
    dlm, (after, before, behind) = spaced(), edges
    asked, said = prompt + after, before + answer + behind
    found: list[Any] = []
    error = refused(lambda: found.extend(answered_rows(dlm, asked, said, separator=separator)), [repr(said), answer])
    if separator is None:
        whole = asked + before + answer
    elif before not in ("", separator):
        assert error is not None
        return
    else:
        whole = asked + (answer if after or not prompt else separator + answer)
    head = ids_of("<bos>") if not prompt else dlm.encode_piece(prompt)
    if error is None:
        assert list(found[0].prompt) == head
        assert [*([] if not prompt else head), *found[0].answer] == dlm.encode_piece(whole)
        score = float(log_likelihood(dlm, asked, said, separator=separator))
        assert math.isfinite(score)
        assert score == float(log_likelihood(dlm, [head], [found[0].answer]))
    else:
        joined = refused(lambda: dlm.encode_piece(whole))
        assert joined is not None or dlm.encode_piece(whole)[: len(head)] != head
