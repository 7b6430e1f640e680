"""Experiments in Python, YAML, JSON and on the command line: what they may hold, and what becomes of it."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sinklens.cli import app as cli
from sinklens.cli.ablate import ablate
from sinklens.cli.options import PLAN, fields_of
from sinklens.decoding.plan import Plan
from sinklens.errors import ContentError, PlanError, ScopeError
from sinklens.experiments.config import Experiment, read
from sinklens.experiments.results import AblationResult
from sinklens.hooks import Scope
from sinklens.interventions import SameStep, ScaleSinks, parse
from sinklens.models.devices import best_device
from sinklens.tasks import Echo, Jsonl

FIELDS = {
    "model": "tiny-arm",
    "edits": {"one": "mask:top1", "five": "zero:top5@layers=0"},
    "task": "echo",
    "prompts": 3,
    "gaps": 0.5,
    "extract": None,
    "match": "last",
    "separator": " ",
    "plan": {"new_tokens": 0},
    "seeds": [2, 3],
    "controls": ["random", "noop"],
    "metrics": ["forced_accuracy"],
    "batch_size": 64,
    "device": "cpu",
    "dtype": "float32",
    "device_map": None,
    "revision": "step-0",
    "attention": "blocks",
    "family": "Llama",
    "mask_token_id": 2,
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
device: cpu
dtype: float32
device_map: null
revision: step-0
attention: blocks
family: Llama
mask_token_id: 2
"""


def expected() -> Experiment:
    return Experiment(**FIELDS)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    assert set(FIELDS) == {each.name for each in fields(Experiment)}  # nothing is left untested
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.json").write_text(json.dumps(FIELDS))
    assert read(tmp_path / "a.yaml") == read(tmp_path / "a.json") == expected()


def test_what_is_not_said_is_the_default() -> None:
    assert Experiment.from_dict({"edits": {"a": "mask:top1"}}) == Experiment(edits={"a": "mask:top1"})


def test_edits_as_a_list_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("edits:\n  - mask:top1\n  - scale=0.1:same/eps3\n")
    edits = read(tmp_path / "a.yaml").edits
    assert edits == {"mask:top1": "mask:top1", "scale=0.1:same/eps3": "scale=0.1:same/eps3"}


def test_an_edit_may_be_what_it_says_of_itself(tmp_path: Path) -> None:
    """In a file, in Python, and as an object: one schema."""
    edit = ScaleSinks(0.1, SameStep(top_k=2), where=Scope(layers=[0]))
    expected = Experiment(edits={"a": edit, "b": "mask:top1"})
    (tmp_path / "a.json").write_text(json.dumps({"edits": {"a": edit.to_dict(), "b": "mask:top1"}}))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"edits": {"a": edit.to_dict(), "b": "mask:top1"}}))
    for found in (
        read(tmp_path / "a.json"),
        read(tmp_path / "a.yaml"),
        Experiment(edits={"a": edit.to_dict(), "b": "mask:top1"}),
        Experiment.from_dict(json.loads(json.dumps(expected.to_dict()))),
    ):
        assert found == expected
        assert found.digest == expected.digest
        assert found.make_edits() == {"a": edit, "b": parse("mask:top1")}


def test_a_plan_may_be_a_plan() -> None:
    plan = Plan(new_tokens=4, steps=2)
    for found in (Experiment(plan=plan), Experiment.from_dict({"plan": plan.to_dict()})):
        assert found.make_plan() == plan
        assert Experiment.from_dict(found.to_dict()) == found


def test_an_experiment_is_a_value() -> None:
    one = expected()
    assert Experiment.from_dict(one.to_dict()) == one
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()
    assert replace(one, prompts=4).digest != one.digest
    with pytest.raises(FrozenInstanceError):
        one.prompts = 4


@pytest.mark.parametrize("given", [None, []])
def test_no_controls_must_be_said(given) -> None:
    assert Experiment.from_dict({"controls": given}).controls == ()
    assert Experiment.from_dict({"prompts": 1}).controls == ("random",)


def test_an_unknown_field_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(ContentError, match=r"Experiment has no field 'promts'; its fields are model, edits, .*prompts"):
        Experiment.from_dict({"promts": 3})


@pytest.mark.parametrize("text", ["", "{}", "[]", "- mask:top1\n", "just a text"])
def test_a_file_without_fields_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(PlanError, match="instead of fields such as model: and edits:; the fields are model, edits, "):
        read(tmp_path / "a.yaml")


@pytest.mark.parametrize(("name", "text"), [("a.json", "{model: x}"), ("a.yaml", "a: [1, 2"), ("none.yaml", None)])
def test_a_file_that_cannot_be_read_is_named(name: str, text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PlanError, match=re.escape(name) + "' cannot be read as YAML or JSON"):
        read(tmp_path / name)


def test_an_unknown_field_of_the_plan_is_named() -> None:
    with pytest.raises(ContentError, match=r"Plan has no field 'stepps'; its fields are .*steps"):
        Experiment(plan={"stepps": 4})


def test_a_plan_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(PlanError, match="steps=0 must be at least 1"):
        Experiment(plan={"steps": 0})


def test_the_plan_of_echo_samples_when_continuing_and_fills_in_what_is_there() -> None:
    assert Experiment().make_plan() == Plan(new_tokens=32, temperature=1.0)
    assert Experiment(gaps=0.5).make_plan() == Plan(new_tokens=0)
    assert Experiment(plan={"temperature": 0.0, "new_tokens": 8}).make_plan() == Plan(new_tokens=8)
    assert Experiment(task="a.jsonl").make_plan() == Plan()


def test_the_task_of_echo_has_the_first_seed() -> None:
    task = Experiment(prompts=3, gaps=0.5, seeds=(4, 5)).make_task()
    assert isinstance(task, Echo)
    assert task.name == Echo(3, seed=4, gaps=0.5).name
    assert [task[i] for i in range(3)] == [Echo(3, seed=4, gaps=0.5)[i] for i in range(3)]


def test_a_jsonl_task_with_what_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": f"so #### {i}"}) + "\n" for i in range(3)))
    task = Experiment(task=str(path), extract=r"(\d+)", prompts=2).make_task()
    assert isinstance(task, Jsonl)
    assert len(task) == 2
    assert task.score(task[1], "it is 5, no, 1.").correct == 1
    assert task.score(task[1], "it is 1, no, 5.").correct == 0
    assert Experiment(task=str(path)).make_task().score(task[1], "it is 5, no, 1.").correct == 0


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(PlanError, match=r"'gsm8k\.jsonl' is none of 'echo'"):
        Experiment(task="gsm8k.jsonl").make_task()


@pytest.mark.usefixtures("no_forward")
def test_mistakes_are_found_before_the_first_forward() -> None:
    with pytest.raises(PlanError, match="there are no edits; name at least one, for example mask:top1"):
        Experiment().run()
    with pytest.raises(ScopeError, match="the edit 'maks:top1' cannot be read"):
        Experiment(edits={"a": "maks:top1"})
    with pytest.raises(PlanError, match="seeds is empty"):
        Experiment(edits={"a": "mask:top1"}, seeds=()).run()


def test_a_run_does_what_the_spec_says_and_keeps_it(tmp_path: Path) -> None:
    asked = expected()
    result = asked.run(progress=False)
    assert result.provenance["experiment"] == asked.to_dict()
    assert {score["model"] for score in result.scores} == {"tiny-arm"}
    assert {score["metric"] for score in result.scores} == {"forced_accuracy"}
    assert {score["seed"] for score in result.scores} == {2, 3}
    assert {score["prompt"] for score in result.scores} == {0, 1, 2}
    kinds = {(name, kind) for name in ("one", "five") for kind in ("sinks", "random", "noop")}
    assert {(score["condition"], score["kind"]) for score in result.scores} == kinds | {("unmasked", "unmasked")}
    for name, text in asked.edits.items():
        assert result.provenance["conditions"][f"{name} (sinks)"] == parse(text).to_dict()
    path = result.save(tmp_path / "result.json")
    again = Experiment.from_dict(AblationResult.open(path).provenance["experiment"])  # a result can be run again
    assert again == asked
    assert again.run(progress=False).scores == result.scores


def test_options_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    spec, out = tmp_path / "a.yaml", tmp_path / "out"
    spec.write_text(
        "model: tiny-arm\nprompts: 3\ngaps: 0.5\nseeds: [9]\nedits: [mask:top1]\nplan: {temperature: 0.5}\n"
    )
    given = ["--spec", str(spec), "--prompts", "2", "--seed", "1", "--edit", "zero:top2", "--control", "none"]
    done = CliRunner().invoke(cli.app, ["ablate", "tiny-dlm", *given, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    kept = Experiment.from_dict(AblationResult.open(out / "result.json").provenance["experiment"])
    asked = {"model": "tiny-dlm", "prompts": 2, "seeds": (1,), "edits": ["zero:top2"], "controls": ()}
    # The last two only the file says; the device is the best there is.
    assert kept == Experiment(**asked, gaps=0.5, plan={"temperature": 0.5}, device=best_device())


def test_what_the_command_line_says_is_zero_is_said(tmp_path: Path) -> None:
    """And fields of the plan win one by one."""
    said = {"gaps": 0.5, "plan": {"temperature": 0.5, "steps": 4}, "controls": ["noop"]}
    (tmp_path / "a.json").write_text(json.dumps(said))
    given = {"gaps": 0.0, "plan": {"temperature": 0.0, "new_tokens": 8}, "edits": ("mask:top1",)}
    found = read(tmp_path / "a.json", given)
    assert found == Experiment(
        edits=["mask:top1"], plan={"temperature": 0.0, "steps": 4, "new_tokens": 8}, controls=["noop"]
    )
    params = {"gaps": 0.0, "temperature": 0.0, "steps": None, "new_tokens": 0, "chat": False, "edits": ["mask:top1"]}
    assert fields_of(params | {"out": tmp_path}, "out") == {
        "gaps": 0.0,
        "edits": ("mask:top1",),
        "plan": {"temperature": 0.0, "new_tokens": 0},
    }


def test_every_field_has_an_option() -> None:
    """Of the experiment all; what the command line calls otherwise is one of several (--seed, --edit, ...)."""
    import inspect

    params = inspect.signature(ablate).parameters
    assert {each.name for each in fields(Experiment)} - {"plan"} <= set(params)
    assert set(PLAN) <= set(params) & {each.name for each in fields(Plan)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": "3"}, "prompts='3' must be a whole number of at least 1, without quotes"),
        ({"prompts": 3.5}, r"prompts=3\.5 must be a whole number"),
        ({"prompts": True}, "prompts=True must be a whole number"),
        ({"gaps": "0.5"}, r"gaps='0\.5' must be a number from 0 to 1, without quotes"),
        ({"model": 3}, "model=3 must be a text"),
        ({"task": ["echo"]}, r"task=.*'echo'.* must be a text"),
        ({"extract": 3}, "extract=3 must be a text or null"),
        ({"seeds": 9}, "seeds=9 must be a list of whole numbers"),
        ({"seeds": "9"}, "seeds='9' must be a list of whole numbers"),
        ({"seeds": ["9"]}, r"seeds=\('9',\) must be a list of whole numbers"),
        ({"seeds": [True]}, r"seeds=\(True,\) must be a list of whole numbers"),
        ({"controls": "random"}, "controls='random' must be a list of texts"),
        ({"metrics": "kl"}, "metrics='kl' must be a list of texts"),
        ({"metrics": [3]}, r"metrics=\(3,\) must be a list of texts"),
        ({"batch_size": "128"}, "batch_size='128' must be a whole number"),
        ({"edits": "mask:top1"}, "edits='mask:top1' must be a mapping from names"),
        ({"edits": 3}, "edits=3 must be a mapping from names or a list of texts"),
        ({"edits": {"a": 3}}, "edits={'a': 3} must be a mapping from names"),
        ({"edits": {3: "mask:top1"}}, "edits={3: 'mask:top1'} must be a mapping from names"),
        ({"edits": ["mask:top1", "mask:top1"]}, "edits=.* names an edit twice"),
        ({"edits": {"a": {"type": "MaskSinks", "selektor": 1}}}, "MaskSinks has no field 'selektor'"),
        ({"edits": {"a": {"type": "MaskSinx"}}}, "type 'MaskSinx' is unknown"),
        (
            {"edits": {"a": {"type": "ScaleSinks", "factor": "0.1"}}},
            r"ScaleSinks.factor='0\.1' must be a finite number of at least 0, without quotes",
        ),
        ({"edits": {"a": {"type": "ScaleSinks"}}}, "ScaleSinks needs the field 'factor'"),
        ({"plan": {"new_tokens": "8"}}, "Plan.new_tokens='8' must be a whole number, without quotes"),
        ({"plan": {"chat": "yes"}}, "Plan.chat='yes' must be true or false"),
        ({"plan": {"chat": 1}}, "Plan.chat=1 must be true or false"),
        ({"plan": {"remasking": "guess"}}, "Plan.remasking='guess' is unknown; choose from 'low_confidence', "),
        ({"plan": "steps: 4"}, "plan='steps: 4' must be a mapping from names"),
        ({"plan": [4]}, r"plan=[(\[]4,?[)\]] must be a mapping from names"),
        ({"type": "Plan", "steps": 4}, "'Plan' is no Experiment"),
    ],
)
def test_values_of_the_wrong_kind_are_quoted(given: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ContentError, match=message):
        Experiment.from_dict(given)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ContentError, match=message):
        read(tmp_path / "a.yaml")
    if "type" not in given:
        with pytest.raises(ContentError, match=message.replace(r"\(", r"[\[(]").replace(r",\)", r",?[\])]")):
            Experiment(**given)
