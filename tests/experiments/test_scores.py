"""The file of finished scores: what is in it is read, what was cut off is dropped, nothing else is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sinklens.experiments.scores import Store

ROWS: list[dict[str, Any]] = [
    {"a": {"values": {"kl": [0.25, 3]}, "edited_keys": 1}, "b": {"values": {"kl": [math.nan, 0]}}},
    {"c": {"values": {"accuracy": [1.0, 2]}}},
    {"d": {"values": {"accuracy": [0.1 + 0.2, 2]}}},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds three batches."""
    store = Store(tmp_path / "new" / "folder" / "rows.jsonl")
    for batch in ROWS:
        store.add(batch)
    return tmp_path / "new" / "folder" / "rows.jsonl"


def everything(rows: dict[str, Any]) -> str:
    """Comparable, although nan is in it."""
    return json.dumps(rows, sort_keys=True)


WHOLE = everything({key: value for batch in ROWS for key, value in batch.items()})


def test_one_line_per_batch_at_once(path: Path) -> None:
    assert [everything(json.loads(line)) for line in path.read_text().splitlines()] == [*map(everything, ROWS)]
    before = path.read_bytes()
    assert everything(Store(path).rows) == WHOLE
    assert path.read_bytes() == before


def test_what_is_added_is_on_disk_before_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path / "rows")
    for number, batch in enumerate(ROWS, start=1):
        store.add(batch)
        assert len((tmp_path / "rows").read_text().splitlines()) == number
        assert set(store.rows) == {key for each in ROWS[:number] for key in each}


def test_without_a_path_it_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    store.add(ROWS[0])
    assert set(store.rows) == {"a", "b"}
    assert list(tmp_path.iterdir()) == []


def test_opening_makes_no_file(tmp_path: Path) -> None:
    assert Store(tmp_path / "rows").rows == {}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").touch()
    assert Store(str(tmp_path / "empty")).rows == {}


def test_every_cut_of_the_last_line_is_dropped_and_written_over(path: Path) -> None:
    text = path.read_text()
    first, last = text[: text.rindex("{", 0, text.rindex('"d"') + 1)], text.splitlines(keepends=True)[-1]
    assert first + last == text
    for length in range(len(last) + 1):
        path.write_text(first + last[:length])
        store = Store(path)
        kept = set("abcd") if length >= len(last) - 1 else set("abc")
        assert set(store.rows) == kept, length
        store.add({"e": {"values": {}}})
        assert set(Store(path).rows) == {*kept, "e"}
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert [each.name for each in path.parent.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("bad", ["{", '{"a": 1', "5", '["a"]', "not json", ""])
def test_a_damaged_line_that_is_not_the_last_is_an_error(path: Path, bad: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is damaged; delete the file"):
        Store(path)
    assert path.read_bytes() == before


def test_a_later_score_replaces_an_earlier_one(path: Path) -> None:
    store = Store(path)
    store.add({"a": {"values": {"kl": [9.0, 9]}}})
    assert Store(path).rows["a"] == {"values": {"kl": [9.0, 9]}}
