"""Any experiment file is the experiment that it looks like, or an error that says what is wrong with it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fuzzing import command, fuzz, refused
from hypothesis import strategies as st

from sinklens.decoding.plan import Plan
from sinklens.experiments.config import Experiment, read

FOLDER = Path(tempfile.mkdtemp())
WORDS = ["mask:top1", "random", "accuracy", "no", "on", "1e-3", "010", "12:30", "null", "~", "yes", "tiny-dlm", "echo"]
numbers = st.integers(-3, 99) | st.floats() | st.sampled_from([0, 1, 10**30, -0.0, 1e-3])
scalars = st.none() | st.booleans() | numbers | st.sampled_from(WORDS) | st.text(max_size=6)
keys = st.sampled_from(["a", "type", "steps", "selector", "where", "value", "parts", "name"]) | st.text(max_size=4)
types = st.sampled_from(["MaskSinks", "Scope", "Plan", "float", "slice", "Named", "record", "Edit", "KeepKeys", "Echo"])


def described(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What may or may not be the description of a value."""
    return st.builds(lambda kind, rest: {**rest, "type": kind}, types, st.dictionaries(keys, inside, max_size=2))


nested = st.recursive(
    scalars,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(keys, inside, max_size=3) | described(inside),
    max_leaves=8,
)
names = st.sampled_from([*Experiment.__dataclass_fields__, "promts", "type", "1", ""])
plans = st.dictionaries(st.sampled_from(list(Plan.__dataclass_fields__)), scalars, max_size=3)
edits = st.dictionaries(st.text(max_size=3), st.sampled_from(["mask:top1", "zero:top2"]) | nested, max_size=2)
specs = st.dictionaries(names, nested, max_size=3) | st.fixed_dictionaries({"plan": plans}, optional={"edits": edits})


def written(text: str | bytes, name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def right(path: Path, said: Any) -> None:
    """The file was refused, or each field is what was written."""
    found: list[Experiment] = []
    if refused(lambda: found.append(read(path))) is not None:
        return
    for name, value in said.items():
        if value is None or name in ("type", "edits"):
            continue
        kept = getattr(found[0], name)
        if isinstance(value, dict) and "type" in value:
            continue  # what `to_dict` says of a plan
        if isinstance(value, dict):
            assert kept.keys() == value.keys()
        else:
            assert isinstance(value, bool) == isinstance(kept, bool)
            assert kept == (tuple(value) if isinstance(value, list) else value)
    assert Experiment.from_dict(json.loads(json.dumps(found[0].to_dict()))) == found[0]


@fuzz(few=200, said=specs)
def test_any_fields_as_json(said: dict[str, Any]) -> None:
    right(written(json.dumps(said), "a.json"), said)


@fuzz(few=200, said=specs)
def test_any_fields_as_yaml(said: dict[str, Any]) -> None:
    """JSON's texts are YAML's, too; what YAML calls them without quotes, `test_specs` says."""
    right(written(json.dumps(said, indent=1), "a.yaml"), said)


LINES = ["model: tiny-dlm", "plan: {steps: 4}", "edits: [mask:top1]", "edits:", "  a: mask:top1", "- a", "&a b", "*a"]
LINES += [
    "<<: *a",
    "? [x]",
    "!!python/name:os.system",
    "!!set {a}",
    "prompts: 010",
    "\t",
    "---",
    "...",
    "%YAML 1.1",
    "{[",
    "'",
]


@fuzz(few=300, lines=st.lists(st.sampled_from(LINES) | st.text(max_size=8), max_size=6), raw=st.binary(max_size=12))
def test_any_text_at_all(lines: list[str], raw: bytes) -> None:
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    for path in (written(text, "a.yaml"), written(raw, "b.yaml"), written(text + raw, "c.json")):
        refused(lambda path=path: read(path), quotes=[path.name, "Experiment", "Plan", "edit", "Scope", "=", "type"])


@fuzz(few=25, many=300, said=st.dictionaries(names, st.just(object), max_size=1) | specs)
def test_the_command_line_refuses_what_cannot_be_with_one_line(said: dict[str, Any]) -> None:
    """Without an edit nothing is run, so here everything ends in an error."""
    said = {name: value for name, value in said.items() if name != "edits" and value is not object}
    code, out, err = command("ablate", "--spec", str(written(json.dumps(said), "d.json")))
    assert code == 2
    assert "error" in (out + err).lower()
