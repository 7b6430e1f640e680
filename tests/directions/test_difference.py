"""Directions: means by numpy over a stock transformers model, pads that do not count, files that say all of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import residuals

import sinklens as sl
from sinklens.directions import Direction, difference
from sinklens.errors import DirectionError, PlanError, SaveError, ScopeError
from sinklens.models.fingerprint import ModelId

POSITIVE = [[5, 17, 9, 33, 62, 21, 50], [12, 40, 62], [44, 62, 7, 8]]
NEGATIVE = [[30, 31, 62, 9], [6, 62]]
FAMILIES = ["LLaDA", "Dream", "Llama", "BERT"]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    made = {name: tiny_model(name, layers=3) for name in FAMILIES}
    return made.__getitem__


def by_hand(family: str, tiny_stock: Any, rows: list[list[int]], at: str, positions: str) -> np.ndarray:
    """Mean over prompts of the mean over positions, each prompt by itself, without any pad."""
    found = []
    for row in rows:
        states = residuals(family, tiny_stock, row, at)
        masked = np.array(row) == 62
        counted = {"all": masked | ~masked, "masked": masked, "committed": ~masked}.get(positions)
        counted = np.arange(len(row)) == len(row) - 1 if counted is None else counted
        found.append(states[:, counted].mean(1))
    return np.mean(found, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("at", "positions"), [("hook_out", "all"), ("hook_in", "committed"), ("hook_out", "masked"), ("hook_in", "last")]
)
def test_means_are_those_of_numpy_whatever_the_batch(
    model: Any, tiny_stock: Any, family: str, at: Any, positions: Any
) -> None:
    """Prompts of different lengths share a batch here, left-padded, and stand alone there."""
    if family == "Llama" and positions in ("masked", "committed"):  # it knows no masks: 62 is a token like any other
        with pytest.raises(DirectionError, match="has no position of") if positions == "masked" else nullcontext():
            difference(model(family), POSITIVE, NEGATIVE, at=at, positions=positions)
        return
    layers = [1, 2]
    plus, minus = (by_hand(family, tiny_stock, rows, at, positions)[layers] for rows in (POSITIVE, NEGATIVE))
    for size in (1, 2, 32):
        found = difference(
            model(family), POSITIVE, NEGATIVE, layers=layers, at=at, positions=positions, batch_size=size
        )
        np.testing.assert_allclose(found.vectors.numpy(), plus - minus, atol=2e-4, rtol=1e-4)
        assert (found.layers, found.at, found.positions) == ((1, 2), at, positions)


def test_norms_are_the_mean_length_of_the_residual_stream(model: Any, tiny_stock: Any) -> None:
    found = difference(model("LLaDA"), POSITIVE, NEGATIVE)
    each = [
        np.linalg.norm(residuals("LLaDA", tiny_stock, row, "hook_out"), axis=-1).mean(-1)
        for row in [*POSITIVE, *NEGATIVE]
    ]
    np.testing.assert_allclose(found.norms, np.mean(each, 0), rtol=1e-4)


def test_masks_are_appended(model: Any) -> None:
    said = [[5, 17], [12, 40, 7]], [[30], [6, 9]]
    one = difference(model("LLaDA"), *said, layers=[1, 2], masks=3, positions="masked")
    two = difference(
        model("LLaDA"), *[[[*row, 62, 62, 62] for row in rows] for rows in said], layers=[1, 2], positions="response"
    )
    torch.testing.assert_close(one.vectors, two.vectors)
    with pytest.raises(DirectionError, match=r"masks=3: .* is autoregressive"):
        difference(sl.HookedDLM.from_pretrained("tiny-arm"), "balte", "boma", masks=3)


def test_agreement_is_the_cosine_of_the_halves(model: Any, tiny_stock: Any) -> None:
    rows = [*POSITIVE, [3, 4]], NEGATIVE
    halves = [
        by_hand("LLaDA", tiny_stock, rows[0][which::2], "hook_out", "all")
        - by_hand("LLaDA", tiny_stock, rows[1][which::2], "hook_out", "all")
        for which in (0, 1)
    ]
    expected = (halves[0] * halves[1]).sum(-1) / np.linalg.norm(halves[0], axis=-1) / np.linalg.norm(halves[1], axis=-1)
    made = difference(model("LLaDA"), *rows).made
    np.testing.assert_allclose(made["agreement"], expected, atol=1e-4)
    assert made["positive"]["prompts"] == 4
    assert difference(model("LLaDA"), POSITIVE, NEGATIVE[:1]).made["agreement"] is None


def test_what_gives_no_direction_is_refused(model: Any) -> None:
    dlm = model("LLaDA")
    with pytest.raises(DirectionError, match="positive and negative are the same prompts"):
        difference(dlm, POSITIVE, POSITIVE)
    with pytest.raises(DirectionError, match=r"negative\[1\] has no position of positions='masked'; say masks=8"):
        difference(dlm, [[5, 62]], [[62, 4], [3, 4]], positions="masked")
    with pytest.raises(DirectionError, match=r"in layer 0 \(hook_in, .* the two means are the same"):
        difference(dlm, [[5, 62]], [[7, 62]], positions="masked", at="hook_in")
    with pytest.raises(ScopeError, match="layer 3 does not exist"):
        difference(dlm, [[5]], [[7]], layers=3)
    with pytest.raises(DirectionError, match=r"positive\[0\] has 70 tokens"):
        difference(dlm, [[5] * 62], [[7]], masks=8)
    with pytest.raises(PlanError, match="prompts is empty"):
        difference(dlm, [], [[7]])


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> tuple[Direction, Path]:
    direction = difference(model("LLaDA"), POSITIVE, NEGATIVE, layers=[0, 2])
    return direction, direction.save(tmp_path / "direction")


def test_what_is_saved_is_loaded(saved: tuple[Direction, Path], model: Any) -> None:
    direction, folder = saved
    found = Direction.load(folder, model("LLaDA"))
    assert found == direction
    assert found.digest == direction.digest
    assert torch.equal(found.vectors, direction.vectors)
    assert torch.equal(found.vector(2), direction.vectors[1])
    assert found.norm(2) == direction.norms[1]
    with pytest.raises(DirectionError, match=r"has no vector of layer 1; it has \[0, 2\]"):
        found.vector(1)
    assert "| 2 |" in (folder / "README.md").read_text()
    assert direction.save(folder) == folder  # its own files may be replaced


def test_another_models_direction_is_refused(saved: tuple[Direction, Path], model: Any, tiny_model: Any) -> None:
    _, folder = saved
    for other in (model("Llama"), tiny_model("LLaDA", layers=3, seed=1)):
        with pytest.raises(DirectionError, match=r"this direction was found on .* and the model is"):
            Direction.load(folder, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [0]}, r"does not fit direction\.json: vectors is \(2, 32\) there, and must be \(1, 32\)"),
        ({"layers": [2, 0]}, "must be in order"),
        ({"layers": "no"}, "layers='no' must be"),
        ({"at": "hook_mid"}, "at='hook_mid' is unknown"),
        ({"norms": [0.0, 1.0]}, "must be above 0"),
        ({"norms": None}, "norms=None must be"),
        ({"positions": "some"}, "positions='some' is unknown"),
        ({"model": 3}, "model must be ModelId"),
        ({"sinklens": "gate"}, "is no description of a direction"),
    ],
)
def test_damaged_files_are_refused(saved: tuple[Direction, Path], change: dict[str, Any], message: str) -> None:
    folder = saved[1]
    said = json.loads((folder / "direction.json").read_text())
    (folder / "direction.json").write_text(json.dumps(said | change))
    with pytest.raises(DirectionError, match=message):
        Direction.load(folder)


def test_files_that_are_not_there_or_somebody_elses(saved: tuple[Direction, Path], tmp_path: Path) -> None:
    direction, folder = saved
    with pytest.raises(DirectionError, match="is no folder"):
        Direction.load(tmp_path / "nowhere")
    (folder / "direction.safetensors").unlink()
    with pytest.raises(DirectionError, match=r"direction\.safetensors' cannot be read"):
        Direction.load(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(SaveError):
        direction.save(tmp_path / "mine")


def test_vectors_that_are_none_are_refused() -> None:
    model = ModelId("m", "LLaDA", "0" * 64)
    one = torch.ones(1, 4)
    for vectors, layers, norms, message in [
        (one.double(), [0], [1.0], "must be float32"),
        (one, [0, 1], [1.0, 1.0], "one for each of layers"),
        (one[0], [0], [1.0], "one for each of layers"),
        (one * 0, [0], [1.0], "that of layer 0 has a length of 0.0"),
        (one * float("nan"), [0], [1.0], "points nowhere"),
        (one, [0], [1.0, 2.0], "norms"),
    ]:
        with pytest.raises(DirectionError, match=message):
            Direction(vectors, layers, "hook_in", norms, "all", model, {})  # pyright: ignore[reportArgumentType]
