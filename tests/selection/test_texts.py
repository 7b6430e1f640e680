"""Texts: what is held out of training is in no training row, rows are a model's own, and a file is read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sinklens as sl
from sinklens.errors import GateError
from sinklens.selection.texts import (
    Chains,
    EchoTexts,
    Prose,
    Rows,
    antibody_chains,
    python_reference,
    split,
    texts_for,
)

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def twin() -> Any:
    return sl.HookedDLM.from_pretrained("tiny-dlm")


def test_the_reference_is_split_once_and_nothing_is_in_both_parts() -> None:
    train, test = python_reference("train"), python_reference("test")
    whole = train + test
    assert split(whole, "train") == train
    assert split(whole, "test") == test
    assert train.endswith("\n")
    assert 0.79 < len(train) / len(whole) < 0.8
    assert "assert" in train  # English about Python
    assert split("no line ends here", "train") + split("no line ends here", "test") == "no line ends here"


def test_antibodies_are_split_by_antibody_and_whole() -> None:
    train, test = antibody_chains("train"), antibody_chains("test")
    assert (len(train), len(test)) == (24, 6)
    assert not set(train) & set(test)
    for chain in train + test:
        assert set(chain) <= set("ACDEFGHIKLMNPQRSTVWY")
        assert 100 < len(chain) < 130
    names: dict[str, set[str]] = {"train": set(), "test": set()}
    for line in (Path(sl.tasks.__file__).parent / "antibodies.jsonl").read_text().splitlines():
        said = json.loads(line)
        masked = said["prompt"].replace("[MASK]", "?")
        fits = [
            part
            for part, chains in (("train", train), ("test", test))
            for chain in chains
            if len(chain) == len(masked) and all(a in ("?", b) for a, b in zip(masked, chain, strict=True))
        ]
        assert len(fits) == 1  # both draws of masks are of one chain
        names[fits[0]].add(said["name"].split()[0])
    assert len(names["train"]) == 12
    assert len(names["test"]) == 3
    assert not names["train"] & names["test"]


def test_echo_rows_are_held_out_whole_and_unlike_those_of_tasks(twin: Any) -> None:
    train, test = (EchoTexts(part).draw(twin)(RNG(0), 50, 24) for part in ("train", "test"))
    asked = sl.tasks.Echo(50, prompt_tokens=2, answer_tokens=22).texts.tolist()
    rows = {tuple(row) for row in train}
    assert all(len(row) == 24 and row[0] == twin.ids.bos for row in train + test)
    assert not rows & {tuple(row) for row in test}
    assert not rows & {tuple(row) for row in asked}
    assert EchoTexts().draw(twin)(RNG(0), 50, 24) == train  # by the random numbers alone


def test_windows_of_prose_come_from_their_part(twin: Any) -> None:
    words = list(sl.tasks.EchoGrammar.words)
    text = " ".join(words[:10] * 40) + "\n" + " ".join(words[20:30] * 10)
    for part, own in (("train", words[:10]), ("test", words[20:30])):
        for row in Prose(text, "two parts", part).draw(twin)(RNG(1), 20, 12):  # pyright: ignore[reportArgumentType]
            assert row[0] == twin.ids.bos
            assert len(row) == 12
            assert set(twin.decode(row).split()) <= set(own)
    with pytest.raises(GateError, match=r"holds .* tokens of tiny-dlm, too few for rows of 600"):
        Prose(text, "two parts").draw(twin)(RNG(1), 1, 600)


def test_what_fits_a_vocabulary(twin: Any, tiny_model: Any) -> None:
    assert texts_for(twin) == EchoTexts()
    with pytest.raises(GateError, match="has no tokenizer"):
        texts_for(tiny_model("LLaDA"))

    class Other:
        name = "other"

        def __init__(self, *tokens: str) -> None:
            self.tokenizer = self
            self.tokens = tokens

        def get_vocab(self) -> dict[str, int]:
            return {token: index for index, token in enumerate(self.tokens)}

    assert texts_for(Other("[MASK]", *"ACDEFGHIKLMNPQRSTVWY")) == Chains()
    prose = texts_for(Other("the", "a", *"ACDE"))
    assert isinstance(prose, Prose)
    assert prose.text == python_reference("train") + python_reference("test")
    assert len(prose.about()["sha256"]) == 64


def test_files(twin: Any, tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("mora kelta\n" * 30)
    assert texts_for(twin, plain) == Prose("mora kelta\n" * 30, "a.txt")
    rows = ["a b", {"text": "c"}, {"prompt": "d", "answer": "e"}, {"prompt": "f"}, "g"]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts_for(twin, lines) == Rows(["a b", "c", "d e", "f", "g"], "b.jsonl")
    for content, said in (
        ("{", r"b\.jsonl', line 1: no JSON"),
        ('{"question": 3}\n', r"b\.jsonl', line 1: neither a text nor an object"),
        ("\n", "is empty"),
    ):
        lines.write_text(content)
        with pytest.raises(GateError, match=said):
            texts_for(twin, lines)
    with pytest.raises(GateError, match="cannot be read"):
        texts_for(twin, tmp_path / "nowhere.txt")


def test_every_fifth_row_is_held_out(twin: Any) -> None:
    words = sl.tasks.EchoGrammar.words[:10]
    drawn = {part: Rows(list(words), part=part).draw(twin)(RNG(0), 200, 9) for part in ("train", "test")}  # pyright: ignore[reportArgumentType]
    found = {part: {twin.decode(row) for row in rows} for part, rows in drawn.items()}
    assert found["test"] == {words[4], words[9]}
    assert found["train"] == set(words) - found["test"]
