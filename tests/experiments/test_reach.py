"""Edits of positions that no score depends on are refused, not reported as without effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens.directions import Direction
from sinklens.errors import PlanError, ScopeError
from sinklens.models.fingerprint import ModelId
from sinklens.tasks import Echo


@pytest.fixture(scope="module")
def twins() -> dict[str, sl.HookedDLM]:
    """Both bundled twins."""
    return {name: sl.HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


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


@pytest.mark.usefixtures("twins", "no_forward")
@pytest.mark.parametrize(
    ("name", "schedule", "said"),
    [
        ("tiny-dlm", (1.0,) * 40, "has a schedule for 40 steps, and a likelihood has none"),
        ("tiny-arm", (1.0,) * 40, "has a schedule for 40 steps, and a likelihood has none"),
        ("tiny-arm", "linear", "reads a whole answer at once"),
    ],
    ids=["numbers", "numbers of a baseline", "linear of a baseline"],
)
def test_a_schedule_is_refused_by_a_likelihood_before_the_runs_of_other_metrics(
    twins: dict[str, sl.HookedDLM], name: str, schedule: Any, said: str
) -> None:
    """`no_forward` would raise at the first forward of the generated run."""
    dlm = twins[name]
    vectors = torch.ones(1, int(dlm.cfg.d_model))
    edit = sl.Steer(Direction(vectors, (0,), "hook_out", (1.0,), "all", ModelId.of(dlm), {}), schedule=schedule)
    with pytest.raises(ScopeError, match=said):
        sl.ablate(
            dlm, Echo(n=2), {"steered": edit}, controls=(), metrics=["accuracy", "log_likelihood"], progress=False
        )


@pytest.mark.usefixtures("twins", "no_forward")
def test_an_ablation_refuses_the_last_position_of_a_baselines_likelihood_too(twins: dict[str, sl.HookedDLM]) -> None:
    """Its arms run side by side, as one edit, of which log_likelihood does not see the parts."""
    edit = sl.MaskSinks(sl.SameStep(top_k=1), queries="last")
    with pytest.raises(ScopeError, match="predicts nothing that is scored"):
        sl.ablate(twins["tiny-arm"], Echo(n=2), {"cut": edit}, metrics=["log_likelihood"], progress=False)
