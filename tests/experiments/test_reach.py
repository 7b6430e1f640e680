"""Edits of positions that no score depends on are refused, not reported as without effect."""

from __future__ import annotations

from typing import Any

import pytest

import sinklens as sl
from sinklens.errors import PlanError, ScopeError


@pytest.mark.parametrize("queries", ["masked", "response", "last"])
def test_a_reconstruction_that_no_score_depends_on_is_no_perfect_one(queries: Any) -> None:
    arm: Any = sl.HookedDLM.from_pretrained("tiny-arm")
    with pytest.raises(PlanError, match="autoregressive"):
        sl.delta_loss(arm, "nowhere", ["dolko xe"], queries=queries)


def test_the_last_position_of_a_baselines_likelihood_is_refused() -> None:
    arm = sl.HookedDLM.from_pretrained("tiny-arm")
    edit = sl.MaskSinks(sl.SameStep(top_k=1), queries="last")
    with pytest.raises(ScopeError, match="predicts nothing that is scored"):
        sl.log_likelihood(arm, ["dolko xe"], ["dolko"], interventions=[edit])
