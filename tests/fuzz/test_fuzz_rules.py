"""Any rule is one that can fire, or is refused by the name of the field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from anything import ANYTHING
from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens.sinks import SinkRule
from sinklens.sinks.named import ActRule, StreamingRule

NAMES = [field.name for field in fields(SinkRule)]
numbers = st.floats(-5, 200) | st.integers(-5, 200) | st.none()
NAMED = st.dictionaries(st.sampled_from(NAMES), ANYTHING | numbers, max_size=3)


@fuzz(few=400, kind=st.sampled_from([SinkRule, ActRule, StreamingRule]), given=NAMED)
def test_a_rule_is_what_was_given_or_refused(kind: type[SinkRule], given: dict[str, Any]) -> None:
    made: list[SinkRule] = []
    if refused(lambda: made.append(kind(**given)), [f"{name}=" for name in NAMES]) is not None:
        return
    rule = made[0]
    for name, value in given.items():
        kept = getattr(rule, name)
        assert isinstance(kept, str | int | float | None)
        assert not isinstance(kept, bool)
        assert kept == value
    assert kind.from_dict(rule.to_dict()) == rule
    found = rule(torch.tensor([[0.0, 4.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]]))
    assert found.dtype == torch.bool
    assert rule.top_k is None or int(found.sum(-1).max()) <= rule.top_k
    assert rule.words()
    assert rule.explain(64)
