"""Any plan is one that can be carried out, or an error that names the field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens import Plan

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**13), 10**13),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["llada", "dream", "entropy", "origin", "both", "yes", "1e-3", float("inf"), b"1", object()]),
)


@fuzz(field=st.sampled_from([field.name for field in fields(Plan)]), value=ANYTHING)
def test_a_field_of_a_plan_holds_what_it_says_or_is_refused_by_name(field: str, value: Any) -> None:
    plan: list[Plan] = []
    if refused(lambda: plan.append(Plan(**{field: value})), [field]) is None:
        kept = getattr(plan[0], field)
        assert kept == value
        assert isinstance(kept, bool) == isinstance(value, bool)
        assert Plan.from_dict(plan[0].to_dict()) == plan[0]
