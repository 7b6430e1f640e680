"""Samplers that mask committed tokens again: what they mask, and what a trajectory, a record and a replay say of it."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM, MaskSinks, Plan, SameStep, denoise, denoising_steps
from sinklens.analysis import norms, rates
from sinklens.analysis.attention import texts_at
from sinklens.decoding.fold import Trajectory
from sinklens.decoding.prompts import prepare
from sinklens.errors import PlanError
from sinklens.plots.record_view import view_of
from sinklens.plots.theme import safe
from sinklens.probes import ReceivedAttention

MASK = 62
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7]]
P2 = Plan(new_tokens=9, steps=7, sampler="p2", temperature=1.0)
PROTEINS = [[0, *[32] * 12, 2], [0, 32, 7, 32, 32, 32, 12, 32, 32, 2]]
GUMBEL = Plan(new_tokens=0, steps=8, temperature=1.0)


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """Random models of a family, one per family."""
    return lru_cache(tiny_model)


@pytest.fixture(scope="module")
def dplm(official: Any) -> HookedDLM:
    return official("dplm")


@pytest.fixture(scope="module", params=["p2", "dplm"])
def case(request: pytest.FixtureRequest, model: Any, dplm: HookedDLM) -> tuple[HookedDLM, Any, Plan]:
    """A model, prompts, and a plan under which commits are undone."""
    return (model("Dream"), PROMPTS, P2) if request.param == "p2" else (dplm, PROTEINS, GUMBEL)


def run(dlm: HookedDLM, prompts: Any, plan: Plan, **options: Any) -> sl.Run:
    return denoise(dlm, prompts, plan, seed=3, progress=False, **options)


def test_so_many_positions_are_masked_after_each_step_and_commits_are_undone(case: Any) -> None:
    dlm, prompts, plan = case
    undone = 0
    steps = list(denoising_steps(dlm, prompts, plan, seed=3))
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        assert step.remasked is not None
        undone += int(step.remasked.sum())
        again, masked = step.remasked, step.canvas.masked
        assert not (again & (masked | step.committed)).any()
        assert (step.committed <= masked).all()
        assert (step.tokens[again] == dlm.ids.mask).all()
        kept = ~again & ~step.committed
        assert torch.equal(step.tokens[kept], step.canvas.tokens[kept])
        left = (masked & ~step.committed) | again
        assert after is None or torch.equal(after.canvas.masked, left)
        for row, total in enumerate(prepare(dlm, prompts, plan).canvas.masked.sum(-1).tolist()):
            if step.active[row]:
                assert int(left[row].sum()) == math.floor(total * (1 - (step.index + 1) / plan.steps) + 1e-6)
    assert undone > 5


def test_p2_masks_the_least_likely_of_the_drawn_tokens(model: Any) -> None:
    """By its formula, at temperature 0: the likeliest token and its probability at every position to be filled."""
    dlm = model("Dream")
    for step in denoising_steps(dlm, PROMPTS[0], dataclasses.replace(P2, temperature=0.0)):
        p = step.logits[0].double().softmax(-1)[3:]
        best = p.index_fill(-1, torch.tensor([MASK]), 0.0).max(-1)
        count = math.floor(9 * (1 - (step.index + 1) / 7) + 1e-6)
        lowest = {3 + int(place) for place in best.values.argsort()[:count]}
        masked = {place for place in range(3, 12) if int(step.tokens[0, place]) == MASK}
        assert masked == lowest
        committed = step.committed[0].nonzero()[:, 0].tolist()
        assert [int(step.tokens[0, place]) for place in committed] == [
            int(best.indices[place - 3]) for place in committed
        ]


def test_dplm_never_chooses_special_tokens_and_x(dplm: HookedDLM) -> None:
    never = {dplm.tokenizer.get_vocab()[token] for token in ("<mask>", "X", "<pad>", "<cls>", "<eos>")}
    assert never == {32, 24, 1, 0, 2}
    plan = dataclasses.replace(GUMBEL, temperature=30.0, steps=3, allow_mask=True)
    drawn = set()
    for seed in range(30):
        for step in denoising_steps(dplm, PROTEINS[0], plan, seed=seed):
            drawn |= set(step.predicted[step.canvas.masked].tolist())
    assert not drawn & never
    assert len(drawn) == 33 - len(never)


def test_commit_step_is_the_last_commit_and_the_record_shows_all(case: Any) -> None:
    dlm, prompts, plan = case
    result = run(dlm, prompts, plan, probes=[ReceivedAttention()])
    steps = list(denoising_steps(dlm, prompts, plan, seed=3))
    record, undone = result.record, 0
    for row in range(len(prompts)):
        masked = record["masked"].to_numpy()[row]
        for key in range(int((record["token"][row] >= 0).sum())):
            hidden = np.flatnonzero(masked[:, key] == 1)
            assert int(record["commit_step"][row, key]) == (hidden[-1] if len(hidden) else -1)
            undone += int((np.diff(masked[:, key][masked[:, key] >= 0]) > 0).sum())
    assert undone == sum(int(one.places.sum()) for one in result.undone) > 5
    at = result.commit_step
    for step in steps:
        here = at == step.index
        assert torch.equal(result.predicted[here], step.predicted[here])
        assert torch.equal(result.tokens[here], step.tokens[here])
        torch.testing.assert_close(result.confidence[here], step.confidence[here])
    for one in result.undone:  # what stood there, and since when
        assert torch.equal(steps[one.step].canvas.tokens[one.places], one.tokens)
        for token, since, (row, place) in zip(one.tokens, one.since, one.places.nonzero(), strict=True):
            assert steps[int(since)].committed[row, place]
            assert steps[int(since)].tokens[row, place] == token


def test_texts_at_a_step_are_of_the_tokens_that_stood_there_then(case: Any) -> None:
    dlm, prompts, plan = case
    record = run(dlm, prompts, plan, probes=[ReceivedAttention()]).record
    canvas, masked, shown = record["canvas"].to_numpy(), record["masked"].to_numpy(), texts_at(record).to_numpy()
    there = masked == 0
    assert shown[there].tolist() == dlm.token_strings(canvas[there].tolist())
    final = np.broadcast_to(record["text"].to_numpy()[:, None], shown.shape)
    assert (shown[there] != final[there]).any()
    assert shown[masked == 1].tolist() == final[masked == 1].tolist()
    assert json.loads(record.attrs["provenance"])["undone"]
    tokens = set(rates.sink_tokens(record, sl.SinkRule(-1.0), top=None)["token"])
    assert tokens == {*shown[there], "[MASK]"}
    assert norms.key_types(record).shape == shown.shape
    assert rates.classes(record).shape == shown.shape
    view = view_of(record, 0, sl.SinkRule())
    for step, row in enumerate(view.shown):
        assert [text for text in row if text not in ("[MASK]", "")] == [
            safe(text) for text, hidden in zip(shown[0, step], masked[0, step], strict=True) if hidden == 0
        ]


def test_a_run_without_undone_commits_says_nothing_of_them(model: Any) -> None:
    result = run(model("Dream"), PROMPTS, Plan(new_tokens=4))
    assert result.undone == ()
    assert "undone" not in json.loads(result.record.attrs["provenance"])
    assert texts_at(result.record).sizes["step"] == 1
    assert all(step.remasked is None for step in denoising_steps(model("Dream"), PROMPTS, Plan(new_tokens=4)))


def test_a_run_is_followed_through_what_it_undid(case: Any) -> None:
    dlm, prompts, plan = case
    first = run(dlm, prompts, plan)
    again = denoise(
        dlm, prompts, plan, seed=11, interventions=[MaskSinks(SameStep(top_k=1))], follow=first, progress=False
    )
    for name in ("token", "commit_step", "canvas", "masked"):
        np.testing.assert_array_equal(again.record[name], first.record[name])
    assert len(again.undone) == len(first.undone)
    for one, other in zip(again.undone, first.undone, strict=True):
        assert one.step == other.step
        assert all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


def test_groups_of_a_batch_follow_what_was_undone(case: Any) -> None:
    dlm, prompts, plan = case
    trajectory = Trajectory.of(prepare(dlm, prompts, plan).canvas)
    for step in denoising_steps(dlm, prompts, plan, seed=3):
        trajectory.add(step)
    twice = trajectory.repeated(2)
    again = denoise(dlm, [*prompts, *prompts], plan, seed=8, follow=twice, progress=False)
    assert torch.equal(again.tokens, twice.tokens)
    assert torch.equal(again.commit_step, twice.commit_step)
    assert [one.step for one in again.undone] == [one.step for one in trajectory.undone]


def test_a_replay_and_a_saved_record_are_the_same(case: Any, tmp_path: Path) -> None:
    dlm, prompts, plan = case
    first = run(dlm, prompts, plan, save_to=tmp_path / "record.nc")
    record = sl.open(tmp_path / "record.nc")
    again = sl.replay(record, dlm, progress=False)
    np.testing.assert_array_equal(again.record["canvas"], first.record["canvas"])


def test_a_row_does_not_depend_on_its_batch(case: Any) -> None:
    dlm, prompts, plan = case
    plans = [plan, *([dataclasses.replace(plan, resample=0.25)] if dlm.family.name == "DPLM" else [])]
    for each in plans:
        together = run(dlm, prompts, each)
        for row, prompt in enumerate(prompts):
            alone = run(dlm, prompt, each)
            size = alone.tokens.shape[1]
            assert torch.equal(together.tokens[row, -size:], alone.tokens[0])
            assert torch.equal(together.commit_step[row, -size:], alone.commit_step[0])


def test_broken_off_what_is_masked_again_is_not_committed(case: Any) -> None:
    dlm, prompts, plan = case
    trajectory = Trajectory.of(prepare(dlm, prompts, plan).canvas)
    for step in denoising_steps(dlm, prompts, plan, seed=3):
        trajectory.add(step)
        masked = trajectory.tokens == dlm.ids.mask
        assert torch.equal(trajectory.committed, trajectory.filled & ~masked)
        assert (trajectory.predicted[masked] == -1).all()
        assert trajectory.confidence[masked].isnan().all()


def test_forced_tokens_are_written_whenever_a_place_is_committed(model: Any) -> None:
    force = [list(range(10, 19))] * 3
    result = run(model("Dream"), PROMPTS, P2, force=force)
    assert result.undone
    assert result.tokens[:, -9:].tolist() == force
    steps = denoising_steps(model("Dream"), PROMPTS, P2, seed=3, force=force)
    for step in steps:
        response = step.tokens[:, -9:]
        assert ((response == MASK) | (response == torch.tensor(force))).all()


def test_an_ablation_measures_at_the_canvases_of_the_unedited_run(model: Any) -> None:
    plan = Plan(new_tokens=6, sampler="p2")
    edits = {"cut": MaskSinks(SameStep(top_k=1))}
    result = sl.ablate(
        model("Dream"), PROMPTS, edits, plan, metrics=["kl", "agreement", "order"], controls=[], progress=False
    )
    assert {score["metric"] for score in result.scores} == {"kl", "agreement", "order"}
    clean = [score["value"] for score in result.scores if score["metric"] == "kl" and score["condition"] == "unmasked"]
    assert all(abs(value) < 1e-6 for value in clean)


# Plans.

REFUSED = [
    (Plan(new_tokens=8, sampler="p2", remasking="entropy"), r"remasking='entropy': the sampler 'p2' masks the least"),
    (Plan(new_tokens=8, sampler="p2", threshold=0.5), r"threshold=0\.5: with sampler='p2' the step says"),
    (Plan(new_tokens=8, sampler="p2", block_length=4), r"the sampler 'p2' has no blocks"),
    (Plan(new_tokens=8, sampler="p2", eps=0.1), r"eps=0\.1 needs sampler='dream' or 'ddpm_cache'"),
    (Plan(new_tokens=8, sampler="p2", alg_temp=0.5), r"alg_temp=0\.5 needs sampler='dream'; 'p2' does not use it"),
    (Plan(new_tokens=8, sampler="p2", resample=0.5), r"resample=0\.5 needs sampler='dplm'"),
    (Plan(new_tokens=8, sampler="p2", suppress_eos="both"), r"suppress_eos='both' needs sampler='llada'"),
    (Plan(new_tokens=8, sampler="dplm"), r"sampler='dplm' draws residues, and .*Dream\) is no protein model"),
]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(("plan", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refuses_what_the_samplers_cannot_do(model: Any, plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        next(denoising_steps(model("Dream"), PROMPTS, plan))


@pytest.fixture
def nameless(model: Any) -> HookedDLM:
    """A protein model without a tokenizer, loaded before any test forbids forwards."""
    return model("DPLM")


@pytest.mark.usefixtures("dplm", "nameless", "no_forward")
def test_refuses_what_dplm_cannot_do(dplm: HookedDLM, nameless: HookedDLM) -> None:
    def refused(plan: Plan, message: str, dlm: HookedDLM = dplm, **more: Any) -> None:
        with pytest.raises(PlanError, match=message):
            next(denoising_steps(dlm, PROTEINS, plan, **more))

    refused(Plan(new_tokens=0, top_p=0.9), r"top_p=0\.9 needs sampler='dream' or")
    refused(Plan(new_tokens=0, resample=0.25), r"resample=0\.25 needs a temperature and no guidance: temperature=0,")
    refused(Plan(new_tokens=0, resample=0.25, temperature=1.0, cfg_scale=1.0), r"resample=0\.25 .* cfg_scale=1")
    edit = MaskSinks(SameStep(top_k=1))
    refused(Plan(new_tokens=0, resample=0.25, temperature=1.0), r"resample=0\.25: edits", interventions=[edit])
    refused(Plan(new_tokens=8), r"the tokenizer of .* does not say which are <mask>, X, <pad>", nameless)
    for value in (0.0, 1.0, -0.1):
        with pytest.raises(PlanError, match=r"resample=.* must be in \(0, 1\)"):
            Plan(resample=value)


def test_defaults_are_the_official_ones(model: Any, dplm: HookedDLM) -> None:
    dcoder = Plan(new_tokens=8).resolved(model("open-dcoder"))
    assert (dcoder.sampler, dcoder.remasking, dcoder.eps) == ("p2", "low_confidence", None)
    other = Plan(new_tokens=8, sampler="dream").resolved(model("open-dcoder"))
    assert (other.sampler, other.remasking) == ("dream", "entropy")
    assert (dplm.family.name, Plan(new_tokens=0).resolved(dplm).sampler) == ("DPLM", "dplm")
    assert Plan(new_tokens=8).resolved(model("ESM-2")).sampler == "llada"
    assert Plan(new_tokens=4, steps=100).resolved(model("open-dcoder")).steps == 100
    assert Plan(new_tokens=8, sampler="p2", steps=3, resample=None).for_causal() == Plan(new_tokens=8)


@pytest.mark.parametrize("sampler", ["p2", "dplm"])
def test_steps_may_be_more_than_tokens_and_gaps(sampler: str, model: Any, dplm: HookedDLM) -> None:
    dlm, prompts = (model("Dream"), [[5, MASK, 9, MASK], [MASK, 4]]) if sampler == "p2" else (dplm, PROTEINS)
    for steps in (None, 1, 40):
        result = run(dlm, prompts, Plan(new_tokens=0, steps=steps, sampler=sampler, temperature=1.0))
        assert bool((result.tokens != dlm.ids.mask).all())
