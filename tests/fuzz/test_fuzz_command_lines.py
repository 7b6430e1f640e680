"""Command lines: exit 0 for what was done, else one line that says what was wrong; never a traceback."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing import command, fuzz
from hypothesis import strategies as st

from sinklens import AblationResult
from sinklens.models import loading

FOLDER = Path(tempfile.mkdtemp())
TASK = FOLDER / "task.jsonl"
TASK.write_text(json.dumps({"prompt": "dolko gake", "answer": "dolko"}))
SPEC = FOLDER / "spec.yaml"
SPEC.write_text("edits: [mask:same/top1]\nprompts: 2\n")
OUT = FOLDER / "out"

NUMBERS = st.sampled_from(
    ["0", "1", "2", "3", "-1", "1e9", "1000000000", "nan", "x", "", "1.5", "99999999999999999999"]
)
WORDS = st.text("abc:=/@-,.0 \u2028\u4f60'\"", max_size=8).filter(lambda text: not text.startswith("-"))
OPTIONS: dict[str, st.SearchStrategy[str]] = {
    "--task": st.sampled_from(["echo", str(TASK), str(FOLDER), "none.jsonl", "/dev/null"]) | WORDS,
    "--edit": st.sampled_from(["mask:top1", "mask:same/top1", "null_key=0", "mask:same/top1@layers=9", "pin"]) | WORDS,
    "--prompts": NUMBERS,
    "--gaps": NUMBERS,
    "--extract": st.sampled_from([r"\w+", "(", "(y)?x", ""]) | WORDS,
    "--match": st.sampled_from(["first", "last", "full", "second"]) | WORDS,
    "--new-tokens": NUMBERS,
    "--steps": NUMBERS,
    "--block-length": NUMBERS,
    "--temperature": NUMBERS,
    "--control": st.sampled_from(["random", "noop", "none", "same_mass", "luck"]) | WORDS,
    "--metric": st.sampled_from(["accuracy", "kl", "agreement", "log_likelihood", "luck"]) | WORDS,
    "--seed": NUMBERS,
    "--batch-size": NUMBERS,
    "--device": st.sampled_from(["cpu", "cuda", "quantum", "meta", "cpu:3"]) | WORDS,
    "--dtype": st.sampled_from(["float32", "bfloat16", "int8", "float"]) | WORDS,
    "--device-map": st.sampled_from(["auto", "x"]) | WORDS,
    "--revision": st.sampled_from(["step-0", "main"]) | WORDS,
    "--attention": st.sampled_from(["auto", "blocks", "flash"]) | WORDS,
    "--spec": st.sampled_from([str(SPEC), str(TASK), "none.yaml"]),
    "--out": st.sampled_from([str(OUT), str(TASK), str(TASK / "below"), "/dev/null"]),
}
PAIRS = st.one_of([st.tuples(st.just(name), value) for name, value in OPTIONS.items()])
LINES = st.lists(PAIRS, max_size=4).map(lambda pairs: [word for pair in pairs for word in pair])
MODELS = st.sampled_from(["tiny-dlm", "tiny-arm", "none", str(FOLDER), "a/b/c", ""])


class Read(Exception):
    """A line that got as far as the weights."""


def fate(*line: str) -> int | None:
    """Exit code of a command line; None if it went on to read weights."""

    def weights(*args: Any, **kwargs: Any) -> Any:
        raise Read

    with mock.patch.object(loading, "_weights", weights), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        try:
            return command(*line)[0]
        except Read:
            return None


@fuzz(few=150, line=LINES, model=MODELS)
def test_a_line_of_ablate_reads_weights_or_says_what_is_wrong(line: list[str], model: str) -> None:
    """With no model that could be read there is nothing that could be done, so nothing ends well."""
    assert fate("ablate", model, *line) in (None, 2)
    assert not OUT.exists()
    assert json.loads(TASK.read_text())["answer"] == "dolko"


@fuzz(few=60, line=LINES, name=st.sampled_from(["reproduce", "trace", "hooks", "demo", "train", ""]), model=MODELS)
def test_a_line_of_any_command_reads_weights_or_says_what_is_wrong(line: list[str], name: str, model: str) -> None:
    first = {"reproduce": ["table1", "--model", model], "trace": [model, "dolko"], "hooks": [model]}.get(name, [])
    assert fate(name, *first, *line) in (None, 2)
    assert not OUT.exists()


SMALL = {"--prompts": "2", "--new-tokens": "4", "--batch-size": "8", "--edit": "mask:same/top1"}


@fuzz(
    few=6,
    many=100,
    metrics=st.lists(st.sampled_from(["accuracy", "kl", "agreement"]), max_size=2),
    controls=st.lists(st.sampled_from(["random", "noop", "none"]), max_size=2),
    seeds=st.lists(st.sampled_from(["0", "1"]), max_size=2),
    model=st.sampled_from(["tiny-dlm", "tiny-arm"]),
)
def test_what_ends_well_was_done(metrics: list[str], controls: list[str], seeds: list[str], model: str) -> None:
    """Exit 0 has its files, with a row for each prompt, seed, arm and metric, and no more; anything else has none."""
    shutil.rmtree(OUT, ignore_errors=True)
    line = [word for pair in SMALL.items() for word in pair]
    for name, several in (("--metric", metrics), ("--control", controls), ("--seed", seeds)):
        line += [word for each in several for word in (name, each)]
    code = command("ablate", model, *line, "--out", str(OUT))[0]
    twice = any(len(set(several)) < len(several) for several in (metrics, controls, seeds))
    wrong = twice or ("none" in controls and controls != ["none"])
    assert code == (2 if wrong else 0)
    if wrong:
        assert not OUT.exists()
        return
    arms = 2 + (1 if not controls else len([each for each in controls if each != "none"]))
    rows = AblationResult.open(OUT / "result.json").scores
    assert len(rows) == 2 * max(len(seeds), 1) * arms * max(len(metrics), 1)
    shutil.rmtree(OUT)
