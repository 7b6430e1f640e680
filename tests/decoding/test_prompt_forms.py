"""Whatever a prompt is given as, its tokens are the same; what can be read in two ways is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parts_text import GRAMMAR, PAD, TEMPLATE, WORDS, twin

from sinklens import Plan, ablate, denoise, denoising_steps, log_likelihood, replay
from sinklens.decoding.prompts import token_rows
from sinklens.errors import PlanError, PromptError
from sinklens.tasks import Prompts

SHORT, LONG = " ".join(WORDS[:3]), " ".join(WORDS[5:12])
BOS, EOS = GRAMMAR.bos, GRAMMAR.eos
ROWS = [[BOS, *(GRAMMAR.id[word] for word in text.split())] for text in (SHORT, LONG)]
USER = [{"role": "user", "content": SHORT}]
TALK = [{"role": "system", "content": LONG}, *USER, {"role": "assistant", "content": LONG}, *USER]
MARK = {"system": "xa", "user": "xe", "assistant": "xi"}


def templated(messages: list[dict[str, str]]) -> list[int]:
    """The template, by hand."""
    words = " ".join(f"{MARK[each['role']]} {each['content']} ." for each in messages)
    return [BOS, *(GRAMMAR.id[word] for word in f"{words} xi".split())]


def encodings() -> dict[str, Any]:
    """What a tokenizer and its template return for SHORT and LONG, or for one of them."""
    own: Any = twin().tokenizer
    padded = own([SHORT, LONG], padding=True)
    return {
        "two rows": own([SHORT, LONG]),
        "padded lists": padded,
        "padded tensors": own([SHORT, LONG], padding=True, return_tensors="pt"),
        "padded on the right": own([SHORT, LONG], padding=True, padding_side="right", return_tensors="pt"),
        "padded arrays": own([SHORT, LONG], padding=True, return_tensors="np"),
        "a dict": {name: padded[name] for name in ("input_ids", "attention_mask")},
        "a mask of truth values": {
            "input_ids": padded["input_ids"],
            "attention_mask": torch.tensor(padded["attention_mask"]).bool(),
        },
        "one by one": [own(SHORT), own(LONG, return_tensors="pt")],
        "mixed": [SHORT, own(LONG)],
        "tensors": [torch.tensor(ROWS[0]), torch.tensor([ROWS[1]])],
        "arrays": [np.array(ROWS[0]), np.array(ROWS[1], dtype=np.int32)],
        "numpy's numbers": [[np.int64(token) for token in row] for row in ROWS],
        "tensors without dimensions": [[torch.tensor(token) for token in row] for row in ROWS],
        "texts of an array": np.array([SHORT, LONG]),
        "left pads before BOS": torch.tensor([[EOS] * 4 + ROWS[0], ROWS[1]]),
        "ids": ROWS,
    }


@pytest.mark.parametrize("form", list(encodings()))
def test_two_prompts_in_every_form(form: str) -> None:
    given = encodings()[form]
    dlm, plan = twin(), Plan(new_tokens=4)
    assert token_rows(dlm, given) == ROWS
    expected = denoise(dlm, [SHORT, LONG], plan, progress=False)
    found = denoise(dlm, given, plan, progress=False)
    assert found.texts == expected.texts
    assert torch.equal(found.tokens, expected.tokens)
    last = [step.tokens for step in denoising_steps(dlm, given, plan)][-1]
    assert torch.equal(last, expected.tokens)
    answers = [ROWS[0][1:3]] * 2
    assert torch.equal(log_likelihood(dlm, given, answers), log_likelihood(dlm, ROWS, answers))
    task = Prompts(given)
    assert token_rows(dlm, [task[index].prompt for index in range(len(task))]) == ROWS
    assert Prompts.from_dict(task.to_dict()) == task
    cut = {
        name: ablate(dlm, tried, {}, plan, metrics=["kl"], progress=False)
        for name, tried in (("a", given), ("b", ROWS))
    }
    assert [row["value"] for row in cut["a"].scores] == [row["value"] for row in cut["b"].scores]


@pytest.mark.parametrize("options", [{}, {"return_tensors": "pt"}, {"padding": "max_length", "max_length": 20}])
def test_one_prompt_of_a_tokenizer(options: dict[str, Any]) -> None:
    own: Any = twin().tokenizer
    given = own(SHORT, **options)
    assert token_rows(twin(), given) == [twin().encode(given)] == [ROWS[0]]


@pytest.mark.parametrize("options", [{}, {"return_tensors": "pt"}, {"return_dict": False}, {"tokenize": False}])
@pytest.mark.parametrize("messages", [USER, TALK])
def test_what_a_chat_template_returns_is_a_prompt(options: dict[str, Any], messages: list[dict[str, str]]) -> None:
    """And the messages themselves are; a text out of a template gets no second BOS."""
    own: Any = twin().tokenizer
    given = own.apply_chat_template(messages, add_generation_prompt=True, **options)
    expected = [templated(messages)]
    assert token_rows(twin(), given) == expected
    assert token_rows(twin(), messages) == token_rows(twin(), [messages]) == expected
    assert token_rows(twin(), [messages, messages]) == expected * 2
    assert token_rows(twin(), messages, chat=True) == expected
    assert Prompts(messages)[0].prompt == Prompts([messages])[0].prompt


@pytest.mark.parametrize("before", [True, False])
def test_chat_puts_a_text_into_the_template_and_refuses_ids(before: bool) -> None:
    dlm = twin(before=before)
    assert dlm.tokenizer is not None
    assert dlm.tokenizer.chat_template == TEMPLATE
    assert token_rows(dlm, SHORT, chat=True) == [dlm.encode(SHORT, chat=True)] == [templated(USER)]
    for given in (ROWS[0], torch.tensor(ROWS[1:]), dlm.tokenizer(SHORT), [SHORT, ROWS[1]]):
        with pytest.raises(
            PromptError, match=r"chat=True puts texts into the chat template, and \[\d+, .*are token ids"
        ):
            next(denoising_steps(dlm, given, Plan(new_tokens=2, chat=True)))


def test_a_run_under_a_template_is_replayed_as_it_was() -> None:
    run = denoise(twin(), [SHORT, TALK], Plan(new_tokens=4, chat=True), progress=False)
    again = replay(run.record, twin(), progress=False)
    assert torch.equal(again.tokens, run.tokens)
    assert torch.equal(replay(again.record, twin(), progress=False).tokens, run.tokens)


# Pads.


def test_a_pad_that_is_nothing_else_is_no_prompt() -> None:
    dlm, pad = twin(pad=PAD), GRAMMAR.id[PAD]
    for rows in ([[pad] * 4 + ROWS[0], ROWS[1]], [ROWS[0] + [pad] * 4, ROWS[1]]):
        for given in (rows, torch.tensor(rows), np.array(rows), [torch.tensor(row) for row in rows]):
            assert token_rows(dlm, given) == ROWS
        assert dlm.encode(rows[0]) == ROWS[0]
    assert token_rows(dlm, [[pad, pad, pad, pad], ROWS[0]]) == [[BOS], ROWS[0]]  # the empty prompt
    with pytest.raises(PromptError, match=rf"has the pad token {pad} between other tokens"):
        dlm.encode([*ROWS[0], pad, 20])
    told = {"input_ids": [*ROWS[0], pad, 20], "attention_mask": [1] * 6}
    assert dlm.encode(told) == [*ROWS[0], pad, 20]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("before", [True, False])
def test_a_pad_that_may_be_part_of_the_prompt_is_never_guessed(before: bool) -> None:
    """EOS pads, and a prompt may end in it."""
    dlm, body = twin(before=before), ROWS[0][1:]
    padded = [[*body, EOS, EOS], [20, 21, 22, 23, 24]], [[EOS, EOS, *body], [20, 21, 22, 23, 24]]
    for rows in padded:
        for given in (rows, torch.tensor(rows)):
            with pytest.raises(
                PromptError, match=rf"(begins|ends) with {EOS}, a pad that may also be part of a prompt"
            ):
                next(denoising_steps(dlm, given, Plan(new_tokens=2)))
        with pytest.raises(PromptError, match="may also be part"):
            log_likelihood(dlm, rows, [[20], [20]])
        with pytest.raises(PromptError, match="may also be part"):
            ablate(dlm, rows, {}, Plan(new_tokens=2), metrics=["kl"], progress=False)
    with pytest.raises(PromptError, match="may also be part"):
        token_rows(dlm, padded[0][0])
    told = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert token_rows(dlm, {"input_ids": padded[0], "attention_mask": told}) == padded[0]
    assert token_rows(dlm, [*body, EOS]) == [[*body, EOS]]  # by itself: what is given
    assert token_rows(dlm, [[*body, EOS], [20, 21]]) == [[*body, EOS], [20, 21]]  # of other lengths: nobody padded


# What is no prompt.


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ({"text": "a"}, "{'text': 'a'}"),
        (USER[0], "a message stands in a list"),
        ({"input_ids": [3, 4], "position_ids": [1, 2]}, "position_ids"),
        ({"input_ids": "mora"}, "input_ids='mora'"),
        ({"input_ids": [3.7, 4]}, "3.7"),
        ({"input_ids": [[3, 4], "mora"]}, "mora"),
        ({"input_ids": [3, 4], "attention_mask": [1]}, r"rows of \[2\] tokens, and attention_mask of \[1\]"),
        ({"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]}, r"attention_mask=\[1, 0, 1\]"),
        ({"input_ids": [3, 4], "attention_mask": [0, 7]}, r"attention_mask=\[0, 7\]"),
        ([3.7, 4], "3.7"),
        ([3, "11"], "prompt 0 is 3"),
        ([True, False], "True"),
        ([None], "None"),
        (None, "None"),
        (7, "7 is no prompt"),
        (b"abc", "b'abc'"),
        ({3, 4}, "{3, 4}"),
        (torch.tensor([3.0, 4.0]), "torch.float32"),
        (torch.tensor([True]), "torch.bool"),
        (torch.tensor(3), r"shape \(\)"),
        (torch.zeros(1, 1, 1, dtype=torch.long), r"shape \(1, 1, 1\)"),
        (np.array([0.5]), "float64"),
        ([[[3, 4], [5, 6]], [7]], r"prompt 0 holds 2 prompts, \[\[3, 4\], \[5, 6\]\]"),
        ([{"role": "user"}], "{'role': 'user'}"),
        ([{"role": "user", "content": 5}], "5"),
        ([{"role": "user", "content": "mora", "weight": 2}], "weight"),
        ([{"role": "judge", "content": "mora"}], "cannot read .*mora"),
        ([*USER, SHORT], "a message stands in a list"),
        ([3, 4, 999], "token id 999 is outside the vocabulary"),
    ],
)
def test_what_is_no_prompt_is_refused_and_quoted(given: Any, quoted: str) -> None:
    for call in (
        lambda: next(denoising_steps(twin(), given, Plan(new_tokens=2))),
        lambda: denoise(twin(), given, Plan(new_tokens=2), progress=False),
        lambda: log_likelihood(twin(), given, [[5]]),
        lambda: ablate(twin(), Prompts(given), {}, Plan(new_tokens=2), metrics=["kl"], progress=False),
    ):
        with pytest.raises(PromptError, match=quoted):
            call()


def test_no_prompt_at_all_is_refused() -> None:
    for given in ([], (), torch.zeros(0, 3, dtype=torch.long)):
        with pytest.raises(PlanError, match="prompts is empty"):
            denoise(twin(), given, Plan(new_tokens=2))
