"""The exercise of the course that asks SmolLM2."""

from __future__ import annotations

import pytest

import sinklens as sl
from sinklens.course.chapter4 import arms

pytestmark = pytest.mark.real


def test_the_effect_of_the_sink_is_beyond_that_of_a_random_key() -> None:
    found = arms()
    assert found["unmasked"].mean() > 0.8
    effect = float(found["sinks"].mean() - found["random"].mean())
    assert sl.course.check("4.1", effect)
    assert "the sign is not" in sl.course.check("4.1", -effect).says
    assert not sl.course.check("4.1", 0.1)
