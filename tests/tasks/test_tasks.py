"""Echo and JSONL tasks: the rule, the scoring, and that nothing held out was trained on."""

from __future__ import annotations

import json
import os
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import TaskError
from sinklens.tasks import PUNCTUATION, Echo, EchoGrammar, Example, Jsonl, Prompts, Score, Task, echo_tokenizer

GRAMMAR = EchoGrammar()
MARKS = {*PUNCTUATION, "\n"}


def demanded(tokens: list[str]) -> dict[int, str]:
    """The rule in plain words: position -> word that it demands, for each trigger with enough words before it."""
    out: dict[int, str] = {}
    words: list[str] = []
    for at, token in enumerate(tokens):
        if token in GRAMMAR.triggers:
            back = 1 if token[0] == "x" else 2
            if len(words) >= back and at + 1 < len(tokens):
                out[at + 1] = words[-back]
        elif token not in MARKS and not token.startswith("<|"):
            words.append(token)
    return out


def split(example: Example) -> list[str]:
    """Tokens of prompt and answer, BOS left out; newlines are tokens."""
    return [token for token in f"{example.prompt} {example.answer}".split(" ") if token]


def test_the_same_seed_gives_the_same_examples() -> None:
    first, second, other = Echo(5, seed=1), Echo(5, seed=1), Echo(5, seed=2)
    assert [first[i] for i in range(5)] == [second[i] for i in range(5)]
    assert all(first[i].prompt != other[i].prompt for i in range(5))
    assert len({first[i].name for i in range(5)} | {other[i].name for i in range(5)}) == 10
    assert len(first) == 5


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_examples_have_the_asked_length(gaps: float) -> None:
    task = Echo(20, seed=0, prompt_tokens=10, answer_tokens=14, gaps=gaps)
    for i in range(20):
        prompt, answer = task[i].prompt.split(" "), task[i].answer.split(" ")
        if gaps:
            assert len(prompt) == 23
            assert prompt.count("<|mask|>") == len(answer)
        else:
            assert (len(prompt) + 1, len(answer)) == (10, 14)


def test_held_out_texts_are_not_among_the_training_texts() -> None:
    """The first 50 training steps draw 3200 texts of 64 tokens; no held-out text begins like one of them."""
    length = 48
    trained = set()
    for step in range(50):
        for row in GRAMMAR.sample(64, 64, np.random.default_rng([0, step])):
            trained.add(tuple(row[:length].tolist()))
    assert len(trained) > 3000
    # 32 examples are drawn 64 at a time, as the training texts are: a shared stream would repeat them.
    held_out = [tuple(row.tolist()) for seed in range(50) for row in Echo(32, seed=seed).texts]
    assert {len(row) for row in held_out} == {length}
    assert len(set(held_out)) == 1600
    assert not trained & set(held_out)


def test_the_rule_holds_at_every_decided_position_of_true_texts() -> None:
    task, decided = Echo(100, seed=4), 0
    for i in range(100):
        tokens = split(task[i])
        for at, word in demanded(tokens).items():
            assert tokens[at] == word
            decided += 1
    assert decided / (100 * 48) > 0.2  # the task asks something


def test_decided_positions_are_those_of_the_rule() -> None:
    for row in GRAMMAR.sample(60, 48, np.random.default_rng(5)):
        tokens = [GRAMMAR.tokens[i] for i in row]
        mask, words = GRAMMAR.decided(row)
        expected = demanded(tokens)
        assert np.flatnonzero(mask).tolist() == sorted(expected)
        assert [GRAMMAR.tokens[i] for i in words[mask]] == [expected[at] for at in sorted(expected)]
        assert (words[~mask] == 0).all()


def test_a_batch_is_decided_row_by_row() -> None:
    rows = GRAMMAR.sample(7, 40, np.random.default_rng(6))
    together = GRAMMAR.decided(rows)
    for i, row in enumerate(rows):
        for ours, alone in zip(together, GRAMMAR.decided(row), strict=True):
            np.testing.assert_array_equal(ours[i], alone)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("mora xe mora", {2: "mora"}),
        ("mora kelta wu mora", {3: "mora"}),
        ("mora wa kelta", {}),  # one word is not enough for the last but one
        ("xe mora", {}),
        ("mora . xe mora", {3: "mora"}),  # punctuation is no word
        ("mora xe xo mora", {2: "mora", 3: "mora"}),
        ("mora xe kelta wa mora", {2: "mora", 4: "mora"}),
    ],
)
def test_the_rule_on_hand_written_texts(text: str, places: dict[int, str]) -> None:
    words = dict(zip(("mora", "kelta"), GRAMMAR.words, strict=False))
    tokens = [words.get(token, token) for token in text.split(" ")]
    mask, word = GRAMMAR.decided(np.array([GRAMMAR.id[token] for token in tokens]))
    found = {int(at): GRAMMAR.tokens[word[at]] for at in np.flatnonzero(mask)}
    assert found == {at: words[w] for at, w in places.items()}
    assert found == demanded(tokens)


# Scores.


def test_the_true_answer_scores_one() -> None:
    for gaps in (0.0, 0.5, 1.0):
        task = Echo(30, seed=2, gaps=gaps)
        for i in range(30):
            if not task[i].answer:
                continue
            score = task.score(task[i], task[i].answer)
            assert score.correct == score.total
            assert score.total == (len(task[i].answer.split(" ")) if gaps else score.total)


@given(st.integers(0, 39), st.integers(0, 1000))
def test_one_planted_error_is_counted(index: int, pick: int) -> None:
    """A wrong word at one decided position; later positions are judged by what was written."""
    task = TASK
    example = task[index]
    prompt, answer = example.prompt.split(" "), example.answer.split(" ")
    places = [at - len(prompt) for at in demanded(prompt + answer) if at >= len(prompt)]
    at = places[pick % len(places)]
    answer[at] = next(word for word in GRAMMAR.words[pick % 40 :] if word != answer[at])
    right = demanded(prompt + answer)
    expected = [prompt_and_answer == right[i] for i, prompt_and_answer in enumerate(prompt + answer) if i in right]
    inside = [ok for i, ok in zip(right, expected, strict=True) if i >= len(prompt)]
    score = task.score(example, " ".join(answer))
    assert (score.correct, score.total) == (sum(inside), len(inside))
    assert score.correct < score.total


TASK = Echo(40, seed=9)


def test_a_completion_that_ends_early_is_checked_as_far_as_it_goes() -> None:
    example = TASK[0]
    prompt, answer = example.prompt.split(" "), example.answer.split(" ")
    for length in (1, 7, 20):
        part = prompt + answer[:length]
        score = TASK.score(example, " ".join(answer[:length]))
        assert score.total == sum(at >= len(prompt) for at in demanded(part))
    assert TASK.score(example, "") == Score(0, 0)
    assert np.isnan(TASK.score(example, "").accuracy)
    assert Score(1, 4).accuracy == 0.25


@pytest.mark.parametrize("completion", ["<|mask|> <|mask|>", "xe xe xe", ". , ?", "\n"])
def test_odd_completions_are_scored_not_refused(completion: str) -> None:
    score = TASK.score(TASK[0], completion)
    assert 0 <= score.correct <= score.total <= 4


def test_gap_errors_are_counted() -> None:
    task = Echo(5, seed=3, gaps=1.0)
    for i in range(5):
        answer = task[i].answer.split(" ")
        wrong = [GRAMMAR.words[0] if GRAMMAR.words[0] != answer[0] else GRAMMAR.words[1], *answer[1:]]
        assert task.score(task[i], " ".join(wrong)) == Score(len(answer) - 1, len(answer))
        assert task.score(task[i], answer[0]) == Score(1, len(answer))
        assert task.score(task[i], "") == Score(0, len(answer))


def test_checkable_tokens_are_the_decided_ones() -> None:
    tokenizer = echo_tokenizer(GRAMMAR)
    for i in range(20):
        example = TASK[i]
        prompt, answer = example.prompt.split(" "), example.answer.split(" ")
        ids = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(answer)
        rule = demanded(prompt + answer)
        assert TASK.checkable(example, ids) == [at + len(prompt) in rule for at in range(len(answer))]
    task = Echo(3, seed=0, gaps=0.5)
    assert task.checkable(task[0], [1, 2, 3]) == [True] * 3


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_gaps_are_at_decided_positions_only(share: float) -> None:
    task = Echo(50, seed=1, gaps=share)
    gaps = decided = 0
    for i in range(50):
        tokens, answer = task[i].prompt.split(" "), iter(task[i].answer.split(" "))
        whole = [next(answer) if token == "<|mask|>" else token for token in tokens]
        rule = demanded(whole)
        for at, token in enumerate(tokens):
            if token == "<|mask|>":
                assert whole[at] == rule[at]
                gaps += 1
        decided += len(rule)
    assert gaps / decided == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_every_gap_task_has_a_gap(share: float) -> None:
    """A text without any gap could not be decoded at all."""
    task = Echo(100, seed=0, gaps=share)
    assert all("<|mask|>" in task[i].prompt for i in range(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0 must be a whole number from 1 to 100000"),
        ({"n": 10**20}, "n=100000000000000000000 must be a whole number from 1 to 100000"),
        ({"prompt_tokens": 1}, "prompt_tokens=1 must be a whole number from 2 to 10000"),
        ({"answer_tokens": 0}, "answer_tokens=0 must be a whole number from 1 to 10000"),
        ({"gaps": 1.5}, r"gaps=1.5 must be a number from 0 to 1"),
        ({"gaps": -0.1}, r"gaps=-0.1 must be a number from 0 to 1"),
    ],
)
def test_tasks_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Echo(**options)


# The language and its tokenizer.


def test_texts_end_at_a_sentence_end_and_stay_ended() -> None:
    rows = GRAMMAR.sample(400, 64, np.random.default_rng(0))
    ended = 0
    for row in rows:
        tokens = [GRAMMAR.tokens[i] for i in row]
        assert tokens[0] == "<|bos|>"
        assert "<|mask|>" not in tokens
        if "<|eos|>" in tokens:
            at = tokens.index("<|eos|>")
            ended += 1
            assert tokens[at - 1] in (".", "?")
            assert set(tokens[at:]) == {"<|eos|>"}
    assert 0 < ended < 400


def test_the_tokenizer_round_trip() -> None:
    tokenizer = echo_tokenizer(GRAMMAR)
    for row in GRAMMAR.sample(40, 48, np.random.default_rng(1)):
        text = GRAMMAR.text(row)
        ids = tokenizer(text)["input_ids"]
        body = [int(i) for i in row if i not in (GRAMMAR.bos, GRAMMAR.eos)]
        assert ids == [GRAMMAR.bos, *body]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert GRAMMAR.encode(text).tolist() == body
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (
        GRAMMAR.bos,
        GRAMMAR.eos,
        GRAMMAR.mask,
    )


def test_masks_in_text_are_mask_tokens() -> None:
    tokenizer, word = echo_tokenizer(GRAMMAR), GRAMMAR.words[3]
    assert tokenizer(f"{word} <|mask|> .")["input_ids"] == [
        GRAMMAR.bos,
        GRAMMAR.id[word],
        GRAMMAR.mask,
        GRAMMAR.id["."],
    ]


@pytest.mark.parametrize("text", ["hello", "xe hello", "Dolko"])
def test_a_word_that_is_not_echos_is_an_error(text: str) -> None:
    """None of its letters may be dropped in silence either."""
    with pytest.raises(ValueError, match="is no word of Echo"):
        GRAMMAR.encode(text)


# JSONL.


def write(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_jsonl_task(tmp_path: Path) -> None:
    path = write(
        tmp_path / "sums.jsonl",
        json.dumps({"prompt": "1 + 1 =", "answer": "2"}),
        "",
        json.dumps({"prompt": "é?", "answer": 7, "more": "is ignored"}, ensure_ascii=False),
    )
    task = Jsonl(path)
    assert (task.name, len(task)) == ("sums.jsonl", 2)
    assert task[0] == Example("1 + 1 =", "2", "sums.jsonl:1")
    assert task[1] == Example("é?", "7", "sums.jsonl:3")
    assert task.score(task[0], " 2\n") == Score(1, 1)
    assert task.score(task[0], "22") == Score(0, 1)
    assert task.checkable(task[0], [4, 5]) == [True, True]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"prompt": "a"}',
        '{"answer": "b"}',
        '["a", "b"]',
        '"text"',
        '{"prompt": "a", "answer": ',
        '{"prompt": 3, "answer": "b"}',
        '{"prompt": null, "answer": "b"}',
    ],
)
def test_a_line_that_is_no_item_is_quoted(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "bad.jsonl", json.dumps({"prompt": "a", "answer": "b"}), line)
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: expected .*prompt.*answer.*got") as error:
        Jsonl(path)
    assert line[:20] in str(error.value).replace('\\"', '"')


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no examples"):
        Jsonl(write(tmp_path / "empty.jsonl", ""))


# Tasks as values.


def test_a_task_is_what_it_asks_and_how_it_checks(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", json.dumps({"prompt": "1 + 1 =", "answer": "2"}))
    tasks = [
        Echo(3, seed=1),
        Echo(3, seed=2),
        Echo(3, seed=1, gaps=0.5),
        Jsonl(path),
        Jsonl(path, extract="[0-9]"),
        Prompts(["a"]),
        Prompts([[0, 1]]),
    ]
    assert len({task.digest for task in tasks}) == len(tasks)
    for task in tasks:
        again = type(task).from_dict(json.loads(json.dumps(task.to_dict())))
        assert again == task
        assert [again[i] for i in range(len(again))] == [task[i] for i in range(len(task))]
        assert again.name == task.name
        with pytest.raises(FrozenInstanceError):
            task.name = "other"


def test_a_file_that_changes_later_does_not_change_the_task(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", json.dumps({"prompt": "1 + 1 =", "answer": "2"}))
    task = Jsonl(path)
    described, before = task.to_dict(), task.digest
    write(path, json.dumps({"prompt": "1 + 1 =", "answer": "3"}))
    assert task[0].answer == Jsonl.from_dict(described)[0].answer == "2"
    assert task.digest == before
    assert Jsonl(path).digest != before


def test_the_checker_is_all_but_the_examples(tmp_path: Path) -> None:
    """So that more examples leave the scores of the first ones what they are."""
    path = write(tmp_path / "a.jsonl", *(json.dumps({"prompt": f"{i}", "answer": "b"}) for i in range(3)))
    assert Jsonl(path, limit=1).checker() == Jsonl(path).checker() != Jsonl(path, extract="x").checker()
    assert Echo(3).checker() == Echo(4, seed=5).checker() != Echo(3, gaps=0.5).checker()
    assert Prompts(["a"]).checker() == Prompts(["b", "c"]).checker()

    @dataclass(frozen=True)
    class Own(Jsonl):
        strict: bool = False

        checker = Task.checker

    assert Own(path, strict=True).checker() != Own(path, strict=False).checker()


def test_written_texts_do_not_reach_the_task() -> None:
    task = Echo(2, seed=1)
    before = task[0]
    task.texts[:] = 0
    assert task[0] == before
    assert Echo(2, seed=1)[0] == before


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused(tmp_path: Path, limit: int) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "a", "answer": "b"}))
    with pytest.raises(ValueError, match=f"limit={limit} must be a whole number of at least 1"):
        Jsonl(path, limit=limit)


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": text, "answer": "b"}, ensure_ascii=False))
    assert [each.prompt for each in Jsonl(path).examples] == [text]


def test_a_group_that_took_no_part_found_nothing(tmp_path: Path) -> None:
    """Not the empty text, which would equal that of any other completion."""
    task = Jsonl(write(tmp_path / "a.jsonl", json.dumps({"prompt": "a", "answer": "yx"})), extract="(y)?x")
    assert task.score(task[0], "x").correct == 0
    assert task.score(task[0], "yx").correct == 1
    assert task.score(task[0], "yx x").correct == 1  # the last match with a group that took part
    nothing = Jsonl(write(tmp_path / "b.jsonl", json.dumps({"prompt": "a", "answer": "x"})), extract="(y)?x")
    assert nothing.score(nothing[0], "x").correct == 0


CAPITAL = " Paris\n\nCountry"


@pytest.mark.parametrize(
    ("match", "completion", "right"),
    [
        ("last", CAPITAL, False),
        ("first", CAPITAL, True),
        ("full", CAPITAL, False),
        ("full", " Paris\n", True),
        ("last", "Country: Paris.", True),
        ("first", "Country: Paris.", False),
        ("full", "Paris.", False),
    ],
)
def test_which_match_is_compared_is_said(tmp_path: Path, match: Any, completion: str, right: bool) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "Capital:", "answer": "Paris"}))
    task = Jsonl(path, extract=r"\s*(\w+)", match=match)
    assert bool(task.score(task[0], completion).correct) == right
    assert match in task.scoring or match == "full"
    assert repr(task.extract) in task.scoring
    assert task.checker()["match"] == match


def test_a_completion_in_which_nothing_is_found_is_wrong(tmp_path: Path) -> None:
    """An empty match is none, else every completion would equal every other; an answer may be bare."""
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "a", "answer": "1,000"}))
    for extract in ("[0-9,]*", "#### ([0-9,]+)"):
        task = Jsonl(path, extract=extract)
        assert task.score(task[0], "none").correct == 0
        assert task.score(task[0], "it is #### 1000.").correct == 1
        assert task.score(task[0], "it is #### 100").correct == 0
    assert Jsonl(path, extract="#### ([0-9,]+)").score(Example("a", "1,000", "a"), "1,000").correct == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"extract": "("}, "extract='\\('"),
        ({"extract": "x", "match": "second"}, "match='second'"),
        ({"match": "first"}, "there is no extract"),
    ],
)
def test_what_cannot_be_extracted_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "a", "answer": "b"}))
    with pytest.raises(TaskError, match=says):
        Jsonl(path, **options)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ('{"prompt": "a", "answer": 1.50}', "1.50"),
        ('{"prompt": "a", "answer": 1e3}', "1e3"),
        ('{"prompt": "a", "answer": -0}', "-0"),
        ('{"prompt": "a", "answer": 123456789012345678901}', "123456789012345678901"),
        ('{"prompt": "a", "answer": "true"}', "true"),
    ],
)
def test_a_number_is_the_answer_as_it_is_written(tmp_path: Path, line: str, answer: str) -> None:
    assert Jsonl(write(tmp_path / "a.jsonl", line))[0].answer == answer


@pytest.mark.parametrize(
    "answer", ["null", "true", "[1]", '{"a": 1}', "NaN", "-Infinity", '""', '" \\n"', '"\\ud800"', '"b", "answer": "c"']
)
def test_an_answer_that_is_none_is_refused(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "a", "answer": "b"}', f'{{"prompt": "a", "answer": {answer}}}')
    with pytest.raises(TaskError, match="line 2: expected"):
        Jsonl(path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}\r\n{"prompt": "c", "answer": "d"}')
    assert [example.prompt for example in Jsonl(path).examples] == ["a", "c"]


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"prompt": "a", "answer": "b"}', encoding="utf-16")
    os.mkfifo(tmp_path / "fifo")
    for path, says in ((tmp_path / "a", "UTF-8"), (tmp_path, "no file"), (tmp_path / "fifo", "no file")):
        with pytest.raises(TaskError, match=says):
            Jsonl(path)
