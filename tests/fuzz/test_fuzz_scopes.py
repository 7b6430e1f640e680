"""Any scope selects what it says, or is refused by the name of the field."""

from __future__ import annotations

from typing import Any

from anything import ANYTHING
from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens.hooks import Scope, chosen

FIELDS = ("layers", "heads", "steps")


@fuzz(few=400, field=st.sampled_from(FIELDS), value=ANYTHING, size=st.integers(1, 8))
def test_a_selection_is_the_indices_that_it_says(field: str, value: Any, size: int) -> None:
    made: list[Scope] = []
    if refused(lambda: made.append(Scope(**{field: value})), [f"{field}="]) is not None:
        return
    selection = getattr(made[0], field)
    assert Scope.from_dict(made[0].to_dict()).digest == made[0].digest
    found: list[int] = []
    if refused(lambda: found.extend(chosen(selection, size, field[:-1])), [field[:-1]]) is not None:
        return
    if value is None:
        asked = list(range(size))
    elif isinstance(value, slice):
        asked = list(range(size))[value]
    else:
        listed = value if hasattr(value, "__len__") and getattr(value, "ndim", 1) else [value]
        asked = sorted({int(index) % size for index in listed})
        assert not any(isinstance(index, bool) or "bool" in str(getattr(index, "dtype", "")) for index in listed)
        assert all(int(index) == index for index in listed)
    assert found == asked


@fuzz(few=400, selection=st.lists(st.integers(-9, 9), max_size=3) | st.integers(-9, 9), steps=st.integers(1, 8))
def test_a_scope_that_a_model_has_is_at_work_somewhere(selection: Any, steps: int) -> None:
    """`validate` refuses it, or there is a step, a layer and a head at which it holds."""
    for field in FIELDS:
        scope = Scope(**{field: selection})
        if refused(lambda scope=scope: scope.validate(steps, steps, steps), [field[:-1]]) is None:
            assert chosen(scope.layers, steps, "layer")
            assert bool(scope.head_mask(steps, "cpu").any())  # pyright: ignore[reportArgumentType]
            assert any(scope.at(step, steps) for step in range(steps))
