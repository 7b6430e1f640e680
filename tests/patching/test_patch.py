"""What `patch` refuses, keeps, resumes and records."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens as sl
from sinklens.errors import CheckFailed, ContentError, PatchError, PlanError, PromptError, ScopeError
from sinklens.patching import run

CLEAN, CORRUPT = "pante dolko xy", "pante talma xy"
PLAN = sl.Plan(new_tokens=4)


@pytest.fixture(scope="module")
def dlm() -> sl.HookedDLM:
    return sl.HookedDLM.from_pretrained("tiny-dlm")


def patch(dlm: sl.HookedDLM, *patches: Any, plan: sl.Plan = PLAN, **options: Any) -> Any:
    given = {"clean": CLEAN, "corrupt": CORRUPT, "progress": False, **options}
    return sl.patch(dlm, given.pop("clean"), given.pop("corrupt"), plan, *patches, **given)


@pytest.mark.usefixtures("no_forward")
def test_what_cannot_be_compared_is_refused_before_a_forward(dlm: sl.HookedDLM) -> None:
    longer = "pante dolko talma xy"
    with pytest.raises(PromptError, match=r"clean: 5 tokens, .*'dolko', 'talma'.*corrupt: 4 tokens, .*'talma'"):
        patch(dlm, clean=longer)
    with pytest.raises(PromptError, match="the same tokens"):
        patch(dlm, corrupt=CLEAN)
    with pytest.raises(PromptError, match="2 clean prompts need as many corrupt ones; there are 1"):
        patch(dlm, clean=[CLEAN, CLEAN])
    with pytest.raises(PromptError, match="answers must have as many tokens"):
        patch(dlm, answers=("dolko", "talma xa"))
    with pytest.raises(PromptError, match="the answers are the same"):
        patch(dlm, answers=("dolko", "dolko"))
    with pytest.raises(PromptError, match="need as many answers; there are 2"):
        patch(dlm, answers=(["dolko", "dolko"], "talma"))
    with pytest.raises(PlanError, match="cfg_scale=1"):
        patch(dlm, plan=sl.Plan(new_tokens=4, cfg_scale=1.0))
    gaps = sl.Plan(new_tokens=0)
    with pytest.raises(PromptError, match="gaps at other positions"):
        patch(dlm, clean="xy <|mask|> xa wi", corrupt="xy xa <|mask|> wi", plan=gaps)
    for wrong in ({"layers": 7}, {"positions": [99]}, {"site": "values", "by": "head", "heads": [4]}):
        with pytest.raises(ScopeError, match=r"layer 7|position 99|head 4"):
            patch(dlm, sl.Patches(**wrong))


def test_fields_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ScopeError, match=r"'mlp' has no heads; .* values, mixed, pattern"):
        sl.Patches("mlp", "head")
    with pytest.raises(ScopeError, match="all heads are patched at once"):
        sl.Patches("values", heads=[0])
    with pytest.raises(ScopeError, match="all positions are patched at once"):
        sl.Patches("values", "head", positions=[0])
    with pytest.raises(ScopeError, match="commits='own'"):
        sl.Patches(outcome="end", commits="clean")
    with pytest.raises(ContentError, match="give it a name"):
        sl.Patches(metric=lambda logits, canvas: logits[:, 0, 0])
    with pytest.raises(ContentError, match="'residuum' is unknown"):
        sl.Patches("residuum")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ContentError, match="above 0"):
        sl.Patches(least=0)


def test_runs_that_do_not_differ_are_an_error_and_no_nan(dlm: sl.HookedDLM) -> None:
    with pytest.raises(PatchError, match="both runs write the same"):
        patch(dlm, clean="xy xy pante dolko xa dolko xa", corrupt="xe xy pante dolko xa dolko xa")
    with pytest.raises(PatchError, match=r"at the steps \[0, 1, 2, 3\] the metric differs by less than least=1000"):
        patch(dlm, sl.Patches(least=1000))
    record = patch(dlm)
    gaps = abs(record["clean"] - record["corrupt"])[0].to_numpy()
    least = float(np.sort(gaps)[0]) + 1e-6
    keep = [int(step) for step in record["step"] if gaps[int(step)] >= least]
    with pytest.raises(PatchError, match=re.escape(f"Say Patches(steps={keep})")):
        patch(dlm, sl.Patches(least=least))
    chosen = patch(dlm, sl.Patches(least=least, steps=keep))
    assert chosen["step"].to_numpy().tolist() == keep
    np.testing.assert_array_equal(chosen["effect"], record["effect"].sel(step=keep))
    with pytest.raises(ScopeError, match="no position of the answer"):  # decided at step 0 already
        patch(dlm, sl.Patches(steps=[3]), answers=("dolko", "talma"), plan=sl.Plan(new_tokens=4, block_length=1))


def test_other_numbers_of_masks_are_an_error(dlm: sl.HookedDLM) -> None:
    plan, prompts = sl.Plan(new_tokens=12, threshold=0.4), {"clean": "pante dolko xy", "corrupt": "xe pante talma"}
    with pytest.raises(PlanError, match=r"at step \d the clean run has \d masks and the corrupt one \d"):
        patch(dlm, plan=plan, **prompts)
    record = patch(dlm, sl.Patches(commits="clean", layers=[0]), plan=plan, **prompts)
    np.testing.assert_array_equal(record["masked_clean"], record["masked_corrupt"])


def test_a_batch_changes_no_number_beyond_rounding(dlm: sl.HookedDLM) -> None:
    for patches in (sl.Patches("mixed", "both"), sl.Patches(outcome="end", positions=[0, 2, -1])):
        whole, alone = (patch(dlm, patches, batch_size=size) for size in (32, 1))
        np.testing.assert_allclose(whole["patched"], alone["patched"], atol=1e-5)


def test_several_pairs_are_what_each_is_alone(dlm: sl.HookedDLM) -> None:
    clean, corrupt = ["pante dolko xy", "molma pante talko xe"], ["pante talma xy", "molma pante tuste xe"]
    both = patch(dlm, clean=clean, corrupt=corrupt)
    for index, pair in enumerate(zip(clean, corrupt, strict=True)):
        alone = patch(dlm, clean=pair[0], corrupt=pair[1])
        mine = both["patched"][index].sel(step=alone["step"], position=alone["position"])
        np.testing.assert_array_equal(mine, alone["patched"][0])
    assert np.isnan(both["patched"][0].isel(position=-1)).all()


class Stop(Exception):
    """Some error in the middle."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("outcome", ["step", "end"])
def test_a_stopped_call_keeps_what_was_finished_and_goes_on_to_the_same_bits(
    dlm: sl.HookedDLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException], outcome: Any
) -> None:
    patches, options = sl.Patches("mixed", "head", outcome=outcome), {"batch_size": 3}
    whole = patch(dlm, patches, **options)
    inner, done = run.Sweep._run, []

    def count(self: Any, work: Any) -> list[float]:
        if len(done) == 5:
            raise error
        done.append(work)
        return inner(self, work)

    monkeypatch.setattr(run.Sweep, "_run", count)
    with pytest.raises(error) as stopped:
        patch(dlm, patches, save_to=tmp_path / "patches", **options)
    partly = stopped.value.record  # pyright: ignore[reportAttributeAccessIssue]
    assert partly.attrs["finished"] == 0
    there = np.isfinite(partly["patched"].to_numpy())
    assert there.sum() == sum(len(work.rows) for work in done) < there.size
    np.testing.assert_array_equal(partly["patched"].to_numpy()[there], whole["patched"].to_numpy()[there])
    before = list(done)
    done[:] = [None] * -1000  # never again
    monkeypatch.setattr(run.Sweep, "_run", lambda self, work: done.append(work) or inner(self, work))
    rest = patch(dlm, patches, save_to=tmp_path / "patches", **options)
    assert rest.identical(whole)
    assert not set(before) & set(done)
    done.clear()
    assert patch(dlm, patches, save_to=tmp_path / "patches", **options).identical(whole)
    assert not done
    patch(dlm, patches, save_to=tmp_path / "patches", seed=1, **options)  # something else: nothing is taken from there
    assert done


def test_the_row_that_is_not_patched_guards_each_forward(dlm: sl.HookedDLM, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = run.logits_of

    def other(*args: Any) -> Tensor:
        logits = inner(*args)
        return logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)) * (len(logits) > 1)

    monkeypatch.setattr(run, "logits_of", other)
    with pytest.raises(CheckFailed, match="the row that was not patched"):
        patch(dlm)


def test_a_function_can_be_the_metric(dlm: sl.HookedDLM) -> None:
    def masks(logits: Tensor, canvas: sl.Canvas) -> Tensor:
        assert logits.shape[:2] == canvas.tokens.shape
        return (logits.logsumexp(-1) * canvas.masked).sum(-1)

    record = patch(dlm, sl.Patches("mlp", metric=sl.named("masses of masked places", masks)))
    step = next(iter(sl.denoising_steps(dlm, CLEAN, PLAN)))
    assert float(record["clean"][0, 0]) == pytest.approx(float(step.logits[0, -4:].logsumexp(-1).sum()), abs=1e-4)
    with pytest.raises(PatchError, match=r"gave \(1, 8\); it must give a tensor of shape \(1,\)"):
        patch(dlm, sl.Patches(metric=sl.named("rows", lambda logits, canvas: logits[..., 0])))
    with pytest.raises(PatchError, match="is nan at step 0"):
        patch(dlm, sl.Patches(metric=sl.named("none", lambda logits, canvas: logits[:, 0, 0] * np.nan)))


@pytest.mark.parametrize("leader", ["clean", "corrupt"])
def test_commits_can_be_those_of_one_run(dlm: sl.HookedDLM, leader: Any) -> None:
    record = patch(dlm, sl.Patches(commits=leader))
    np.testing.assert_array_equal(record["masked_clean"], record["masked_corrupt"])
    own = patch(dlm)
    np.testing.assert_array_equal(record[f"canvas_{leader}"], own[f"canvas_{leader}"].sel(step=record["step"]))
    behind = record["canvas_clean"][0, :, 4:].to_numpy()
    np.testing.assert_array_equal(behind, record["canvas_corrupt"][0, :, 4:].to_numpy())


def test_the_directions_swap_the_runs(dlm: sl.HookedDLM) -> None:
    noising = patch(dlm, sl.Patches("mlp", direction="noising"))
    swapped = patch(dlm, sl.Patches("mlp"), clean=CORRUPT, corrupt=CLEAN)
    np.testing.assert_allclose(noising["effect"], swapped["effect"], atol=1e-5)


def test_a_record_is_kept_and_shown(dlm: sl.HookedDLM, tmp_path: Path) -> None:
    record = patch(dlm, sl.Patches("values", "both"))
    assert sl.open(sl.save(record, tmp_path / "patches.nc")).identical(record)
    assert record["effect"].dims == ("prompt", "step", "layer", "kv_head", "position")
    figure: Any = sl.plots.patching(record, step=1, head=2)
    assert [each.visible for each in figure.data] == [False, True, False, False]
    np.testing.assert_array_equal(figure.data[1].z, record["effect"][0, 1, :, 2])
    by_head: Any = sl.plots.patching(patch(dlm, sl.Patches("pattern", "head")))
    assert by_head.data[0].z.shape == (2, 4)
    assert sl.plots.patching(patch(dlm)).layout.yaxis.ticktext[-1] == "2 (end)"
    assert (
        "look like these" not in sl.plots.patching(record.assign(effect=record["effect"].clip(-1, 1))).layout.title.text
    )
    beyond: Any = sl.plots.patching(record.assign(effect=record["effect"] * 0 - 5.5))
    assert (beyond.data[0].zmin, beyond.data[0].zmax) == (-1, 1)
    assert "Effects reach from -5.5 to -5.5" in beyond.layout.title.text.replace("<br>", " ")
    with pytest.raises(ValueError, match="head 9 does not exist"):
        sl.plots.patching(record, head=9)
    with pytest.raises(ValueError, match=r"no record of sinklens\.patch"):
        sl.plots.patching(sl.planted("static").record)


@pytest.mark.parametrize("outcome", ["step", "end"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_estimate_counts_patches_and_forwards(
    dlm: sl.HookedDLM,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., sl.HookedDLM],
    outcome: Any,
    causal: bool,
) -> None:
    """By hand: 2 layers, and 7 or (baseline) 3 to 6 positions; batches of 4."""
    model = tiny_model("Llama") if causal else dlm
    prompts = ([0, 7, 9], [0, 8, 9])
    patches = sl.Patches("mlp", outcome=outcome)
    found = sl.patching.estimate(model, *prompts, PLAN, patches, batch_size=4)
    widths = [3, 4, 5, 6] if causal else [7] * 4
    batches = [2 * -(-width // 4) for width in widths]
    behind = [4, 3, 2, 1] if outcome == "end" else [1] * 4
    assert found.patches == 2 * sum(widths)
    assert found.forwards == sum(a * b for a, b in zip(batches, behind, strict=True))
    assert found.seconds > 0
    assert f"{found.forwards} forwards" in str(found)
