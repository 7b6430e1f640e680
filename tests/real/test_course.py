"""The exercise of the course that asks AntiBERTy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sinklens as sl
from sinklens.course.chapter4 import arms

pytestmark = pytest.mark.real


def test_the_effect_of_the_sinks_is_beyond_that_of_random_keys() -> None:
    found = arms()
    assert found["unmasked"].mean() > 0.8
    assert sl.course.check("4.1", np.mean(found["sinks"]) - np.mean(found["random"]))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda found: np.mean(found["random"]) - np.mean(found["sinks"]), "the sign is not"),
        (lambda found: np.mean(found["sinks"]) - np.mean(found["unmasked"]), "against unmasked"),
        (lambda found: np.mean(found["random"]) - np.mean(found["unmasked"]), "the control does by itself"),
        (lambda found: np.mean(found["sinks"]), "the accuracy itself"),
        (lambda found: [0.1, 0.2], "expected one number"),
    ],
    ids=["sign", "unmasked", "control", "accuracy", "two"],
)
def test_a_mistake_is_named(answer: Callable, says: str) -> None:
    verdict = sl.course.check("4.1", answer(arms()))
    assert not verdict
    assert says in verdict.says
