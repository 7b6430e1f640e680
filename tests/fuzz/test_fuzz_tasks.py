"""Task files: every one is read as it is written, or refused with its line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens.tasks import Jsonl

FILE = Path(tempfile.mkdtemp()) / "task.jsonl"
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["\u2028", "a\x85b", "\ufeff", "x\rb", " "]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(TEXTS, SCALARS, max_size=2)
ITEMS = st.dictionaries(st.sampled_from(["prompt", "answer", "more"]), VALUES | TEXTS, max_size=3)
LINES = st.lists(ITEMS, min_size=1, max_size=4)
BREAKS = st.sampled_from(["\n", "\r\n", "\n\n"])


def good(item: dict[str, Any]) -> bool:
    """Whether an item is what the documentation says, told in other words."""
    prompt, answer = item.get("prompt"), item.get("answer")
    if not isinstance(prompt, str) or isinstance(answer, bool):
        return False
    if isinstance(answer, str):
        return answer.strip() != ""
    return isinstance(answer, int | float) and json.dumps(answer) not in ("NaN", "Infinity", "-Infinity")


@fuzz(items=LINES, ends=BREAKS, mark=st.booleans(), plain=st.booleans())
def test_every_file_is_read_as_it_is_written_or_refused_by_line(
    items: list[dict[str, Any]], ends: str, mark: bool, plain: bool
) -> None:
    text = ends.join(json.dumps(item, ensure_ascii=plain) for item in items)
    FILE.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    bad = [number for number, item in enumerate(items) if not good(item)]
    said = refused(lambda: Jsonl(FILE), ["task.jsonl"])
    if bad:
        assert said is not None
        assert f"line {1 + bad[0] * ends.count(chr(10))}:" in said
        return
    assert said is None
    for item, example in zip(items, Jsonl(FILE).examples, strict=True):
        assert example.prompt == item["prompt"]
        number = not isinstance(item["answer"], str)
        assert example.answer == (json.dumps(item["answer"]) if number else item["answer"])


@fuzz(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes(content: bytes) -> None:
    FILE.write_bytes(content)
    refused(lambda: Jsonl(FILE), ["task.jsonl"])


@fuzz(
    extract=st.text("ab()|*+?[]{}\\^$.w1,", max_size=8),
    match=st.sampled_from(["first", "last", "full", "other", ""]),
    answer=st.text("ab1,. ", min_size=1, max_size=6).filter(str.strip),
    completion=st.text("ab1,. \n", max_size=8),
)
def test_an_extract_finds_something_or_is_refused(extract: str, match: Any, answer: str, completion: str) -> None:
    FILE.write_text(json.dumps({"prompt": "p", "answer": answer}))
    said = refused(lambda: Jsonl(FILE, extract=extract, match=match), [repr(extract), repr(match)])
    if said is not None:
        return
    task = Jsonl(FILE, extract=extract, match=match)
    assert task.score(task[0], "zzz").correct == 0  # holds nothing of the answer, so nothing can be right
    score = task.score(task[0], completion)
    assert score.total == 1
    if not extract:
        assert score.correct == (completion.strip() == answer.strip())
    elif score.correct:  # what was found is in the completion, and not empty
        assert set(answer) & set(completion)
