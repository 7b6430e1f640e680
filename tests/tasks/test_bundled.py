"""The tasks that come with sinklens: what they ask, and how they are scored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import sinklens as sl
from sinklens.errors import PlanError, TaskError
from sinklens.experiments.config import Experiment
from sinklens.tasks.bundled import HERE


def test_facts_are_two_hundred_of_several_kinds_and_none_gives_itself_away():
    task = sl.tasks.facts()
    kinds = [json.loads(line)["relation"] for line in (HERE / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(task) == 200
    assert len(set(kinds)) == 8
    assert set(kinds[:40]) == set(kinds)  # any beginning of the file has some of each kind
    assert len({example.prompt for example in task}) == 200
    for example in task:
        *shots, asked = example.prompt.split("\n\n")
        subject = asked.split("\n")[0]
        assert len(shots) == 4
        assert subject not in [shot.split("\n")[0] for shot in shots]
        assert not example.answer.startswith((" ", "\n"))


@pytest.mark.parametrize(
    ("said", "right"),
    [(" Paris", 1), ("Paris\n\nCountry: Italy", 1), (" Paris.", 1), (" Parisian", 0), ("", 0), ("London\nParis", 0)],
)
def test_the_first_line_of_a_completion_is_the_fact(said, right):
    task = sl.tasks.facts()
    france = next(example for example in task if example.answer == "Paris")
    assert task.score(france, said) == sl.tasks.Score(right, 1)


def test_antibodies_are_thirty_sequences_masked_twice():
    task = sl.tasks.antibodies()
    assert len(task) == 60
    whole = []
    for example in task:
        parts = example.prompt.split("[MASK]")
        assert len(parts) - 1 == len(example.answer)
        whole.append("".join(a + b for a, b in zip(parts, [*example.answer, ""], strict=True)))
        assert len(example.answer) == len(whole[-1]) // 2
        assert set(whole[-1]) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert set(Counter(whole).values()) == {2}
    assert len(set(whole[:30])) == 30  # so that intervals over the first thirty are over sequences
    assert all(any(conserved in text for text in whole) for conserved in ("WGQGT", "FGQGTK"))


def test_every_residue_is_a_place():
    task = sl.tasks.antibodies()
    truth = task[0].answer
    assert task.score(task[0], truth) == sl.tasks.Score(len(truth), len(truth))
    wrong = "".join("A" if letter != "A" else "C" for letter in truth[:3]) + truth[3:]
    assert task.score(task[0], " ".join(wrong)) == sl.tasks.Score(len(truth) - 3, len(truth))
    for shorter in (truth[1:], ""):  # a special token is decoded as nothing: no residue behind it has its own place
        with pytest.raises(TaskError, match="not known which stand at one place"):
            task.score(task[0], shorter)


def test_by_characters_goes_without_an_expression(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(TaskError, match="extract='b' and by='character'"):
        sl.tasks.Jsonl(path, by="character", extract="b")
    whole, each = sl.tasks.Jsonl(path), sl.tasks.Jsonl(path, by="character")
    assert whole.checker() != each.checker()  # scores of one are not found again for the other


def test_an_experiment_names_them():
    assert Experiment(task="facts", prompts=7).make_task().digest == sl.tasks.facts(7).digest
    with pytest.raises(PlanError, match="'antibodies' is checked in its own way"):
        Experiment(task="antibodies", extract="(.)")
    with pytest.raises(PlanError, match="'echo', 'facts', 'antibodies'"):
        Experiment(task="fact").make_task()
