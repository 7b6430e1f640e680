"""The empty prompt: BOS where there is one, else masks only; whatever can be done with another can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sinklens import HookedDLM, MaskSinks, Plan, SameStep, ablate, denoise, log_likelihood, metrics, replay
from sinklens.decoding.prompts import prepare
from sinklens.decoding.samplers.base import evened
from sinklens.errors import PlanError
from sinklens.hooks import Canvas
from sinklens.interventions import FromRecord
from sinklens.probes import Confidence, KeyNorm, Pattern, ReceivedAttention

BOS, MASK, EOS = 0, 62, 1
OTHER = [5, 17, 9, 33, 8]
SETTINGS = [
    Plan(new_tokens=8),
    Plan(new_tokens=8, block_length=4, steps=4, sampler="llada"),
    Plan(new_tokens=8, temperature=1.0),
    Plan(new_tokens=8, cfg_scale=1.5, steps=4),
    Plan(new_tokens=8, threshold=0.3, remasking="low_confidence"),
]


@pytest.fixture(scope="module")
def model(tiny_stock: Any) -> Callable[[str, bool], HookedDLM]:
    """A tiny model of a family with BOS or without, made once."""
    from conftest import DECODER, IDS

    made: dict[tuple[str, bool], HookedDLM] = {}

    def make(family: str, bos: bool) -> HookedDLM:
        if (family, bos) not in made:
            ids = IDS if bos else type(IDS)(mask=IDS.mask, eos=IDS.eos, pad=IDS.pad)
            made[family, bos] = HookedDLM.from_transformers(tiny_stock(DECODER[family]), None, family, ids=ids)
        return made[family, bos]

    return make


@pytest.mark.parametrize("plan", SETTINGS)
@pytest.mark.parametrize("family", ["LLaDA", "Dream"])
def test_masks_only_are_a_canvas_by_themselves(model: Any, family: str, plan: Plan) -> None:
    """As filling gaps of nothing but gaps, which knows no prompt; with guidance there is nothing to guide by."""
    dlm = model(family, False)
    start = prepare(dlm, [[]], plan)
    assert start.canvas.tokens.tolist() == [[MASK] * 8]
    assert not start.canvas.prompt.any()
    found = denoise(dlm, [[]], plan, seed=3, progress=False)
    if plan.block_length is None:
        unguided = replace(plan, cfg_scale=0.0, new_tokens=0)
        assert torch.equal(found.tokens, denoise(dlm, [MASK] * 8, unguided, seed=3, progress=False).tokens)
    else:
        assert sorted(found.commit_step[0, :4].tolist()) == [0, 0, 1, 1]
        assert sorted(found.commit_step[0, 4:].tolist()) == [2, 2, 3, 3]


@pytest.mark.parametrize("plan", SETTINGS)
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_bos_stands_in_front_where_there_is_one(model: Any, family: str, plan: Plan) -> None:
    dlm = model(family, True)
    plan = plan.for_causal() if dlm.is_causal else plan
    expected = denoise(dlm, [BOS], plan, seed=3, progress=False)
    for given in ([[]], torch.zeros(1, 0), {"input_ids": [], "attention_mask": []}):
        assert torch.equal(denoise(dlm, given, plan, seed=3, progress=False).tokens, expected.tokens)
    assert dlm.encode([]) == [BOS]


@pytest.mark.parametrize("plan", SETTINGS)
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("family", ["LLaDA", "Dream"])
def test_an_empty_prompt_beside_others(model: Any, family: str, bos: bool, plan: Plan) -> None:
    """Alone or in a batch; records count from the row's first token, which may be a mask."""
    dlm = model(family, bos)
    probes = [ReceivedAttention(), Confidence(), KeyNorm(), Pattern()]
    together = denoise(dlm, [OTHER, [], OTHER[:2]], plan, probes=probes, seed=4, progress=False)
    alone = denoise(dlm, [[]], plan, probes=probes, seed=4, progress=False)
    first = int(bos)
    assert together.tokens[1, -8:].tolist() == alone.tokens[0, -8:].tolist()
    mine, own = together.record.isel(prompt=1), alone.record.isel(prompt=0)
    assert int(mine["prompt_length"]) == int(own["prompt_length"]) == first
    size, steps = 8 + first, own.sizes["step"]
    for name in ("token", "given", "commit_step"):
        assert mine[name].values[:size].tolist() == own[name].values[:size].tolist()
    for probe in probes:  # dims of a probe that are positions are cut to the row's own
        cut = {dim: slice(size) for dim in ("query", "key") if dim in own[probe.name].dims}
        ours, theirs = mine[probe.name].isel(step=slice(steps), **cut), own[probe.name].isel(cut)
        np.testing.assert_allclose(ours.values, theirs.values, atol=1e-4, rtol=1e-4)
    assert metrics.sinks(together.record).dims == metrics.sinks(alone.record).dims
    assert torch.equal(replay(together.record, dlm, progress=False).tokens, together.tokens)


@pytest.mark.parametrize("bos", [True, False])
def test_edits_find_the_empty_prompt(model: Any, bos: bool) -> None:
    dlm, plan = model("LLaDA", bos), Plan(new_tokens=4)
    record = denoise(dlm, [OTHER, []], plan, probes=[ReceivedAttention()], progress=False).record
    for edit in (MaskSinks(SameStep(top_k=1)), MaskSinks(FromRecord(record, top_k=1))):
        run = denoise(dlm, [[], OTHER], plan, interventions=[edit], progress=False)
        assert run.finished
    result = ablate(dlm, [[], OTHER], {"cut": MaskSinks(SameStep(top_k=1))}, plan, metrics=["kl"], progress=False)
    assert {row["prompt"] for row in result.scores} == {0, 1}


@torch.no_grad()
@pytest.mark.parametrize("bos", [True, False])
def test_likelihood_behind_nothing(model: Any, bos: bool) -> None:
    """One answer token: its only draw masks it, so the estimate is exact; of a baseline it is exact anyway."""
    dlm, answer = model("LLaDA", bos), [21]
    before = [BOS] if bos else []
    logits = dlm(torch.tensor([[*before, MASK]]))[0, -1].double()
    found = log_likelihood(dlm, [[], OTHER], [answer, answer])
    assert float(found[0]) == pytest.approx(float(logits.log_softmax(-1)[21]), abs=1e-4)
    if bos:
        arm = model("Llama", True)
        logits = arm(torch.tensor([[BOS, 21]]))[0].double().log_softmax(-1)
        exact = float(logits[0, 21] + logits[1, 40]) / 2
        assert float(log_likelihood(arm, [[], OTHER], [[21, 40]] * 2)[0]) == pytest.approx(exact, abs=1e-4)


def test_a_baseline_without_bos_has_nothing_to_begin_with(model: Any) -> None:
    arm = model("Llama", False)
    for call in (
        lambda: denoise(arm, [OTHER, []], Plan(new_tokens=4), progress=False),
        lambda: log_likelihood(arm, [OTHER, []], [[5], [5]]),
        lambda: ablate(arm, [OTHER, []], {}, Plan(new_tokens=4), metrics=["kl"], progress=False),
    ):
        with pytest.raises(PlanError, match="prompt 1 is empty, and Llama has no BOS token"):
            call()


def test_an_empty_prompt_has_no_gaps(model: Any) -> None:
    for bos in (True, False):
        with pytest.raises(PlanError, match="new_tokens=0 fills gaps, and prompt 0 holds no mask token"):
            denoise(model("LLaDA", bos), [[]], Plan(new_tokens=0), progress=False)


def test_only_rounding_is_evened_out() -> None:
    """A blank row whose positions differ by rounding; not one that an edit tells apart, nor one that holds a token."""
    logits = torch.randn(1, 1, 7).expand(4, 3, 7) * 5 + 1e-6 * torch.randn(4, 3, 7)
    logits[1, 2] += 0.1
    masked = torch.ones(4, 3, dtype=torch.bool)
    masked[2, 0] = False
    valid = torch.ones_like(masked)
    valid[3, 0] = masked[3, 0] = False  # padding
    canvas = Canvas(torch.full((4, 3), MASK), valid, masked, torch.zeros_like(masked))
    found = evened(logits, canvas)
    assert torch.equal(found[0], logits[0, :1].expand(3, 7))
    assert torch.equal(found[1:3], logits[1:3])
    assert torch.equal(found[3, 1:], logits[3, 1:2].expand(2, 7))
