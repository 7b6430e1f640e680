"""Chapter 5's exercises: a typical mistake is told from another, and the right answer passes, computed another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens.course.chapter5 import effects, kept, norms


def drawn(vector: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))


def control(vector: torch.Tensor, seed: int) -> torch.Tensor:
    made = drawn(vector, seed)
    made -= vector * (made @ vector) / (vector @ vector)
    return made * vector.norm() / made.norm()


def means() -> tuple[float, float]:
    values, sinks = norms()
    return float(np.nanmean(values[sinks])), float(np.nanmean(values[~sinks]))


def cell() -> tuple[int, int]:
    stacked = effects().stack(cell=("layer", "position"))
    return stacked["cell"].to_numpy()[int(stacked.to_numpy().argmax())]


RIGHT = {
    "5.1": lambda: means()[0] / means()[1],
    "5.2": lambda: {"A": "resting", "B": "informative"},
    "5.3": lambda: np.mean(kept()["key_norm"]) - np.mean(kept()["random"]),
    "5.4": lambda: control,
    "5.5": cell,
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_computed_another_way_is_right(name: str) -> None:
    assert sl.course.check(name, RIGHT[name]())


WRONG = [
    ("5.1", lambda: means()[0], "divide by that of the others"),
    ("5.1", lambda: means()[1], "the others' mean alone"),
    ("5.1", lambda: means()[1] / means()[0], "upside down"),
    ("5.2", lambda: {"A": "informative", "B": "resting"}, "other way round"),
    ("5.2", lambda: {"A": "resting", "B": "resting"}, "they differ"),
    ("5.2", lambda: "resting", "expected {"),
    ("5.3", lambda: np.mean(kept()["random"]) - np.mean(kept()["key_norm"]), "the sign is turned"),
    ("5.3", lambda: np.mean(kept()["key_norm"]) - np.mean(kept()["unmasked"]), "the control is random keys"),
    ("5.3", lambda: np.mean(kept()["key_norm"]), "subtract that of random keys"),
    ("5.4", lambda: drawn, "its length is"),
    ("5.4", lambda: lambda vector, seed: control(vector, 0), "another seed gives the same"),
    ("5.4", lambda: lambda vector, seed: vector * (1 if seed else -1), "no control"),
    ("5.4", lambda: lambda vector, seed: torch.rand(3), "expected the shape (96,)"),
    ("5.4", lambda: lambda vector, seed: torch.rand(96), "two vectors"),
    ("5.5", lambda: cell()[::-1], "(layer, position)"),
    ("5.5", lambda: (0, 1), "another is larger"),
    ("5.5", lambda: (9, 1), "no such cell"),
    ("5.5", lambda: 4, "expected the shape (2,)"),
]


@pytest.mark.parametrize(("name", "answer", "says"), WRONG, ids=[f"{name}-{says[:18]}" for name, _, says in WRONG])
def test_a_mistake_is_named(name: str, answer: Any, says: str) -> None:
    verdict = sl.course.check(name, answer())
    assert not verdict
    assert says in verdict.says
