"""Any plan is one that can be carried out, or an error that names the field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from anything import ANYTHING
from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens import Plan


@fuzz(field=st.sampled_from([field.name for field in fields(Plan)]), value=ANYTHING)
def test_a_field_of_a_plan_holds_what_it_says_or_is_refused_by_name(field: str, value: Any) -> None:
    plan: list[Plan] = []
    if refused(lambda: plan.append(Plan(**{field: value})), [field]) is None:
        kept = getattr(plan[0], field)
        assert kept == value
        assert isinstance(kept, bool) == ("bool" in str(getattr(value, "dtype", type(value))))
        assert Plan.from_dict(plan[0].to_dict()) == plan[0]
