"""What people give where a number, a text or a list is asked for."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.booleans(),
    st.integers(-3, 12),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([0.5, 1.0, 1e-3, float("nan"), float("inf"), Fraction(1, 3), Decimal("0.5"), 1 + 0j]),
    st.sampled_from([np.int64(2), np.float32(0.5), np.bool_(True), np.array(2), np.array(2.5)]),
    st.sampled_from([torch.tensor(1), torch.tensor(0.5), torch.tensor(True), torch.tensor(2, dtype=torch.uint8)]),
)
WORDS = ["all", "masked", "auto", "sum", "share", "head", "mean", "closed", "none", "mask", "word", "uniform", "self"]
WORDS += ["llada", "entropy", "yes", "1e-3", "3", "nan", "", "keys", "random", "received"]
THINGS: list[Any] = [b"1", object(), {}, {"a": 1}, slice(0, 2), slice(True, None), slice(None, None, 0), len, range(3)]
THINGS += [
    np.array([0, 1]),
    np.array([0.5]),
    torch.tensor([0, 1]),
    torch.tensor([True, False]),
    np.array([[1]]),
    {1, 0},
    np.timedelta64(3, "ns"),
]
LISTS = st.lists(NUMBERS | st.sampled_from(WORDS), max_size=3) | st.sets(st.integers(0, 4), max_size=3)
ANYTHING = st.one_of(st.none(), NUMBERS, st.sampled_from(WORDS), st.text(max_size=4), LISTS, st.sampled_from(THINGS))


def plain_number(value: Any) -> bool:
    """Whether something is a number that any of the libraries writes, and no truth value."""
    value = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    return isinstance(value, int | float) and not isinstance(value, bool)
