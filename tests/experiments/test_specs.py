"""Experiment files: what is in them is what it looks like, or they are refused at once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sinklens.errors import ContentError, PlanError, SinklensError
from sinklens.experiments.config import Experiment, read

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


def written(folder: Path, text: str | bytes, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("temperature: 1e-3", {"temperature": 0.001}),
        ("temperature: 2.5E+1", {"temperature": 25.0}),
        ("temperature: .5", {"temperature": 0.5}),
        ("new_tokens: +8\n  steps: null", {"new_tokens": 8, "steps": None}),
        ("allow_mask: true\n  chat: False", {"allow_mask": True, "chat": False}),
        ("steps: ~", {"steps": None}),
    ],
)
def test_what_looks_like_a_number_or_a_truth_value_is_one(text: str, plan: dict[str, Any], tmp_path: Path) -> None:
    assert read(written(tmp_path, f"plan:\n  {text}\n")).plan == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('plan: {allow_mask: "no"}', "Plan.allow_mask='no' must be true or false"),
        ("plan: {allow_mask: no}", "Plan.allow_mask='no' must be true or false"),
        ("plan: {allow_mask: on}", "Plan.allow_mask='on' must be true or false"),
        ('plan: {allow_mask: "true"}', "Plan.allow_mask='true' must be true or false, without quotes"),
        ("plan: {allow_mask: 0}", "Plan.allow_mask=0 must be true or false"),
        ("prompts: 010", "prompts='010' must be a whole number of at least 1"),
        ("prompts: 0x10", "prompts='0x10' must be a whole number"),
        ("prompts: 1_000", "prompts='1_000' must be a whole number"),
        ("prompts: 12:30", "prompts='12:30' must be a whole number"),
        ("prompts: 3.0", r"prompts=3\.0 must be a whole number"),
        ("prompts: 0", "prompts=0 must be a whole number of at least 1"),
        ("task: 2024-01-01", "'2024-01-01' is none of 'echo'"),
        ("seeds: [-1]", r"seeds=\(-1,\) must be a list of whole numbers from 0 to"),
        ("gaps: .nan", r"gaps='\.nan' must be a number from 0 to 1"),
        ("gaps: 1.5", r"gaps=1\.5 must be a number from 0 to 1"),
        ("edits: mask:top1", "edits='mask:top1' must be a mapping from names"),
        ("edits: [mask:top1, mask:top1]", "edits=.* names an edit twice"),
        ("edits: {1: mask:top1}", "edits={1: 'mask:top1'} must be a mapping from names"),
        ("edits: {a: {type: [x]}}", r"type=.*'x'.* must be a text"),
        ("edits: {a: {type: float}}", "describes no float"),
        ("edits: {a: {type: slice, parts: 3}}", "describes no slice"),
        ("edits: {a: {type: Named}}", "the function named None cannot be made"),
        ("edits: {a: {type: Edit}}", "Edit cannot be made from a description"),
        ("edits: {a: {type: Plan}}", "edits=.* must be a mapping from names"),
        ("controls: random", "controls='random' must be a list of texts"),
        ("metrics: accuracy", "metrics='accuracy' must be a list of texts"),
        ("plan: {1: 2}", "plan={1: 2} must be a mapping from names"),
        ("plan: {stepps: 4}", "Plan has no field 'stepps'; its fields are .*; do you mean 'steps'?"),
        ("promts: 4", "Experiment has no field 'promts'; its fields are .*; do you mean 'prompts'?"),
        ("1: 4", "Experiment has no field 1"),
    ],
)
def test_values_that_are_something_else_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SinklensError, match=message):
        read(written(tmp_path, text)).make_task()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 1: anchors and aliases are not read here"),
        ("plan: &p {steps: 4}\n", "line 1: anchors and aliases are not read here .'p'"),
        ("model: a\nplan: *p\n", "line 2: anchors and aliases"),
        ("model: a\nmodel: b\n", "line 2: the key 'model' comes twice"),
        ("plan: {steps: 4, steps: 8}", "the key 'steps' comes twice"),
        ("? [a]\n: 3\n", "the key .*'a'.* is no name"),
        ("model: !!python/object/apply:os.system [ls]", "tags are not read here"),
        ("model: !x y", "tags are not read here"),
        ("model:\ttiny-dlm\n", "line 1: found character .* cannot start any token"),
        ("model: 'a", "cannot be read as YAML"),
        ("model: a\n---\nmodel: b\n", "found another document"),
        (b"\x00\x01\x02\x03", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        ("[" * 5000, "nested too deep|cannot be read"),
        ("plan: " + "{a: " * 40 + "1" + "}" * 40, "nested too deep, in more than 32"),
        ("a: 1\n" * 60_000, "it has 300000 bytes, and an experiment has at most 262144"),
        ("just a text", "holds a str instead of fields"),
        ("- a\n", "holds a list instead of fields"),
        ("", "holds nothing instead of fields"),
        ("prompts: " + "9" * 5000, "cannot be read as YAML"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_a_file_that_cannot_be_read_is_refused_at_once(text: str | bytes, message: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(PlanError, match=message) as raised:
        read(written(tmp_path, text))
    assert "a.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "a", "model": "b"}', "the key 'model' comes twice"),
        ('{"plan": {"steps": 4, "steps": 8}}', "the key 'steps' comes twice"),
        ('{"gaps": NaN}', "NaN is no number"),
        ('{"gaps": -Infinity}', "-Infinity is no number"),
        ('{"plan": ' * 30_000, "cannot be read as YAML or JSON"),
        (r'{"model": "\ud800"}', "surrogates not allowed"),
        ("[1]", "holds a list instead of fields"),
    ],
)
def test_json_is_as_strict(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        read(written(tmp_path, text, "a.json"))


def test_a_pipe_is_no_file_and_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, message in ((tmp_path / "pipe.yaml", "no regular file"), (tmp_path, "no regular file")):
        with pytest.raises(PlanError, match=message):
            read(path)


def test_a_mark_of_bytes_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\xef\xbb\xbfprompts: 3\r\ngaps: 0.5\r\n")) == Experiment(prompts=3, gaps=0.5)


def test_the_command_line_does_not_hide_a_plan_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match=r"plan=\[4\] must be a mapping"):
        read(written(tmp_path, "plan: [4]"), {"plan": {"steps": 4}})
