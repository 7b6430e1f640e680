"""Mutated checkpoints: each loads, or is one error of sinklens's own that quotes what is wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens import HookedDLM
from sinklens.models.files import TWINS

pytestmark = pytest.mark.filterwarnings("ignore")
FIDELITY = Path(__file__).parents[1] / "data" / "fidelity"
FOLDERS = [
    TWINS / "tiny-dlm",
    TWINS / "tiny-arm",
    *sorted(path.parent for path in FIDELITY.glob("*/checkpoint/config.json")),
]
JSON = ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json")
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 7, 64, 10**6, 10**12, 2**70, 0.0, 0.5, 2.0, -1.5, 1e300])
ODD = st.sampled_from([None, True, False, "", "2", "llama", [], [1], {}, {"a": 1}, float("nan"), float("inf"), [[2]]])
VALUES = NUMBERS | ODD | st.recursive(NUMBERS | ODD, lambda inner: st.lists(inner, max_size=2), max_leaves=3)
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["linear", "dynamic", "yarn", "longrope", "llama3", "default", "su", 3]),
        "rope_type": st.sampled_from(["linear", "yarn", "default"]),
        "factor": VALUES,
        "original_max_position_embeddings": VALUES,
        "short_factor": VALUES,
        "long_factor": VALUES,
        "rope_theta": VALUES,
        "odd": VALUES,
    },
)


@lru_cache
def fields_of(folder: Path, name: str) -> dict[str, Any]:
    """The fields of a JSON file."""
    path = folder / name
    return json.loads(path.read_text()) if path.is_file() else {}


def load(folder: Path, name: str, content: str) -> str | None:
    """Load a copy of a folder in which one file says something else; what the error says, or None."""
    with tempfile.TemporaryDirectory() as made:
        for path in folder.iterdir():
            if path.is_file():
                shutil.copy(path, made)
        Path(made, name).write_text(content)

        def call() -> None:
            dlm = HookedDLM.from_pretrained(made, check=False)
            dlm.encode([2, 3])

        return refused(call)


@fuzz(
    150,
    3000,
    folder=st.sampled_from(FOLDERS),
    name=st.sampled_from(JSON[:3]),
    data=st.data(),
)
def test_one_field_of_one_file(folder: Path, name: str, data: Any) -> None:
    fields = fields_of(folder, name)
    field = data.draw(st.sampled_from([*fields, "rope_scaling", "rope_parameters", "eos_token_id", "unheard_of"]))
    value = data.draw(ROPE | VALUES if field.startswith("rope_") else VALUES)
    said = load(folder, name, json.dumps(fields | {field: value}))
    if name == "config.json" and field == "unheard_of" and value is not None:
        assert said is not None
        if load(folder, name, json.dumps(fields)) is not None:  # one that says nothing of what it is
            return
        assert "unheard_of" in said


@fuzz(
    60,
    1000,
    folder=st.sampled_from(FOLDERS),
    name=st.sampled_from([*JSON, "tokenizer.json"]),
    text=st.text(max_size=30),
)
def test_files_that_are_something_else(folder: Path, name: str, text: str) -> None:
    said = load(folder, name, text)
    assert said is not None or not (folder / name).is_file() or name == "model.safetensors.index.json"


@fuzz(60, 1000, data=st.data())
def test_an_index_with_other_names(data: Any) -> None:
    folder = FIDELITY / "llada" / "checkpoint"
    index = fields_of(folder, "model.safetensors.index.json")
    key = data.draw(st.sampled_from([*index["weight_map"], "more"]))
    names = [
        "w.bin",
        "../x.safetensors",
        "/etc/passwd",
        "config.json",
        ".safetensors",
        "a/b.safetensors",
        "x\n.safetensors",
    ]
    file = data.draw(st.sampled_from(names) | st.text(max_size=12) | VALUES)
    said = load(folder, "model.safetensors.index.json", json.dumps({"weight_map": index["weight_map"] | {key: file}}))
    assert said is not None
