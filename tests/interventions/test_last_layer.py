"""Behind the weights of the last layer no position sees another: an edit of a query counts only where it decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens.errors import NeverExposed

PROMPTS = ["dolko xe dolko", "xo talma xe"]


@pytest.fixture(scope="module")
def twins() -> dict[str, sl.HookedDLM]:
    return {name: sl.HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


OPTIONS: dict[str, Any] = {"controls": None, "metrics": ["agreement"], "progress": False}
PLAN = sl.Plan(new_tokens=6)


def cut(queries: Any, layer: int = -1) -> sl.MaskSinks:
    """The most attended key is masked, in one layer, for some queries."""
    return sl.MaskSinks(sl.SameStep(top_k=1), where=sl.Scope(layers=layer), queries=queries)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("attention", ["auto", "pattern"])
def test_queries_that_decide_nothing_are_not_exposed(twins: Any, name: str, attention: Any) -> None:
    dlm = twins[name]
    edit, plain = cut("prompt"), sl.denoise(dlm, PROMPTS[0], PLAN)
    before, dlm.attention = dlm.attention, attention
    try:
        if name == "tiny-dlm":
            edited = sl.denoise(dlm, PROMPTS[0], PLAN, interventions=[edit])
            assert torch.equal(edited.tokens, plain.tokens)
            with pytest.raises(NeverExposed):
                sl.ablate(dlm, PROMPTS, {"cut": edit}, PLAN, **OPTIONS)
        else:  # the last token of the prompt decides the first of six
            table = sl.ablate(dlm, PROMPTS, {"cut": edit}, PLAN, **OPTIONS).to_dataframe()
            assert table[table.kind == "sinks"]["exposed"].to_list() == pytest.approx([1 / 6] * 2)
        for kept in ("all", "last"):
            if name == "tiny-arm" or kept == "all":
                found = sl.ablate(dlm, PROMPTS, {"cut": cut(kept)}, PLAN, **OPTIONS).to_dataframe()
                assert found[found.kind == "sinks"]["exposed"].to_list() == [1.0, 1.0]
    finally:
        dlm.attention = before


def test_in_an_earlier_layer_every_query_is_passed_on(twins: Any) -> None:
    found = sl.ablate(twins["tiny-dlm"], PROMPTS, {"cut": cut("prompt", 0)}, PLAN, **OPTIONS).to_dataframe()
    assert found[found.kind == "sinks"]["exposed"].to_list() == [1.0, 1.0]


def test_masks_of_blocks_that_come_later_decide_nothing_yet(twins: Any) -> None:
    """Three blocks of two: the last position is decided in the last one, and until then its query reaches no choice."""
    plan = sl.Plan(new_tokens=6, block_length=2, steps=6)
    for step in sl.denoising_steps(twins["tiny-dlm"], PROMPTS, plan, interventions=[cut("last")]):
        open_yet = step.canvas.masked[:, -1] & (step.index >= 4)
        assert step.memories[0].edited.tolist() == open_yet.tolist(), step.index
    found = sl.ablate(twins["tiny-dlm"], PROMPTS, {"cut": cut("last")}, plan, **OPTIONS).to_dataframe()
    assert found[found.kind == "sinks"]["exposed"].max() <= 2 / 6
    found = sl.ablate(twins["tiny-dlm"], PROMPTS, {"cut": cut("masked")}, plan, **OPTIONS).to_dataframe()
    assert found[found.kind == "sinks"]["exposed"].to_list() == [1.0, 1.0]


def test_a_metric_of_all_predictions_reads_later_blocks_too(twins: Any) -> None:
    """KL is over every masked position, whatever the run commits next: the last position counts from the start."""
    plan, options = sl.Plan(new_tokens=6, block_length=2, steps=6), OPTIONS | {"metrics": ["kl"]}
    found = sl.ablate(twins["tiny-dlm"], PROMPTS, {"cut": cut("last")}, plan, **options).to_dataframe()
    assert (found[found.kind == "sinks"]["exposed"] > 0.8).all()


def test_where_committed_positions_are_decided_again_they_count(twins: Any) -> None:
    plan, edit = sl.Plan(new_tokens=6, sampler="p2"), {"cut": cut("committed")}
    with pytest.raises(NeverExposed):
        sl.ablate(twins["tiny-dlm"], PROMPTS, edit, PLAN, **OPTIONS)
    found = sl.ablate(twins["tiny-dlm"], PROMPTS, edit, plan, **OPTIONS).to_dataframe()
    assert (found[found.kind == "sinks"]["exposed"] > 0).all()
