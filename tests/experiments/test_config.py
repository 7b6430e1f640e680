"""Experiments as files: YAML and JSON, what they may hold, and what becomes of it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sinklens.cli import app as cli
from sinklens.decoding.plan import Plan
from sinklens.errors import PlanError, ScopeError
from sinklens.experiments import config as specs
from sinklens.experiments.config import Spec
from sinklens.experiments.results import AblationResult
from sinklens.interventions import parse
from sinklens.tasks import Echo, Jsonl

FIELDS = {
    "model": "tiny-arm",
    "edits": {"one": "mask:top1", "five": "zero:top5@layers=0"},
    "task": "echo",
    "prompts": 3,
    "gaps": 0.5,
    "extract": None,
    "plan": {"new_tokens": 0},
    "seeds": [2, 3],
    "controls": ["random", "noop"],
    "metrics": ["forced_accuracy"],
    "batch_size": 64,
}
YAML = """
model: tiny-arm
edits:
  one: mask:top1
  five: zero:top5@layers=0
task: echo
prompts: 3
gaps: 0.5
extract: null
plan: {new_tokens: 0}
seeds: [2, 3]
controls: [random, noop]
metrics: [forced_accuracy]
batch_size: 64
"""


def expected() -> Spec:
    values = {**FIELDS, "seeds": (2, 3), "controls": ("random", "noop"), "metrics": ("forced_accuracy",)}
    return Spec(**values)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    assert set(FIELDS) == {each.name for each in fields(Spec)}  # nothing is left untested
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.json").write_text(json.dumps(FIELDS))
    assert specs.read(tmp_path / "a.yaml") == specs.read(tmp_path / "a.json") == expected()


def test_what_is_not_said_is_the_default() -> None:
    assert specs.spec({"edits": {"a": "mask:top1"}}) == Spec(edits={"a": "mask:top1"})


def test_edits_as_a_list_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("edits:\n  - mask:top1\n  - scale=0.1:same/eps3\n")
    edits = specs.read(tmp_path / "a.yaml").edits
    assert edits == {"mask:top1": "mask:top1", "scale=0.1:same/eps3": "scale=0.1:same/eps3"}


@pytest.mark.parametrize(("given", "tupled"), [(7, (7,)), ([7], (7,)), ([7, 8], (7, 8))])
def test_one_seed_needs_no_list(given, tupled) -> None:
    assert specs.spec({"seeds": given}).seeds == tupled


@pytest.mark.parametrize("given", [None, []])
def test_no_controls_must_be_said(given) -> None:
    assert specs.spec({"controls": given}).controls == ()
    assert specs.spec({"prompts": 1}).controls == ("random",)


def test_an_unknown_field_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(PlanError, match=r"unknown field 'promts'; the fields are batch_size, controls, .*prompts"):
        specs.spec({"promts": 3})


@pytest.mark.parametrize("text", ["", "- mask:top1\n", "just a text"])
def test_a_file_without_fields_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(PlanError, match="instead of fields such as model: and edits:"):
        specs.read(tmp_path / "a.yaml")


@pytest.mark.parametrize(("name", "text"), [("a.json", "{model: x}"), ("a.yaml", "a: [1, 2"), ("none.yaml", None)])
def test_a_file_that_cannot_be_read_is_named(name: str, text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PlanError, match=re.escape(name) + "' cannot be read as YAML or JSON"):
        specs.read(tmp_path / name)


def test_an_unknown_field_of_the_plan_is_named() -> None:
    with pytest.raises(PlanError, match=r"plan has no field 'stepps'; its fields are .*steps"):
        Spec(plan={"stepps": 4}).make_plan()


def test_the_plan_of_echo_samples_when_continuing_and_fills_in_what_is_there() -> None:
    assert Spec().make_plan() == Plan(new_tokens=32, temperature=1.0)
    assert Spec(gaps=0.5).make_plan() == Plan(new_tokens=0)
    assert Spec(plan={"temperature": 0.0, "new_tokens": 8}).make_plan() == Plan(new_tokens=8)
    assert Spec(task="a.jsonl").make_plan() == Plan()


def test_the_task_of_echo_has_the_first_seed() -> None:
    task = Spec(prompts=3, gaps=0.5, seeds=(4, 5)).make_task()
    assert isinstance(task, Echo)
    assert task.name == Echo(3, seed=4, gaps=0.5).name
    assert [task[i] for i in range(3)] == [Echo(3, seed=4, gaps=0.5)[i] for i in range(3)]


def test_a_jsonl_task_with_what_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": f"so #### {i}"}) + "\n" for i in range(3)))
    task = Spec(task=str(path), extract=r"(\d+)", prompts=2).make_task()
    assert isinstance(task, Jsonl)
    assert len(task) == 2
    assert task.score(task[1], "it is 5, no, 1.").correct == 1
    assert task.score(task[1], "it is 1, no, 5.").correct == 0
    assert Spec(task=str(path)).make_task().score(task[1], "it is 5, no, 1.").correct == 0


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(PlanError, match=r"'gsm8k\.jsonl' is neither 'echo' nor a JSONL file that exists"):
        Spec(task="gsm8k.jsonl").make_task()


@pytest.mark.usefixtures("no_forward")
def test_mistakes_are_found_before_the_first_forward() -> None:
    with pytest.raises(PlanError, match="there are no edits; name at least one, for example mask:top1"):
        Spec().run()
    with pytest.raises(ScopeError, match="the edit 'maks:top1' cannot be read"):
        Spec(edits={"a": "maks:top1"}).run()


def test_a_run_does_what_the_spec_says_and_keeps_it(tmp_path: Path) -> None:
    asked = expected()
    result = asked.run(progress=False)
    assert result.provenance["spec"] == asdict(asked)
    assert {row["model"] for row in result.rows} == {"tiny-arm"}
    assert {row["metric"] for row in result.rows} == {"forced_accuracy"}
    assert {row["seed"] for row in result.rows} == {2, 3}
    assert {row["prompt"] for row in result.rows} == {0, 1, 2}
    kinds = {(name, kind) for name in ("one", "five") for kind in ("sinks", "random", "noop")}
    assert {(row["condition"], row["kind"]) for row in result.rows} == kinds | {("unmasked", "unmasked")}
    for name, text in asked.edits.items():
        assert result.provenance["conditions"][f"{name} (sinks)"] == repr(parse(text))
    made = result.save(tmp_path / "result.json")
    again = specs.spec(AblationResult.open(made).provenance["spec"])  # the file can be run again from its provenance
    assert again == asked
    assert again.run(progress=False).rows == result.rows


def test_options_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    spec, out = tmp_path / "a.yaml", tmp_path / "out"
    spec.write_text("model: tiny-arm\nprompts: 3\ngaps: 0.5\nseeds: 9\nedits: [mask:top1]\nplan: {temperature: 0.5}\n")
    given = ["--spec", str(spec), "--prompts", "2", "--seed", "1", "--edit", "zero:top2", "--control", "none"]
    done = CliRunner().invoke(cli.app, ["ablate", "tiny-dlm", *given, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    kept = AblationResult.open(out / "result.json").provenance["spec"]
    wanted = {"model": "tiny-dlm", "prompts": 2, "seeds": [1], "edits": {"zero:top2": "zero:top2"}, "controls": []}
    wanted |= {"gaps": 0.5, "plan": {"temperature": 0.5}, "task": "echo"}  # these only the file says
    assert {name: kept[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": "3"}, "prompts='3'"),
        ({"edits": {"a": 3}}, "the edit 3 is no text"),
        ({"plan": {"new_tokens": "8"}}, "plan.new_tokens is the text '8'"),
        ({}, "the experiment is empty; the fields are batch_size"),
    ],
)
def test_values_of_the_wrong_type_are_named(given: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        specs.spec(given)


def test_one_edit_may_be_a_text() -> None:
    assert specs.spec({"edits": "mask:top1", "plan": None}).edits == {"mask:top1": "mask:top1"}
