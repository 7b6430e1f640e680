"""Records of any dtypes, sizes, coordinates and attributes, for hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from hypothesis import strategies as st

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u4", "f4", "f8", ">f4", "O", "U3"]
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), 127.0, 0.1])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["units", "definition", "mine", "other"]),
    st.one_of(
        st.sampled_from(["days", "seconds since 2000-01-01", "1/0", ""]),
        TEXTS,
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=False),
        st.lists(st.integers(-5, 5), min_size=2, max_size=3),
        st.lists(TEXTS, min_size=2, max_size=3),
    ),
    max_size=3,
)


@st.composite
def records(draw: Any) -> xr.Dataset:
    """A Dataset of any dtypes and sizes, also 0, with coordinates of numbers and of texts."""
    sizes = {dim: draw(st.integers(0, 3)) for dim in ("prompt", "step", "layer")}
    made: dict[str, Any] = {}
    for number, dtype in enumerate(draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))):
        dims = draw(st.lists(st.sampled_from(sorted(sizes)), unique=True, max_size=3))
        shape = [sizes[dim] for dim in dims]
        if dtype in ("O", "U3") and not all(shape):
            continue  # of these xarray itself keeps no dtype; see the test of a record without positions
        drawn = [draw(TEXTS if dtype in ("O", "U3") else NUMBERS) for _ in range(int(np.prod(shape)))]
        flat = np.array(drawn, dtype if dtype in ("O", "U3") else "f8")
        values = (flat if dtype in "OU3" or "f" in dtype else np.nan_to_num(flat, posinf=7)).reshape(shape)
        made[f"v{number}"] = (dims, values.astype(dtype), draw(ATTRIBUTES))
    coords = {"prompt": np.arange(sizes["prompt"]) * 2} if "prompt" in xr.Dataset(made).dims else {}
    if sizes["layer"] and "layer" in xr.Dataset(made).dims:
        coords["layer"] = np.array([f"l{n}" for n in range(sizes["layer"])], object)
    return xr.Dataset(made, coords, {**draw(ATTRIBUTES), "sinklens_schema": 2})
