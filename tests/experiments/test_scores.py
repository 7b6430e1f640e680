"""The file of finished scores: what is in it is read, what was cut off is dropped, nothing else is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sinklens.errors import RecordError, SaveError
from sinklens.experiments.scores import HEADER, ScoreStore

SCORES: list[dict[str, Any]] = [
    {"a": {"values": {"kl": [0.25, 3]}, "edited_keys": 1}, "b": {"values": {"kl": [math.nan, 0]}}},
    {"c": {"values": {"accuracy": [1.0, 2]}}},
    {"d": {"values": {"accuracy": [0.1 + 0.2, 2]}}},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds three batches."""
    store = ScoreStore(tmp_path / "new" / "folder" / "scores.jsonl")
    for batch in SCORES:
        store.add(batch)
    return tmp_path / "new" / "folder" / "scores.jsonl"


def everything(scores: dict[str, Any]) -> str:
    """Comparable, although nan is in it."""
    return json.dumps(scores, sort_keys=True)


WHOLE = everything({key: value for batch in SCORES for key, value in batch.items()})


def test_one_line_says_what_the_file_is_and_one_each_batch(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    assert json.loads(first) == HEADER == {"sinklens": "scores", "schema": 1}
    assert [everything(json.loads(line)) for line in lines] == [*map(everything, SCORES)]
    before = path.read_bytes()
    assert everything(ScoreStore(path).scores) == WHOLE
    assert path.read_bytes() == before


def test_what_is_added_is_on_disk_before_the_next(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "scores")
    for number, batch in enumerate(SCORES, start=1):
        store.add(batch)
        assert len((tmp_path / "scores").read_text().splitlines()) == 1 + number
        assert set(store.scores) == {key for each in SCORES[:number] for key in each}


def test_without_a_path_it_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ScoreStore(None)
    store.add(SCORES[0])
    assert set(store.scores) == {"a", "b"}
    assert list(tmp_path.iterdir()) == []


def test_opening_makes_no_file(tmp_path: Path) -> None:
    assert ScoreStore(tmp_path / "scores").scores == {}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").touch()
    store = ScoreStore(str(tmp_path / "empty"))
    assert store.scores == {}
    store.add(SCORES[1])
    assert set(ScoreStore(tmp_path / "empty").scores) == {"c"}


def test_every_cut_of_the_last_line_is_dropped_and_written_over(path: Path) -> None:
    text = path.read_text()
    first, last = text[: text.rindex("{", 0, text.rindex('"d"') + 1)], text.splitlines(keepends=True)[-1]
    assert first + last == text
    for length in range(len(last) + 1):
        path.write_text(first + last[:length])
        store = ScoreStore(path)
        kept = set("abcd") if length >= len(last) - 1 else set("abc")
        assert set(store.scores) == kept, length
        store.add({"e": {"values": {}}})
        assert set(ScoreStore(path).scores) == {*kept, "e"}
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert [each.name for each in path.parent.iterdir()] == ["scores.jsonl"]


def test_a_file_of_which_only_the_first_line_is_left(path: Path) -> None:
    header = path.read_text().splitlines()[0]
    for text in (header, header + "\n", header + "\n{"):
        path.write_text(text)
        store = ScoreStore(path)
        assert store.scores == {}
        store.add(SCORES[1])
        assert set(ScoreStore(path).scores) == {"c"}


@pytest.mark.parametrize("bad", ["{", '{"a": 1', "5", '["ab"]', '{"a": 3}', "not json", ""])
def test_a_damaged_line_that_is_not_the_last_is_an_error(path: Path, bad: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], bad, *lines[2:]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"scores.jsonl, line 3 is damaged; delete the file"):
        ScoreStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", ["{\n", "not json", "not json\n", '["ab"]\n', "\0\0\0"])
def test_a_last_line_that_no_cut_leaves_is_an_error(path: Path, bad: str) -> None:
    path.write_text(path.read_text() + bad)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="line 5 is damaged"):
        ScoreStore(path)
    assert path.read_bytes() == before


def test_a_later_score_replaces_an_earlier_one(path: Path) -> None:
    store = ScoreStore(path)
    store.add({"a": {"values": {"kl": [9.0, 9]}}})
    assert ScoreStore(path).scores["a"] == {"values": {"kl": [9.0, 9]}}


FOREIGN: dict[str, bytes] = {
    "a task": b'{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n',
    "a task that was cut": b'{"prompt": "a", "answer": "b"}\n{"prompt": "c", "ans',
    "scores without a header": b'{"0123": {"values": {"kl": [0.25, 3]}, "edited_keys": 1, "edited_mass": 0.5}}\n',
    "one line without an end": b'{"0123": {"values": {}}}',
    "a result": b'{"scores": [], "finished": true, "provenance": {}}',
    "a list": b"[1, 2]\n",
    "a text": b"model: tiny-dlm\nedits: [mask:top1]\n",
    "bytes": b"\x89HDF\r\n\x1a\n\xff\xfe\x00",
    "an empty line": b"\n",
    "a cut header": b'{"sinklens": "sco',
    "another thing of ours": b'{"sinklens": "ablation", "schema": 1}\n',
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_others_is_refused_and_left_as_it_is(tmp_path: Path, what: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(FOREIGN[what])
    with pytest.raises(RecordError, match=r"mine.jsonl' holds no scores that sinklens wrote.*left as it is"):
        ScoreStore(path)
    assert path.read_bytes() == FOREIGN[what]
    assert [each.name for each in tmp_path.iterdir()] == ["mine.jsonl"]


def test_scores_of_another_schema_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"sinklens": "scores", "schema": 2}\n{"a": {"values": {}}}\n')
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"another version of sinklens .*'schema': 2"):
        ScoreStore(path)
    assert path.read_bytes() == before


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="is a folder; give the name of a file"):
        ScoreStore(tmp_path)
