"""Shapes are checked in these tests, as CONTRIBUTING says: a call with a wrong one fails by itself."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from sinklens.sinks import Sight, received_attention


def test_a_wrong_shape_fails() -> None:
    with pytest.raises(TypeCheckError):
        received_attention(torch.ones(2, 3, 4), torch.ones(2, 7, dtype=torch.bool))


def test_a_wrong_dtype_fails_also_in_a_dataclass() -> None:
    with pytest.raises(TypeCheckError):
        Sight(torch.ones(2, 3))
