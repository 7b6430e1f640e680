"""Gates: what is kept at which rate, one model each, and files that are theirs or one clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sinklens as sl
from sinklens.errors import GateError, SaveError
from sinklens.interventions import LearnedSelection
from sinklens.selection.batches import batch_of
from sinklens.selection.gate import GRID, Gate, ModelId, Shape, above
from sinklens.selection.places import find, names

KINDS = ["conditioned", "threshold", "learned_threshold"]


@pytest.fixture(scope="module")
def dlm(tiny_model: Any) -> Any:
    return tiny_model("LLaDA", layers=3)


@pytest.fixture(scope="module")
def other(tiny_model: Any) -> Any:
    return tiny_model("LLaDA", layers=3, seed=5)


@given(
    scores=st.lists(st.lists(st.floats(-3, 3, width=32), min_size=7, max_size=7), min_size=3, max_size=3),
    valid=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=3, max_size=3),
)
def test_what_is_kept_is_valid_and_never_nothing(scores: list[list[float]], valid: list[list[bool]]) -> None:
    kept = above(torch.tensor(scores), torch.tensor(valid))
    for values, real, stays in zip(scores, valid, kept.tolist(), strict=True):
        places = [place for place in range(7) if real[place]]
        wanted = {place for place in places if values[place] > 0}
        wanted = wanted or set(places[:1] if not places else [max(places, key=lambda place: (values[place], -place))])
        assert {place for place in range(7) if stays[place]} == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scores", ["layer", "shared"])
def test_a_rate_of_1_keeps_all_and_padding_is_never_kept(dlm: Any, kind: Any, scores: Any) -> None:
    gate, residual = Gate.fresh(Shape(kind, scores), dlm, seed=3), torch.randn(2, 9, dlm.cfg.d_model)
    valid = torch.arange(9) >= torch.tensor([[0], [4]])
    assert torch.equal(gate.keeps(residual, 0, 0.3, valid), valid)  # before the first layer that selects
    for layer in (1, 2):
        assert torch.equal(gate.keeps(residual, layer, 1.0, valid), valid)
        kept = gate.keeps(residual, layer, 0.3, valid)
        assert not bool((kept & ~valid).any())
        assert bool(kept.any(-1).all())
        assert int(kept.sum()) < int(valid.sum())


def test_scores_by_hand(dlm: Any) -> None:
    """Each kind against its formula, in plain arithmetic."""
    x = torch.randn(1, 1, dlm.cfg.d_model, dtype=torch.float64) * 50  # normalised: its size plays no part
    unit = (x[0, 0] / (x[0, 0] ** 2).mean().sqrt()).tolist()
    for kind in KINDS:
        gate = Gate.fresh(Shape(kind, hidden=3, first=0), dlm, seed=1)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            for weight in gate.weights.values():
                weight.normal_(generator=torch.Generator().manual_seed(len(weight)))
        w = {name: weight[1].tolist() for name, weight in gate.weights.items()}
        direct = sum(a * b for a, b in zip(unit, w["direct"], strict=True)) + w["bias"]
        for rate in (0.07, 0.5, 0.9):
            logit = math.log(rate / (1 - rate))
            if kind == "threshold":  # sigmoid(direct) > 1 - rate
                expected = direct + logit
                assert (expected > 0) == (1 / (1 + math.exp(-direct)) > 1 - rate)  # before it is calibrated
            elif kind == "learned_threshold":  # sigmoid(direct) > sigmoid(theta)
                theta = -(w["skip"][0] * rate + w["skip"][1])
                expected = direct - theta
            else:
                told = (logit, rate, 1.0)
                expected = direct + sum(a * b for a, b in zip(w["skip"], told, strict=True))
                for read, rated, offset, said in zip(w["read"], w["rated"], w["offset"], w["said"], strict=True):
                    inner = sum(a * b for a, b in zip(unit, read, strict=True)) + offset
                    inner += sum(a * b for a, b in zip(rated, told, strict=True))
                    expected += said * inner * 0.5 * (1 + math.erf(inner / math.sqrt(2)))
            expected += float(np.interp(rate, GRID, w["calibration"]))
            assert gate.scores(x, 1, rate).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_shared_scores_are_read_once_and_from_one_layer(dlm: Any) -> None:
    gate = Gate.fresh(Shape(scores="shared", first=1), dlm, seed=2)
    residual, valid = torch.randn(2, 6, dlm.cfg.d_model), torch.ones(2, 6, dtype=torch.bool)
    assert [gate.source(layer) for layer in range(3)] == [None, 1, 1]
    assert bool(gate.keeps(residual, 0, 0.3, valid).all())  # before it everything is visible
    assert torch.equal(gate.keeps(residual, 1, 0.3, valid), gate.keeps(residual, 2, 0.3, valid))
    with pytest.raises(GateError, match=r"first=3: .* has the layers 0 to 2"):
        Gate.fresh(Shape(first=3), dlm)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_comes_back_from_its_files(dlm: Any, kind: Any, tmp_path: Path) -> None:
    gate = Gate.fresh(Shape(kind, hidden=4), dlm, seed=7)
    gate.made = {"recipe": {"updates": 3}, "reached": [{"rate": 0.5, "share": 0.25}]}
    again = Gate.load(gate.save(tmp_path / "gate"), dlm)
    assert again.digest == gate.digest
    residual = torch.randn(1, 5, dlm.cfg.d_model)
    assert torch.equal(again.scores(residual, 2, 0.4), gate.scores(residual, 2, 0.4))
    card = (tmp_path / "gate" / "README.md").read_text()
    assert "| 0.5 | 0.25 |" in card
    assert gate.model.weights in card
    assert str(tmp_path) not in (tmp_path / "gate" / "gate.json").read_text()
    gate.save(tmp_path / "gate")  # its own files are replaced
    other = Gate.fresh(Shape(kind, hidden=4), dlm, seed=8)
    other.made = gate.made
    assert other.digest != gate.digest


def test_whose_gate_it_is_depends_on_weights_and_not_on_folder_or_dtype(dlm: Any, other: Any, tiny_model: Any) -> None:
    twin = tiny_model("LLaDA", layers=3)
    twin.name = "elsewhere/the-same"
    assert ModelId.of(twin) == ModelId.of(dlm)
    assert ModelId.of(twin.to(torch.bfloat16)) == ModelId.of(dlm)
    assert ModelId.of(other) != ModelId.of(dlm)
    before = ModelId.of(twin)
    with torch.no_grad():
        next(twin.original_model.parameters()).add_(1.0)  # seen, though the model is the same object
    assert ModelId.of(twin) != before


def test_a_gate_of_another_model_is_refused_by_both_names(dlm: Any, other: Any, tmp_path: Path) -> None:
    Gate.fresh(Shape(), dlm).save(tmp_path)
    with pytest.raises(GateError, match=r"was trained on .* \(LLaDA, weights .*and the model is .*select train"):
        Gate.load(tmp_path, other)


def corrupt(folder: Path, how: str) -> None:
    description, weights = folder / "gate.json", folder / "gate.safetensors"
    said = json.loads(description.read_text())
    held = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # load_file maps the file
    match how:
        case "no description" | "no weights":
            (description if how == "no description" else weights).unlink()
        case "no JSON":
            description.write_text("{")
        case "a list":
            description.write_text("[]")
        case "not a gate":
            description.write_text(json.dumps({**said, "sinklens": "ablation"}))
        case "unknown kind":
            description.write_text(json.dumps({**said, "shape": {**said["shape"], "kind": "magic"}}))
        case "unknown field":
            description.write_text(json.dumps({**said, "shape": {**said["shape"], "colour": 3}}))
        case "no shape":
            description.write_text(json.dumps({name: each for name, each in said.items() if name != "shape"}))
        case "layers":
            description.write_text(json.dumps({**said, "layers": "3"}))
        case "no model":
            description.write_text(json.dumps({**said, "model": None}))
        case "a pickle":
            torch.save(held, weights)
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-5])
        case "renamed":
            save_file({f"{name}2": tensor for name, tensor in held.items()}, weights)
        case "sizes":
            save_file({name: torch.cat([tensor, tensor]) for name, tensor in held.items()}, weights)
        case "half":
            save_file({name: tensor.half() for name, tensor in held.items()}, weights)
        case "nan":
            save_file({name: tensor * math.nan for name, tensor in held.items()}, weights)
        case "large":
            with weights.open("ab") as file:
                file.truncate(2**30)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no description", "gate.json' cannot be read: No such file"),
        ("no weights", "gate.safetensors' cannot be read: No such file"),
        ("no JSON", "gate.json' cannot be read"),
        ("a list", "no description of a gate"),
        ("not a gate", "no description of a gate"),
        ("unknown kind", "kind='magic' is unknown"),
        ("unknown field", "no field 'colour'"),
        ("no shape", "shape"),
        ("layers", "layers='3' must be a whole number"),
        ("no model", "model"),
        ("a pickle", "gate.safetensors' cannot be read"),
        ("cut", "gate.safetensors' cannot be read"),
        ("renamed", "does not fit gate.json: bias is None there"),
        ("sizes", "does not fit gate.json: bias is"),
        ("half", "must be finite numbers in float32"),
        ("nan", "must be finite numbers in float32"),
        ("large", "no gate has more than"),
    ],
)
def test_a_damaged_gate_is_one_clear_error(dlm: Any, tmp_path: Path, how: str, said: str) -> None:
    Gate.fresh(Shape(), dlm).save(tmp_path)
    corrupt(tmp_path, how)
    with pytest.raises(GateError, match=said):
        Gate.load(tmp_path, dlm)


def test_files_of_others_are_left_alone(dlm: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(SaveError, match="is there already and is no model card of a gate"):
        Gate.fresh(Shape(), dlm).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_a_place_where_no_gate_is(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="is no folder, and no gate that comes with sinklens"):
        Gate.load(str(tmp_path / "nowhere"))
    with pytest.raises(GateError, match="no model was given"):
        Gate.load("auto")


@pytest.mark.parametrize("name", names())
def test_gates_that_come_with_sinklens_are_small_and_name_no_machine(name: str) -> None:
    folder = find(name)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "gate.json", "gate.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10**6
    gate = Gate.load(name)
    assert gate.model.name in name
    text = (folder / "gate.json").read_text() + (folder / "README.md").read_text()
    assert "/root" not in text
    assert "/tmp" not in text
    for row in gate.made["reached"]:
        assert row["share"] == pytest.approx(row["rate"], abs=0.08)  # mask tokens that look alike go together


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_the_twins_gates_keep_what_their_cards_say(name: str) -> None:
    """By an ordinary run of the edit on texts of the tasks, which no gate was trained on."""
    dlm = sl.HookedDLM.from_pretrained(name)
    assert Gate.load("auto", dlm).digest == Gate.load(name).digest
    rows = sl.tasks.Echo(128, prompt_tokens=2, answer_tokens=46).texts.tolist()
    tokens = batch_of(dlm, rows, np.random.default_rng(0)).tokens
    for rate in (0.25, 0.5, 0.75):
        edit = LearnedSelection(rate=rate)
        memory, masked = edit.memory(), tokens == dlm.ids.mask
        canvas = sl.Canvas(tokens, tokens >= 0, masked, ~masked)
        with torch.no_grad(), dlm.hooks(fwd_hooks=edit.fwd_hooks(dlm, canvas, memory)):
            dlm(tokens)
        counts = memory.counts()
        assert counts["kept"] / counts["eligible"] == pytest.approx(rate, abs=0.06)


def test_a_model_without_a_gate_is_told_how_to_get_one(dlm: Any) -> None:
    with pytest.raises(GateError, match=r"no gate comes with sinklens for .*sinklens select train"):
        Gate.load("auto", dlm)
