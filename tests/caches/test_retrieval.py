"""Texts in which something is hidden."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens.caches.retrieval import Retrieval, sentences
from sinklens.errors import ContentError, TaskError

HAYSTACK = [f"Sentence number {number} says that the {word} is old and rather grey." for number, word in
            enumerate(["house", "tree", "river", "table", "horse", "lamp", "door", "street"] * 12)]  # fmt: skip


def encode(text: str) -> list[str]:
    return text.split()


@given(
    st.sampled_from(["passkey", "needle"]),
    st.integers(60, 600),
    st.floats(0, 1, allow_nan=False),
    st.integers(0, 10**6),
)
def test_a_context_is_as_long_as_it_may_be_and_holds_what_is_hidden_at_its_depth(kind, tokens, depth, seed) -> None:
    trial = Retrieval(kind, tokens, depth, seed)
    context = " ".join(trial.context(encode, HAYSTACK))  # type: ignore[arg-type]
    assert context.count(" ".join(trial.hidden.split())) == 1
    assert tokens - 13 < len(encode(context)) <= tokens  # a sentence more would not fit
    opening = len(encode(context.partition("remember it.")[0])) + 2 if kind == "passkey" else 0
    room = len(encode(context)) - len(encode(trial.hidden)) - opening
    before = len(encode(context[: context.index(" ".join(trial.hidden.split()))])) - opening
    assert before == pytest.approx(depth * room, abs=13)
    assert trial.answer in trial.hidden
    assert trial.answer not in trial.question


def test_the_same_trial_is_the_same_text_and_seeds_differ() -> None:
    trial = Retrieval("needle", 100, 0.5, 3)
    assert trial.context(encode, HAYSTACK) == Retrieval("needle", 100, 0.5, 3).context(encode, HAYSTACK)  # type: ignore[arg-type]
    assert len({Retrieval("passkey", 100, 0.5, seed).answer for seed in range(50)}) > 45
    assert len({Retrieval("needle", 100, 0.5, seed).answer for seed in range(50)}) > 5


def test_what_cannot_be_hidden_is_said() -> None:
    with pytest.raises(TaskError, match="tokens=10 is too short"):
        Retrieval("passkey", 10, 0.5).context(encode)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="do not fill 5000 tokens"):
        Retrieval("needle", 5000, 0.5).context(encode, HAYSTACK)  # type: ignore[arg-type]
    for wrong in ({"depth": 1.5}, {"tokens": 0}, {"kind": "pin"}):
        with pytest.raises(ContentError, match=next(iter(wrong))):
            Retrieval(**{"kind": "passkey", "tokens": 50, "depth": 0.5, **wrong})  # type: ignore[arg-type]


def test_sentences_are_plain_and_none_comes_twice() -> None:
    text = (
        "This is an ordinary sentence, the first of two. See <code> in {braces} for what that means here. Short one. "
    )
    assert sentences(text * 2) == ["This is an ordinary sentence, the first of two."]
