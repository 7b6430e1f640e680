"""The paired ablation: what its scores hold, what its numbers are, and what survives an interrupt or a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinklens import (
    AblationResult,
    HookedDLM,
    MaskSinks,
    Plan,
    PreviousStep,
    SameStep,
    SinkRule,
    Where,
    ZeroSinks,
    ablate,
    denoise,
)
from sinklens.decoding import loop
from sinklens.errors import NeverExposed, PlanError, RecordError, SaveError, ScopeError
from sinklens.experiments import runner
from sinklens.experiments.ablation import doses
from sinklens.experiments.outcomes import METRICS
from sinklens.ground_truth.models import PlantedModel, planted_model
from sinklens.hooks import Canvas, Edit, Hook, Memory
from sinklens.interventions import (
    BiasSinks,
    InOrder,
    KeepKeys,
    MeanValue,
    NoiseValue,
    NullKey,
    Pin,
    Redistribute,
    ScaleSinks,
    SinkToken,
    ZeroValue,
    control,
)
from sinklens.probes import Pattern
from sinklens.tasks import Echo, Example, Jsonl, Prompts, Score, Task

PLAN = Plan(new_tokens=8, block_length=8, steps=4, temperature=1.0)
N = 6
KEY = ("prompt", "seed", "condition", "kind", "metric")
COUNTS = ("edited_keys", "edited_mass")
BOTH = ("forced_accuracy", "accuracy")


@pytest.fixture(scope="module")
def dlm() -> HookedDLM:
    """The bundled diffusion twin."""
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture(scope="module")
def arm() -> HookedDLM:
    """The bundled autoregressive twin."""
    return HookedDLM.from_pretrained("tiny-arm")


@pytest.fixture(scope="module")
def task() -> Echo:
    """A few short texts."""
    return Echo(N, seed=3, prompt_tokens=12, answer_tokens=8)


def edits() -> dict[str, Any]:
    """Two conditions that do something."""
    return {"top-1": MaskSinks(PreviousStep(top_k=1)), "zero": ZeroSinks(SameStep(top_k=3), where=Where(layers=[0]))}


def run(model: HookedDLM, task: Any, conditions: Any = None, plan: Plan = PLAN, **options: Any) -> AblationResult:
    """`ablate` without a progress bar."""
    return ablate(model, task, edits() if conditions is None else conditions, plan, progress=False, **options)


def table(rows: list[dict[str, Any]]) -> dict[Any, Any]:
    """Rows by key, comparable: nan is nan, and what is summed up in another order may be rounded otherwise."""
    out = {}
    for row in rows:
        key = tuple(row[name] for name in KEY)
        assert key not in out, f"{key} twice"
        out[key] = {
            name: pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True) if isinstance(value, float) else value
            for name, value in row.items()
        }
    return out


def by_key(rows: list[dict[str, Any]]) -> dict[Any, Any]:
    """Rows by key, as they are."""
    return {tuple(row[name] for name in KEY): row for row in rows}


def same(ours: AblationResult, theirs: AblationResult) -> None:
    """The same rows."""
    assert by_key(ours.scores) == table(theirs.scores)
    assert len(ours.scores) == len(theirs.scores)


@pytest.fixture(scope="module")
def whole(dlm: HookedDLM, task: Echo) -> AblationResult:
    """An uninterrupted run, for comparison."""
    return run(dlm, task, seeds=[0, 5])


@pytest.fixture(scope="module")
def half(whole: AblationResult) -> AblationResult:
    """Its second seed alone."""
    return AblationResult([row for row in whole.scores if row["seed"] == 5])


FORCED: dict[str, Any] = {"seeds": [5], "metrics": ("forced_accuracy",), "batch_size": 5}  # one prompt per batch


def of_forced(result: AblationResult) -> AblationResult:
    """Its forced accuracies alone."""
    return AblationResult([row for row in result.scores if row["metric"] == "forced_accuracy"])


# What the rows are.


def test_one_row_per_prompt_seed_condition_kind_and_metric(whole: AblationResult, task: Echo) -> None:
    arms = [("unmasked", "unmasked"), ("top-1", "sinks"), ("top-1", "random"), ("zero", "sinks"), ("zero", "random")]
    expected = {(p, s, c, k, m) for p in range(N) for s in (0, 5) for c, k in arms for m in BOTH}
    assert set(table(whole.scores)) == expected
    assert len(whole.scores) == len(expected)
    assert whole.finished
    for row in whole.scores:
        assert row["model"] == "tiny-dlm"
        assert row["task"] == task.name
        assert row["name"] == task[row["prompt"]].name
        assert (row["edited_keys"] == 0) == (row["kind"] == "unmasked")
        assert (row["edited_mass"] == 0) == (row["kind"] == "unmasked")
        assert math.isnan(row["value"]) == (row["places"] == 0)
        if row["places"]:
            assert 0 <= row["value"] <= 1
            assert row["value"] * row["places"] == pytest.approx(round(row["value"] * row["places"]))


def test_forced_places_are_the_same_under_every_condition(whole: AblationResult) -> None:
    totals: dict[int, set[int]] = {}
    for row in of_forced(whole).scores:
        totals.setdefault(row["prompt"], set()).add(row["places"])
    assert all(len(found) == 1 for found in totals.values())


def naive_scores(model: HookedDLM, task: Any, plan: Plan, seed: int, index: int, edits: list[Any]) -> Any:
    """(value, places) of one prompt, forced and generated, from plain denoise calls of this prompt alone."""
    example = task[index]
    options = {"interventions": edits, "seed": seed * 1_000_003 + index, "progress": False}
    free = denoise(model, example.prompt, plan, **options)
    score = task.score(example, free.completions[0])
    truth = model.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    forced = denoise(model, example.prompt, plan, force=[truth], **options)
    said = forced.predicted[0][forced.filled[0]].tolist()
    counts = task.checkable(example, truth)
    right = sum(a == b for a, b, place in zip(said, truth, counts, strict=True) if place)
    return (right / sum(counts), sum(counts)), (score.accuracy, score.total)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_rows_equal_plain_denoising_and_scoring(name: str, dlm: HookedDLM, arm: HookedDLM, task: Echo) -> None:
    model = dlm if name == "tiny-dlm" else arm
    plan = PLAN if model is dlm else Plan(new_tokens=8, temperature=1.0)
    found = by_key(run(model, task, {"cut": MaskSinks(PreviousStep(top_k=2))}, plan).scores)
    for index in range(N):
        for condition, kind, parts in (
            ("unmasked", "unmasked", []),
            ("cut", "sinks", [MaskSinks(PreviousStep(top_k=2))]),
            ("cut", "random", [control(MaskSinks(PreviousStep(top_k=2)))]),
        ):
            expected = naive_scores(model, task, plan, 0, index, parts)
            for metric, (value, places) in zip(BOTH, expected, strict=True):
                row = found[index, 0, condition, kind, metric]
                assert row["value"] == pytest.approx(value, nan_ok=True)
                assert row["places"] == places


def test_conditions_change_something(whole: AblationResult) -> None:
    """Otherwise the tests that compare rows would compare nothing."""
    found = by_key(whole.scores)
    for condition, kind in (("top-1", "sinks"), ("top-1", "random"), ("zero", "sinks")):
        changed = [
            key
            for key, row in found.items()
            if key[2:4] == (condition, kind)
            and (row["value"], row["places"])
            != tuple(found[*key[:2], "unmasked", "unmasked", key[4]][name] for name in ("value", "places"))
        ]
        assert changed, (condition, kind)


@pytest.mark.parametrize("batch_size", [1, 4, 13])
def test_the_batch_size_changes_no_row(dlm: HookedDLM, task: Echo, half: AblationResult, batch_size: int) -> None:
    same(run(dlm, task, seeds=[5], batch_size=batch_size), half)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 30])
def test_a_forward_has_no_more_rows_than_the_batch_size(
    dlm: HookedDLM, task: Echo, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all conditions; two at least, the unedited row and an edited one."""
    rows, forward = [], HookedDLM.__call__

    def count(self: HookedDLM, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(tokens))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(HookedDLM, "__call__", count)
    run(dlm, task, batch_size=batch_size, metrics=["agreement", "kl"], plan=Plan(8, steps=2))
    assert max(rows) <= max(batch_size, 2)


def test_conditions_share_forwards(dlm: HookedDLM, task: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, forward = [], HookedDLM.__call__

    def count(self: HookedDLM, *args: Any, **kwargs: Any) -> Any:
        forwards.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HookedDLM, "__call__", count)
    run(dlm, task, metrics=("accuracy",))
    assert len(forwards) == 4


def test_the_batch_size_changes_no_row_where_rows_end_at_different_steps(dlm: HookedDLM, arm: HookedDLM) -> None:
    """A row that is done is edited no more, however long the others of its batch go on."""
    gaps, texts = Echo(4, seed=0, gaps=0.5), Echo(4, seed=1, prompt_tokens=12, answer_tokens=30)
    conditions = {"top-1": MaskSinks(PreviousStep(top_k=1))}
    for model, task, plan in ((dlm, gaps, Plan(new_tokens=0)), (arm, gaps, Plan(new_tokens=0)), (arm, texts, Plan(30))):
        options = {"metrics": ("accuracy", "kl", "order"), "plan": plan, "controls": None}
        alone, together = (run(model, task, conditions, batch_size=size, **options) for size in (2, 8))
        same(alone, together)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_steps_that_some_prompts_never_reach(name: str, dlm: HookedDLM, arm: HookedDLM) -> None:
    """A batch of prompts that take fewer steps than an edit's scope begins with is run, and not edited."""
    model, gaps = dlm if name == "tiny-dlm" else arm, Echo(6, seed=0, gaps=0.5)
    steps = [len(gaps[index].answer.split(" ")) for index in range(6)]
    late = sorted(steps)[2]
    assert min(steps) < late < max(steps)
    first, second = ZeroSinks(SameStep(top_k=1), where=Where(steps=late)), MaskSinks(where=Where(steps=[0]))
    conditions = {"late": MaskSinks(SameStep(top_k=1), where=Where(steps=late)), "both": InOrder(second, first)}
    options = {"plan": Plan(new_tokens=0), "metrics": ("kl", "accuracy"), "controls": None}
    alone, together = (run(model, gaps, conditions, batch_size=size, **options) for size in (1, 18))
    same(alone, together)
    for score in alone.scores:
        if score["condition"] == "late":
            assert (score["edited_keys"] > 0) == (steps[score["prompt"]] > late)


def test_without_controls_there_are_no_random_rows(dlm: HookedDLM, task: Echo) -> None:
    result = run(dlm, task, controls=None, metrics=("accuracy",))
    assert {row["kind"] for row in result.scores} == {"unmasked", "sinks"}
    effect = result.effect("top-1", "accuracy")
    assert effect.control is None
    assert effect.to_control is None
    assert effect.to_control_interval is None
    assert effect.to_control_p is None
    assert result.effects()["to_control_p_holm"].isna().all()


def test_gaps_are_filled_under_force(dlm: HookedDLM, arm: HookedDLM) -> None:
    """Answers of different lengths are right where there are gaps to fill."""
    gaps = Echo(4, seed=0, gaps=0.5)
    for model in (dlm, arm):
        result = run(model, gaps, {"top-1": MaskSinks(SameStep(top_k=1))}, Plan(new_tokens=0))
        for row in result.scores:
            assert row["places"] == len(gaps[row["prompt"]].answer.split(" "))


def test_an_edit_whose_steps_never_come_edits_nothing_and_this_is_said(dlm: HookedDLM, task: Echo) -> None:
    """Under a threshold a run may be over before the scope begins."""
    late = {"late": MaskSinks(PreviousStep(top_k=1), where=Where(steps=slice(7, None)))}
    plan = Plan(new_tokens=8, block_length=8, threshold=0.01)
    with pytest.raises(NeverExposed, match=r"'late' \(accuracy\), 'late' \(random, accuracy\)") as caught:
        run(dlm, task, late, plan, metrics=("accuracy",))
    result: Any = caught.value.result
    assert result.finished
    found = by_key(result.scores)
    for index in range(N):
        plain = found[index, 0, "unmasked", "unmasked", "accuracy"]
        for kind in ("sinks", "random"):
            row = found[index, 0, "late", kind, "accuracy"]
            assert (row["edited_keys"], row["edited_mass"]) == (0, 0)
            assert row["exposed"] == (0 if row["places"] else None)
            assert row["places"] == plain["places"]
            assert row["value"] == pytest.approx(plain["value"], nan_ok=True)


def test_a_condition_that_finds_nothing_is_an_error_on_resume_too(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    blind = {"blind": MaskSinks(SameStep(SinkRule(epsilon=1e6))), "top-1": MaskSinks(SameStep(top_k=1))}
    for _ in range(2):
        with pytest.raises(NeverExposed, match=r"condition 'blind' \(kl\) never met"):
            run(dlm, task, blind, save_to=tmp_path / "rows", metrics=("kl",), controls=None)


def test_the_defaults_depend_on_whether_there_are_answers(dlm: HookedDLM, task: Echo) -> None:
    cut = {"a": MaskSinks(SameStep(top_k=1))}
    assert {row["metric"] for row in run(dlm, task, cut).scores} == {"forced_accuracy", "accuracy"}
    for prompts in (["dolko xe dolko", "gake"], [[0, 20, 21], [0, 22]], torch.tensor([[0, 20], [0, 22]])):
        result = run(dlm, prompts, cut)
        assert {row["metric"] for row in result.scores} == {"agreement", "order", "kl"}
        assert {row["task"] for row in result.scores} == {"prompts(n=2)"}
        assert {row["name"] for row in result.scores} == {"prompt 0", "prompt 1"}
    assert {row["prompt"] for row in run(dlm, "dolko xe dolko", cut).scores} == {0}


def test_one_prompt_as_token_ids(dlm: HookedDLM) -> None:
    """As everywhere else, one list of token ids is one prompt."""
    result = run(dlm, [0, 20, 21], {"a": MaskSinks(SameStep(top_k=1))})
    assert {row["prompt"] for row in result.scores} == {0}


# Several conditions in one forward.


def operators(model: HookedDLM, task: Any, plan: Plan) -> dict[str, Any]:
    """One of (almost) everything, with selectors that remember and selectors that look beside."""
    causal = model.is_causal
    return {
        "mask": MaskSinks(PreviousStep(top_k=2)),
        "open": MaskSinks(SameStep(top_k=1, loop="open")),
        "before, open": ZeroSinks(PreviousStep(top_k=1, loop="open"), where=Where(layers=-1)),
        "first": ZeroSinks(PreviousStep(top_k=2, first="same"), where=Where(heads=[0, 2])),
        "bias": BiasSinks(-2.0, SameStep(top_k=1)),
        "null": NullKey(0.5),
        "scale": ScaleSinks(0.3, SameStep(top_k=2), renormalise=True),
        "value": ZeroValue(SameStep(top_k=1)),
        "mean": MeanValue(SameStep(top_k=1), queries="response" if causal else "all"),
        "noise": NoiseValue(None, SameStep(top_k=1)),
        "keep": KeepKeys(5),
        "token": SinkToken(),
        "spread": Redistribute("uniform", SameStep(top_k=1)),
        "two": InOrder(
            MaskSinks(PreviousStep(top_k=1), where=Where(layers=0)), ZeroSinks(SameStep(top_k=1), where=Where(layers=1))
        ),
        "masked": MaskSinks(SameStep(top_k=1), queries="committed" if causal else "masked", diagonal=False),
    }


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_conditions_together_equal_each_alone(name: str, dlm: HookedDLM, arm: HookedDLM) -> None:
    model, plan = (dlm, PLAN) if name == "tiny-dlm" else (arm, Plan(new_tokens=8, temperature=1.0))
    task = Uneven()
    made = operators(model, task, plan)
    options = {"metrics": list(METRICS), "controls": None, "plan": plan}
    together = by_key(run(model, task, made, **options).scores)
    seen = 0
    for condition in made:
        alone = run(model, task, {condition: operators(model, task, plan)[condition]}, **options)
        for key, row in table(alone.scores).items():
            also = {}
            if key[4] == "log_likelihood":  # see test_a_likelihood_does_not_depend_on_the_other_conditions
                names = ("value", *COUNTS) if condition == "noise" else COUNTS
                also = {name: together[key][name] for name in names}
            assert together[key] == row | also, condition
            seen += key[2] == condition
        changed = [row["value"] for row in alone.scores if (row["condition"], row["metric"]) == (condition, "kl")]
        assert max(changed) > 1e-6, condition
    assert seen == len(made) * len(METRICS) * len(task)


# another step, under all conditions of the forward. So edited_keys and edited_mass of a SameStep edit are doubled, and
# edits that draw by step (random controls, NoiseValue) draw other numbers, when such a condition is run beside it.
@pytest.mark.parametrize("what", ["counts", "random", "noise"])
def test_a_likelihood_does_not_depend_on_the_other_conditions(dlm: HookedDLM, task: Echo, what: str) -> None:
    options = {"metrics": ("log_likelihood",), "controls": "random" if what == "random" else None}
    one = {"same": NoiseValue(None, SameStep(top_k=1)) if what == "noise" else MaskSinks(SameStep(top_k=1))}
    alone = by_key(run(dlm, task, one, **options).scores)
    beside = by_key(run(dlm, task, one | {"before": MaskSinks(PreviousStep(top_k=1))}, **options).scores)
    for key, row in alone.items():
        if what == "counts":
            assert [beside[key][name] for name in COUNTS] == [row[name] for name in COUNTS]
        assert beside[key]["value"] == pytest.approx(row["value"], abs=1e-5)


@dataclass(frozen=True)
class Uneven(Task):
    """Echo texts whose prompts have different lengths."""

    answer_tokens: int = 8
    name: str = "uneven"

    @property
    def echoes(self) -> list[Echo]:
        """One example each."""
        lengths = [(at, 11 - 3 * at) for at in range(3)]
        return [Echo(1, seed=at, prompt_tokens=n, answer_tokens=self.answer_tokens) for at, n in lengths]

    def __len__(self) -> int:
        return len(self.echoes)

    def __getitem__(self, index: int) -> Example:
        return Example(self.echoes[index][0].prompt, self.echoes[index][0].answer, f"uneven {index}")

    def score(self, example: Example, completion: str) -> Score:
        """As Echo."""
        return self.echoes[0].score(example, completion)

    def checkable(self, example: Example, answer: Any) -> list[bool]:
        """As Echo."""
        return self.echoes[0].checkable(example, answer)


QUICK: dict[str, Any] = {"metrics": ("accuracy", "kl")}


def test_several_controls_and_own_ones(dlm: HookedDLM, task: Echo) -> None:
    """Each control is a condition of its own, and does what it does alone."""
    names = ("random", "same_mass", "bottom", "shifted", "same_class", "noop")
    made = {"a": MaskSinks(SameStep(top_k=2)), "b": ZeroSinks(PreviousStep(top_k=1))}
    result = run(dlm, task, made, controls=names, **QUICK)
    own = run(
        dlm, task, made, controls={f"my {each}": lambda e, each=each: control(e, each) for each in names}, **QUICK
    )
    found = by_key(result.scores)
    assert result.controls("a") == list(names)
    assert own.controls("b") == [f"my {each}" for each in names]
    renamed = {
        (*k[:3], k[3].removeprefix("my "), k[4]): r | {"kind": r["kind"].removeprefix("my ")}
        for k, r in by_key(own.scores).items()
    }
    assert renamed == table(result.scores)
    for condition, edit in made.items():
        for each in names:
            alone = run(dlm, task, {"it": control(edit, each)}, controls=None, **QUICK)
            for key, row in table(alone.scores).items():
                if key[2] == "it":
                    assert found[*key[:2], condition, each, key[4]] == row | {"condition": condition, "kind": each}
    for metric in QUICK["metrics"]:
        for control_name in names:
            effect = result.effect("a", metric, control=control_name)
            assert effect.control == control_name
    assert result.effect("a").control == "random"
    noop = [row for row in result.scores if (row["kind"], row["metric"]) == ("noop", "kl")]
    assert max(row["value"] for row in noop) < 1e-8
    assert min(row["edited_keys"] for row in noop) > 0


@pytest.mark.parametrize("controls", ["random", ["random", "bottom"]])
def test_a_string_is_one_control(dlm: HookedDLM, task: Echo, controls: Any) -> None:
    result = run(dlm, task, {"a": MaskSinks(SameStep(top_k=1))}, controls=controls, metrics=("agreement",))
    assert result.controls("a") == ([controls] if isinstance(controls, str) else controls)


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_conditions_may_share_a_selector(dlm: HookedDLM, task: Echo, loop: Any) -> None:
    selector = PreviousStep(top_k=1, loop=loop)
    shared = {"mask": MaskSinks(selector), "zero": ZeroSinks(selector)}
    found = run(dlm, task, shared, controls=None, **QUICK)
    own = {"mask": MaskSinks(PreviousStep(top_k=1, loop=loop)), "zero": ZeroSinks(PreviousStep(top_k=1, loop=loop))}
    same(found, run(dlm, task, own, controls=None, **QUICK))


def test_a_control_may_share_the_selector(dlm: HookedDLM, task: Echo) -> None:
    edit = MaskSinks(PreviousStep(top_k=1))
    found = run(dlm, task, {"a": edit}, controls={"zero": lambda e: ZeroSinks(e.selector, where=e.where)}, **QUICK)
    zero = run(dlm, task, {"a": ZeroSinks(PreviousStep(top_k=1))}, controls=None, **QUICK)
    expected = {key: row | {"kind": "zero"} for key, row in table(zero.scores).items() if key[2] == "a"}
    assert {(*k[:3], "sinks", k[4]): r for k, r in by_key(found.scores).items() if k[3] == "zero"} == expected


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    "other", [MaskSinks(SameStep(top_k=1)), MaskSinks(SameStep(SinkRule(None, top_k=1, queries="auto")))]
)
def test_one_edit_under_two_names_is_refused(dlm: HookedDLM, task: Echo, other: MaskSinks) -> None:
    both = {"a": MaskSinks(SameStep(top_k=1)), "between": ZeroSinks(), "b": other}
    with pytest.raises(ValueError, match="conditions 'a' and 'b' are one and the same edit, MaskSinks"):
        run(dlm, task, both, controls=None, **QUICK)


def test_controls_that_are_one_edit_share_a_run(dlm: HookedDLM, task: Echo, decodes: list[int]) -> None:
    """To find the same sinks and do nothing is one thing, whatever the condition does."""
    conditions = {"mask": MaskSinks(SameStep(top_k=1)), "zero": ZeroSinks(SameStep(top_k=1))}
    result = run(dlm, task, conditions, controls="noop", metrics=("accuracy",))
    assert decodes == [N * 4]  # unmasked, two conditions, one control
    found = by_key(result.scores)
    for index in range(N):
        of_mask, of_zero = (found[index, 0, name, "noop", "accuracy"] for name in conditions)
        assert str(of_mask | {"condition": "zero"}) == str(of_zero)
        assert of_mask["edited_keys"] > 0


class Own(Edit):
    """An edit that has only what the protocol asks for."""

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """No attention in the first layer."""
        return [("blocks.0.attn.hook_pattern", lambda pattern, *, hook: pattern * 0)]


def test_an_edit_of_ones_own_is_not_said_to_do_nothing(dlm: HookedDLM, task: Echo) -> None:
    result = run(dlm, task, {"own": Own()}, controls=None, metrics=("kl",))
    assert result.effect("own").value > 0.1


def test_pinned_patterns_are_an_edit(dlm: HookedDLM) -> None:
    prompts = [[0, 20, 21, 22, 23, 24, 25], [0, 30, 31, 32, 33, 34, 35]]
    cut = [MaskSinks(SameStep(top_k=1))]
    record = denoise(dlm, prompts, PLAN, probes=[Pattern()], interventions=cut, seed=[0, 1], progress=False).record
    result = run(dlm, prompts, {"pin": Pin(record)}, controls=None, metrics=("kl",))
    assert result.effect("pin").value > 1e-3


# Planted models: the answer is known.

make: Callable[..., PlantedModel] = lru_cache(planted_model)


class Words(Task):
    """The prompts of a planted model, and what it answers."""

    name, identity = "words", "the words of a planted model, word by word"

    def __init__(self, model: PlantedModel, n: int, new_tokens: int = 4) -> None:
        self.model = model
        self.made = [model.example(seed, length=12 + seed % 4, new_tokens=new_tokens) for seed in range(n)]

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> Example:
        return Example(self.made[index].prompt, self.model.dlm.decode(self.made[index].answer), f"words {index}")

    def score(self, example: Example, completion: str) -> Score:
        """Word by word."""
        pairs = list(zip(example.answer.split(), completion.split(), strict=True))
        return Score(sum(a == b for a, b in pairs), len(pairs))

    def checkable(self, example: Example, answer: Any) -> list[bool]:
        """All."""
        return [True] * len(answer)


@pytest.mark.parametrize("causal", [False, True])
def test_masking_an_informative_sink_takes_everything_and_random_keys_nothing(causal: bool) -> None:
    model = make("informative", causal=causal)
    cut = {"cut": MaskSinks(SameStep(top_k=1))}
    metrics = ["agreement", "accuracy", "forced_accuracy", "replayed_agreement", "kl", "confidence_committed"]
    result = run(model.dlm, Words(model, 5), cut, Plan(new_tokens=4), metrics=metrics, seeds=[0, 1])
    for metric in metrics[:4]:
        effect = result.effect("cut", metric)
        assert (effect.pairs, effect.unmasked, effect.value, effect.to_unmasked) == (5, 1.0, 0.0, -1.0)
        low, high = effect.to_control_interval or (math.nan, math.nan)
        assert (effect.to_control, low) == (-1.0, -1.0)  # of 5 prompts: the part that the control loses may be .52
        assert high == pytest.approx(-1 + 2 * (1 - 0.025 ** (1 / 5)))
        random = [row["value"] for row in result.scores if (row["kind"], row["metric"]) == ("random", metric)]
        assert random == [1.0] * 10
    assert result.effect("cut", "kl").value > 5
    assert result.effect("cut", "kl").to_control > 5
    logits = 40 / math.sqrt(2), 20 / math.sqrt(2)  # of the word, of REST; 0 for the others
    likeliest = math.exp(logits[0]) / (math.exp(logits[0]) + math.exp(logits[1]) + int(model.dlm.cfg.d_vocab) - 2)
    assert result.effect("cut", "confidence_committed").unmasked == pytest.approx(likeliest, abs=1e-4)
    ids = [example.prompt for example in Words(model, 5).made]
    for prompts in (Prompts(ids), ids):
        agreement = run(model.dlm, prompts, cut, Plan(new_tokens=4), metrics=["agreement"]).effect("cut")
        assert (agreement.value, agreement.to_control) == (0.0, -1.0)


@pytest.mark.parametrize("causal", [False, True])
def test_zeroing_a_resting_sink_does_nothing_and_this_is_shown(causal: bool) -> None:
    model = make("resting", causal=causal)
    ids = [example.prompt for example in Words(model, 30).made]
    edits = {"zero": ZeroSinks(SameStep(top_k=1)), "cut": MaskSinks(SameStep(top_k=1))}
    plan = Plan(new_tokens=2)
    result = run(model.dlm, Prompts(ids), edits, plan, metrics=["agreement", "kl", "replayed_agreement"])
    for metric in ("agreement", "replayed_agreement"):
        zero = result.effect("zero", metric, margin=0.1)  # of 30 prompts that agree: .05 ** (1 / 30) = .905
        assert (zero.value, zero.to_unmasked, zero.equivalent, zero.equivalent_to_control) == (1.0, 0.0, True, True)
        assert result.effect("zero", metric, margin=0.09).equivalent is False
        cut = result.effect("cut", metric, margin=0.1)
        assert (cut.value, cut.equivalent, cut.equivalent_to_control) == (0.0, False, False)
    nothing = result.effect("zero", "kl", margin=1e-4)
    assert abs(nothing.value) < 1e-6
    assert nothing.equivalent
    assert result.effect("cut", "kl", margin=1e-4).equivalent is False
    few = AblationResult([row for row in result.scores if row["prompt"] < 4])
    assert few.effect("zero", "agreement", margin=0.1).equivalent is False
    assert nothing.pairs == 30
    assert [row["edited_mass"] > 0 for row in result.scores if row["condition"] == "zero"] == [True] * 30 * 3 * 2


def test_a_model_without_sinks_is_not_edited() -> None:
    model = make("none")
    with pytest.raises(NeverExposed, match=r"conditions 'cut' \(kl\), 'cut' \(random, kl\)") as caught:
        run(model.dlm, Words(model, 3), {"cut": MaskSinks(SameStep())}, Plan(new_tokens=2), metrics=["kl"])
    result: Any = caught.value.result
    assert {row["edited_keys"] for row in result.scores} == {0}
    assert {abs(row["value"]) < 1e-9 for row in result.scores} == {True}


# Doses.


def test_doses_are_conditions_by_value(dlm: HookedDLM, task: Echo) -> None:
    made = doses("k", [1, 3, 6], lambda k: MaskSinks(SameStep(top_k=k)))
    assert list(made) == ["k=1", "k=3", "k=6"]
    assert list(made.values()) == [MaskSinks(SameStep(top_k=k)) for k in (1, 3, 6)]
    result = run(dlm, task, made, controls=None, metrics=("kl",))
    found = result.effects()
    assert found["condition"].tolist() == list(made)
    kl = found["to_unmasked"].tolist()
    assert 0 < kl[0] < kl[1] < kl[2]
    keys = [sum(row["edited_keys"] for row in result.scores if row["condition"] == name) for name in made]
    assert keys == [keys[0], 3 * keys[0], 6 * keys[0]]


def test_doses_over_layers(dlm: HookedDLM) -> None:
    made = doses("layer", range(dlm.n_layers), lambda i: ZeroSinks(SameStep(top_k=1), where=Where(layers=i)))
    assert {name: edit.where.layers for name, edit in made.items()} == {"layer=0": 0, "layer=1": 1}


def test_doses_that_are_written_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="k has 3 values, of which some are written alike: k=1, k=2"):
        doses("k", [1, 2, 1], lambda k: MaskSinks(SameStep(top_k=k)))


# Errors come before any forward.


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": {"unmasked": MaskSinks()}}, "'unmasked' is taken by the unedited run"),
        ({"metrics": ("accuracy", "guessed")}, f"'guessed' is unknown; the metrics are {', '.join(METRICS)}"),
        ({"metrics": ()}, f"metrics is empty; the metrics are {', '.join(METRICS)}"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"seeds": []}, r"seeds=\[\] must not be empty"),
        ({"plan": Plan(new_tokens=9, block_length=9)}, r"answers of new_tokens=9 tokens.* has .?8"),
        ({"controls": "guess"}, "control 'guess' is unknown; the controls are random,"),
        ({"controls": ["random", "guess"]}, "control 'guess' is unknown"),
        ({"controls": {"sinks": control}}, "control name 'sinks' is taken"),
        ({"controls": {"unmasked": control}}, "control name 'unmasked' is taken"),
        ({"controls": ["random", "random"]}, "control 'random' is named twice"),
        ({"controls": {"mine": lambda edit: None}}, r"condition 'top-1' \(mine\) is None, which is no edit"),
        ({"conditions": {"a": "mask:top1"}}, "condition 'a' is 'mask:top1', which is no edit"),
        ({"seeds": [1, 2, 1]}, r"seeds=\[1, 2, 1\] must not be empty or name one twice"),
        ({"conditions": {"null": NullKey(0.0)}}, "no control can match it; say controls=None"),
        ({"conditions": {"far": MaskSinks(where=Where(layers=7))}}, "condition 'far': layer 7 does not exist"),
        ({"conditions": {"far": MaskSinks(where=Where(heads=[0, 9]))}}, "condition 'far': head 9 does not exist"),
        ({"conditions": {"late": MaskSinks(where=Where(steps=4))}}, "condition 'late': steps=4 holds at none of the 4"),
        (
            {"conditions": {"ok": MaskSinks(), "late": InOrder(MaskSinks(where=Where(steps=slice(4, None))))}},
            "condition 'late': steps=slice",
        ),
        ({"metrics": ("log_likelihood",), "plan": Plan(new_tokens=0)}, "'log_likelihood' scores an answer behind"),
    ],
)
def test_what_cannot_be_run_is_refused(dlm: HookedDLM, task: Echo, options: dict, message: str) -> None:
    controls = {"controls": None} if "late" in options.get("conditions", {}) else {}
    with pytest.raises(ValueError, match=message):
        run(dlm, task, **(controls | options))


# comes from deep inside, without the condition's name; for "kl" only after the unedited run.
@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("metric", ["accuracy", "kl"])
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_a_step_out_of_range_is_refused_with_default_steps_too(
    dlm: HookedDLM, arm: HookedDLM, task: Echo, name: str, metric: str
) -> None:
    model = dlm if name == "tiny-dlm" else arm
    late = {"late": MaskSinks(SameStep(top_k=1), where=Where(steps=20))}
    with pytest.raises(ScopeError, match="condition 'late'"):
        run(model, task, late, Plan(new_tokens=8), metrics=(metric,))


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_steps_may_count_from_the_end_with_default_steps(dlm: HookedDLM, arm: HookedDLM, task: Echo, name: str) -> None:
    model, last = dlm if name == "tiny-dlm" else arm, Where(steps=-1)
    denoise(model, task[0].prompt, Plan(8), interventions=[MaskSinks(SameStep(top_k=1), where=last)], progress=False)
    result = run(model, task, {"last": MaskSinks(SameStep(top_k=1), where=last)}, Plan(8), metrics=("kl",))
    assert result.effect("last").value > 0


# condition's name.
@pytest.mark.usefixtures("no_forward")
def test_steps_and_a_likelihood_are_refused_before_anything_is_run(dlm: HookedDLM, task: Echo) -> None:
    early = {"early": MaskSinks(SameStep(top_k=1), where=Where(steps=0))}
    with pytest.raises(ScopeError, match=r"condition 'early'.*likelihood"):
        run(dlm, task, early, metrics=("accuracy", "log_likelihood"))


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("prompts", "edit", "message"),
    [
        ([[0, 20], [0] * 125], MaskSinks(SameStep(top_k=1)), "prompt 1 has 125 tokens"),
        ([[0] * 10, [0]], MaskSinks(SameStep(top_k=15)), "15 keys"),
        ([[0, 20], [0, 2]], MaskSinks(SameStep(top_k=1)), "prompt 1 holds 1 mask tokens"),
    ],
    ids=["too long", "too few keys", "gaps"],
)
def test_a_prompt_that_cannot_be_run_is_refused_before_the_first_batch(
    dlm: HookedDLM, prompts: Any, edit: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(dlm, prompts, {"a": edit}, controls=None, batch_size=2, metrics=("agreement",))


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("more", [{"steps": 4}, {"block_length": 4}, {"threshold": 0.5}, {"remasking": "margin"}])
def test_a_baseline_is_refused_what_it_cannot_do_as_by_denoise(arm: HookedDLM, task: Echo, more: dict) -> None:
    plan, errors = Plan(new_tokens=8, **more), []
    for call in (
        lambda: denoise(arm, task[0].prompt, plan, progress=False),
        lambda: run(arm, task, plan=plan),
    ):
        with pytest.raises(PlanError, match=f"{next(iter(more))}=.* has no meaning for the autoregressive") as error:
            call()
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.usefixtures("no_forward")
def test_an_answer_that_does_not_fit_is_refused_before_the_first_batch(dlm: HookedDLM, tmp_path: Path) -> None:
    task = jsonl(tmp_path / "t.jsonl", *ITEMS, ("boma", "gante " * 130))
    with pytest.raises(PlanError, match=r"t\.jsonl:4 has a prompt of 2 tokens and an answer of 130"):
        run(dlm, task, plan=Plan(new_tokens=2), metrics=("accuracy", "log_likelihood"))


def test_the_order_of_metrics_is_no_other_score(dlm: HookedDLM, task: Echo, tmp_path: Path, decodes: list[int]) -> None:
    options = {"controls": None, "save_to": tmp_path / "rows"}
    first = run(dlm, task, metrics=("kl", "replayed_agreement"), **options)
    decodes.clear()
    second = run(dlm, task, metrics=("replayed_agreement", "kl"), **options)
    assert decodes == []
    assert [score["metric"] for score in second.scores[:2]] == ["replayed_agreement", "kl"]
    same(second, first)


@pytest.mark.usefixtures("no_forward")
def test_guidance_and_edits_are_refused_before_the_first_forward(dlm: HookedDLM, task: Echo) -> None:
    with pytest.raises(ValueError, match="cfg_scale"):
        run(dlm, task, plan=Plan(new_tokens=8, cfg_scale=1.0), metrics=("kl",))


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("metric", [name for name, measure in METRICS.items() if measure.answers])
def test_metrics_that_need_answers_refuse_prompts(dlm: HookedDLM, metric: str) -> None:
    for prompts in (Prompts(["dolko xe"]), ["dolko xe"], [[0, 20]]):
        with pytest.raises(ValueError, match=f"metric '{metric}' needs true answers, and prompt 0 has none"):
            run(dlm, prompts, metrics=("kl", metric))


def test_metrics_that_need_none_take_prompts(dlm: HookedDLM) -> None:
    free = [name for name, measure in METRICS.items() if not measure.answers]
    assert len(free) == 6
    assert {row["metric"] for row in run(dlm, ["dolko xe"], metrics=free).scores} == set(free)


def test_no_prompts() -> None:
    with pytest.raises(ValueError, match="there are no prompts"):
        Prompts([])


def jsonl(path: Path, *items: tuple[str, str]) -> Jsonl:
    """A task file."""
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Jsonl(path)


ITEMS = (("dolko xe dolko xo", "dolko talma"), ("gake xe gake wa", "gake gake"), ("boma", "gante karte"))


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("metrics", [("forced_accuracy",), ("accuracy", "forced_accuracy")])
def test_a_wrong_answer_in_a_later_batch_is_refused_before_the_first(
    dlm: HookedDLM, tmp_path: Path, metrics: tuple
) -> None:
    task = jsonl(tmp_path / "t.jsonl", *ITEMS, ("boma", "gante karte xa karte"))
    with pytest.raises(ValueError, match="new_tokens=2"):
        run(dlm, task, plan=Plan(new_tokens=2), batch_size=2, metrics=metrics)


def test_a_jsonl_task_from_end_to_end(dlm: HookedDLM, arm: HookedDLM, tmp_path: Path) -> None:
    task = jsonl(tmp_path / "task.jsonl", *ITEMS)
    for model in (dlm, arm):
        result = run(model, task, {"top-1": MaskSinks(PreviousStep(top_k=1))}, Plan(new_tokens=2))
        found = by_key(result.scores)
        assert len(found) == len(result.scores) == 3 * 3 * 2
        plan = Plan(new_tokens=2)
        for index, (prompt, answer) in enumerate(ITEMS):
            said = denoise(model, prompt, plan, seed=index, progress=False).completions[0]
            row = found[index, 0, "unmasked", "unmasked", "accuracy"]
            assert (row["value"], row["places"]) == (float(said == answer), 1)
            assert found[index, 0, "unmasked", "unmasked", "forced_accuracy"]["places"] == 2
            assert row["name"] == f"task.jsonl:{index + 1}"


# Saving and going on.


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every decoding that was begun."""
    found: list[int] = []

    def counting(dlm: HookedDLM, start: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(len(start.canvas.tokens))
        return loop.steps_from(dlm, start, *args, **kwargs)

    monkeypatch.setattr(runner, "steps_from", counting)
    return found


def test_saved_rows_are_not_run_again(
    dlm: HookedDLM, task: Echo, whole: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "deep" / "rows.jsonl"
    first = run(dlm, task, seeds=[0, 5], save_to=store)
    same(first, whole)
    content = store.read_bytes()
    monkeypatch.setattr(runner, "steps_from", None)
    monkeypatch.setattr(runner, "log_likelihood", None)
    again = run(dlm, task, seeds=[0, 5], save_to=store)
    assert again.finished
    assert by_key(again.scores) == by_key(first.scores) or str(by_key(again.scores)) == str(by_key(first.scores))
    assert store.read_bytes() == content
    only = run(dlm, task, {"zero": edits()["zero"]}, seeds=[5], save_to=store, metrics=("forced_accuracy",))
    assert set(table(only.scores)) == {
        key for key in table(whole.scores) if key[1] == 5 and key[2] in ("unmasked", "zero") and key[4] == BOTH[0]
    }


@pytest.mark.parametrize("batch_size", [5, 128])
def test_a_condition_that_is_added_later_runs_alone(
    dlm: HookedDLM, task: Echo, whole: AblationResult, tmp_path: Path, decodes: list[int], batch_size: int
) -> None:
    """Beside the unedited rows that it is compared with; the rest comes from the file."""
    store = tmp_path / "rows.jsonl"
    options = {"seeds": [0, 5], "save_to": store, "batch_size": batch_size}
    run(dlm, task, {"top-1": edits()["top-1"]}, **options)
    before, old = len(decodes), store.read_text()
    same(run(dlm, task, **options), whole)
    assert sum(decodes[before:]) == N * 2 * 2 * 3  # unmasked, zero and its control
    assert store.read_text().startswith(old)
    before = len(decodes)
    run(dlm, task, controls=["random", "bottom"], **options)
    assert sum(decodes[before:]) == N * 2 * 2 * 3  # unmasked and two new controls
    before = len(decodes)
    run(dlm, task, controls=["random", "bottom"], **options)
    run(dlm, task, controls=None, **options)
    assert len(decodes) == before


def test_another_seed_or_metric_runs_alone(
    dlm: HookedDLM, task: Echo, tmp_path: Path, decodes: list[int], whole: AblationResult
) -> None:
    store = tmp_path / "rows.jsonl"
    run(dlm, task, seeds=[0], metrics=("accuracy",), save_to=store)
    run(dlm, task, seeds=[0, 5], metrics=("accuracy",), save_to=store)
    assert sum(decodes) == 2 * N * 5
    same(run(dlm, task, seeds=[0, 5], metrics=BOTH, save_to=store), whole)
    assert sum(decodes) == 4 * N * 5


def changed_in_the_last_layer(dlm: HookedDLM) -> HookedDLM:
    """The same name, the same first layers, another model."""
    other = HookedDLM.from_pretrained("tiny-dlm")
    with torch.no_grad():
        for name, weight in other.original_model.named_parameters():
            if "unembed" in name or "lm_head" in name:
                weight.neg_()
    tokens = torch.arange(5)[None]
    assert not torch.allclose(other(tokens), dlm(tokens))
    return other


OTHERS: dict[str, Any] = {
    "plan": lambda dlm, task: (dlm, task, {"a": MaskSinks(SameStep(top_k=1))}, Plan(new_tokens=8, steps=4)),
    "edit": lambda dlm, task: (dlm, task, {"a": MaskSinks(SameStep(top_k=2))}, PLAN),
    "operator": lambda dlm, task: (dlm, task, {"a": ZeroSinks(SameStep(top_k=1))}, PLAN),
    "scope": lambda dlm, task: (dlm, task, {"a": MaskSinks(SameStep(top_k=1), where=Where(layers=[0]))}, PLAN),
    "revision": lambda dlm, task: (HookedDLM.from_pretrained("tiny-dlm", revision="step-0"), task, None, PLAN),
    "weights": lambda dlm, task: (changed_in_the_last_layer(dlm), task, None, PLAN),
    "task": lambda dlm, task: (dlm, Echo(N, seed=4, prompt_tokens=12, answer_tokens=8), None, PLAN),
    "prompt length": lambda dlm, task: (dlm, Echo(N, seed=3, prompt_tokens=14, answer_tokens=8), None, PLAN),
}


@pytest.mark.parametrize("what", OTHERS)
def test_rows_of_something_else_are_not_reused(dlm: HookedDLM, task: Echo, tmp_path: Path, what: str) -> None:
    store, own = tmp_path / "rows.jsonl", {"a": MaskSinks(SameStep(top_k=1))}
    options = {"controls": None, "metrics": ("forced_accuracy",)}
    run(dlm, task, own, save_to=store, **options)
    model, other_task, conditions, plan = OTHERS[what](dlm, task)
    conditions = conditions or own
    mixed = run(model, other_task, conditions, plan, save_to=store, **options)
    same(mixed, run(model, other_task, conditions, plan, **options))
    again = run(dlm, task, own, save_to=store, **options)
    same(again, run(dlm, task, own, **options))


def test_first_step_policies_are_other_edits(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    options = {"controls": None, "metrics": ("forced_accuracy",)}
    none, own = ({"a": MaskSinks(PreviousStep(top_k=3, first=first))} for first in ("none", "same"))
    run(dlm, task, none, save_to=tmp_path / "rows", **options)
    same(run(dlm, task, own, save_to=tmp_path / "rows", **options), run(dlm, task, own, **options))


def test_a_task_file_that_was_edited_is_another_task(dlm: HookedDLM, tmp_path: Path) -> None:
    options = {"plan": Plan(new_tokens=2), "controls": None, "save_to": tmp_path / "rows", "metrics": ("accuracy",)}
    path = tmp_path / "task.jsonl"
    said = denoise(dlm, ITEMS[0][0], Plan(new_tokens=2), progress=False).completions[0]
    wrong = run(dlm, jsonl(path, (ITEMS[0][0], "boma boma")), {}, **options)
    right = run(dlm, jsonl(path, (ITEMS[0][0], said)), {}, **options)
    assert (wrong.scores[0]["value"], right.scores[0]["value"]) == (0.0, 1.0)


def test_a_condition_may_be_renamed(dlm: HookedDLM, task: Echo, tmp_path: Path, decodes: list[int]) -> None:
    options = {"save_to": tmp_path / "rows", "metrics": ("forced_accuracy",)}
    run(dlm, task, {"old": MaskSinks(SameStep(top_k=1))}, **options)
    before = len(decodes)
    renamed = run(dlm, task, {"new": MaskSinks(SameStep(top_k=1))}, **options)
    assert len(decodes) == before
    assert {row["condition"] for row in renamed.scores} == {"unmasked", "new"}
    renamed.effect("new")


def test_a_condition_that_was_a_control_comes_from_the_file(
    dlm: HookedDLM, task: Echo, tmp_path: Path, decodes: list[int]
) -> None:
    """Scores are of an edit, whatever part it plays."""
    options = {"save_to": tmp_path / "rows", "metrics": ("forced_accuracy",)}
    edit = MaskSinks(SameStep(top_k=1))
    before = by_key(run(dlm, task, {"a": edit}, **options).scores)
    decodes.clear()
    after = by_key(run(dlm, task, {"it": control(edit)}, controls=None, **options).scores)
    assert decodes == []
    for index in range(N):
        old, new = before[index, 0, "a", "random", BOTH[0]], after[index, 0, "it", "sinks", BOTH[0]]
        assert str(new) == str(old | {"condition": "it", "kind": "sinks"})


@pytest.mark.parametrize("then", [1, 5, 25])
def test_another_batch_size_on_resume_loses_no_prompt(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, then: int
) -> None:
    store = tmp_path / "rows.jsonl"
    run(dlm, task, seeds=[5], batch_size=4, save_to=store)
    header, *lines = store.read_text().splitlines(keepends=True)
    assert len(lines) == N * 2 * 2  # two groups of edits
    store.write_text(header + "".join(line for i, line in enumerate(lines) if i % 3 == 0))
    same(run(dlm, task, seeds=[5], batch_size=then, save_to=store), half)


@pytest.mark.parametrize(
    "cut", [slice(-1), slice(-2), slice(-40), slice(3)], ids=["newline", "bracket", "row", "start"]
)
def test_a_truncated_last_line_is_repaired(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, cut: slice
) -> None:
    store, expected = tmp_path / "rows.jsonl", of_forced(half)
    run(dlm, task, save_to=store, **FORCED)
    header, *lines = store.read_text().splitlines(keepends=True)
    assert len(lines) == N
    store.write_text(header + "".join(lines[:3]) + lines[3][cut])
    same(run(dlm, task, save_to=store, **FORCED), expected)
    same(run(dlm, task, save_to=store, **FORCED), expected)
    assert [len(json.loads(line)) for line in store.read_text().splitlines()[1:]] == [5] * len(lines)


def test_a_repair_that_is_killed_loses_nothing(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole lines stay on disk, whatever happens to the process while it drops the broken one."""
    store = tmp_path / "rows.jsonl"
    run(dlm, task, save_to=store, **FORCED)
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:3]) + lines[3][:40])
    assert json.loads(lines[0])["sinklens"] == "scores"

    def killed(path: Path, *args: Any, **kwargs: Any) -> int:
        path.open("w").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        patch.setattr(os, "replace", killed)
        patch.setattr(runner, "steps_from", killed)  # a repair by other means goes on to here
        with contextlib.suppress(KeyboardInterrupt, AttributeError):
            run(dlm, task, save_to=store, **FORCED)
    assert store.read_text().splitlines(keepends=True)[:3] == lines[:3]


def test_a_damaged_line_in_the_middle_is_an_error(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    run(dlm, task, save_to=store, batch_size=10)
    lines = store.read_text().splitlines()
    store.write_text("\n".join([*lines[:2], lines[2][:30], *lines[3:]]) + "\n")
    before = store.read_bytes()
    with pytest.raises(ValueError, match=r"rows.jsonl, line 3 is damaged"):
        run(dlm, task, save_to=store)
    assert store.read_bytes() == before


@pytest.mark.usefixtures("no_forward")
def test_a_file_that_sinklens_did_not_write_is_left_alone(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    """A task file, say, given by mistake; even if it looks as if its last line were cut off."""
    mine = tmp_path / "task.jsonl"
    mine.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "ans')
    before = mine.read_bytes()
    with pytest.raises(RecordError, match="holds no scores that sinklens wrote"):
        run(dlm, task, save_to=mine)
    assert mine.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["task.jsonl"]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("target", ["notes.txt", "notes.txt/below", "", "link"])
def test_a_target_that_cannot_be_written_is_found_first(
    dlm: HookedDLM, task: Echo, tmp_path: Path, target: str
) -> None:
    (tmp_path / "notes.txt").write_text("one line of mine")
    (tmp_path / "link").symlink_to("notes.txt")
    with pytest.raises((RecordError, SaveError), match=re.escape(repr(str(tmp_path / target)))):
        run(dlm, task, save_to=tmp_path / target)
    assert (tmp_path / "notes.txt").read_text() == "one line of mine"
    assert (tmp_path / "link").is_symlink()


def test_a_disk_that_gets_full_costs_no_score(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were scored are on the error, those on disk can be read, and the rest follows."""
    store, sync, calls = tmp_path / "rows.jsonl", os.fsync, []

    def full(file: int) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SaveError, match=r"rows.jsonl' cannot be written: No space left on device") as caught:
            run(dlm, task, save_to=store, **FORCED)
    kept = caught.value.result  # type: ignore[attr-defined]
    assert not kept.finished
    assert len(kept.scores) == 4 * 5  # the last of them did not fit
    assert len(store.read_text().splitlines()) == 1 + 3
    same(run(dlm, task, save_to=store, **FORCED), of_forced(half))


@pytest.mark.parametrize("at", [0, 1, 5])
def test_an_interrupt_returns_finished_batches_and_the_rest_follows(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store, calls = tmp_path / "rows.jsonl", []

    def until(*args: Any, **kwargs: Any) -> Any:
        if len(calls) == at:
            raise KeyboardInterrupt
        calls.append(1)
        return loop.steps_from(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "steps_from", until)
        if not at:  # there is nothing to return
            with pytest.raises(KeyboardInterrupt):
                run(dlm, task, seeds=[5], save_to=store, batch_size=10)
            patch.undo()
            same(run(dlm, task, seeds=[5], save_to=store, batch_size=10), half)
            return
        part = run(dlm, task, seeds=[5], save_to=store, batch_size=10)
    assert not part.finished
    assert f"unfinished: it was interrupted after {at * 2 * 5} of {N * 5 * 2} scores" in repr(part)
    assert part.provenance["finished"] is False
    assert len(part.scores) == at * 2 * 5  # two prompts, five arms
    expected = table(half.scores)
    assert by_key(part.scores) == {key: expected[key] for key in by_key(part.scores)}
    rest = run(dlm, task, seeds=[5], save_to=store, batch_size=10)
    assert rest.finished
    assert rest.provenance["finished"] is True
    same(rest, half)


def test_an_interrupt_inside_a_run_counts_nothing_of_it(
    dlm: HookedDLM, task: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a batch: what it has is no result."""
    forwards, forward = [], HookedDLM.__call__

    def until(self: HookedDLM, *args: Any, **kwargs: Any) -> Any:
        forwards.append(1)
        if len(forwards) == 4 + 2:  # two steps into the second pass
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HookedDLM, "__call__", until)
    part = run(dlm, task)
    assert not part.finished
    assert {row["metric"] for row in part.scores} == {"forced_accuracy"}
    assert len(part.scores) == N * 5
    assert not dlm.hooked


def test_an_interrupt_warns_of_nothing_that_was_only_not_reached(
    dlm: HookedDLM, task: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a condition edits anything is known in the end."""
    stop = loop.steps_from

    def until(*args: Any, **kwargs: Any) -> Any:
        until.calls += 1
        if until.calls > 1:
            raise KeyboardInterrupt
        return stop(*args, **kwargs)

    until.calls = 0
    monkeypatch.setattr(runner, "steps_from", until)
    blind = {"blind": MaskSinks(SameStep(SinkRule(epsilon=1e6)))}
    assert not run(dlm, task, blind, batch_size=3, metrics=("accuracy",)).finished


SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    import sinklens as sl
    from sinklens.tasks import Echo
    torch.set_num_threads(1)
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    conditions = {
        "top-1": sl.MaskSinks(sl.PreviousStep(top_k=1)),
        "zero": sl.ZeroSinks(sl.SameStep(top_k=3), where=sl.Where(layers=[0])),
    }
    plan = sl.Plan(new_tokens=8, block_length=8, steps=4, temperature=1.0)
    task = Echo(6, seed=3, prompt_tokens=12, answer_tokens=8)
    sl.ablate(dlm, task, conditions, plan, seeds=[5], batch_size=2, save_to=sys.argv[1], progress=False)
    """
)


def test_a_killed_ablation_goes_on_where_it_was(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, decodes: list[int]
) -> None:
    """SIGKILL as soon as the first rows are on disk."""
    store = tmp_path / "rows.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 60
        while not (store.is_file() and store.read_text().count("\n") > 1) and time.monotonic() < until:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    lines = store.read_text().splitlines(keepends=True)[1:]
    stored, all_of_it = sum(line.endswith("\n") for line in lines), N * 2 * 4  # an edited row beside the unedited one
    assert 1 <= stored < all_of_it, "the run was over before it could be killed"
    rest = run(dlm, task, seeds=[5], batch_size=2, save_to=store)
    assert len(decodes) == all_of_it - stored
    same(rest, half)


# Provenance.


def test_provenance_says_what_made_the_rows(dlm: HookedDLM, task: Echo) -> None:
    result = run(dlm, task, seeds=range(2), controls={"own": control}, metrics=["accuracy", "kl"])
    made = result.provenance
    assert made["model"] == "tiny-dlm"
    assert (made["family"], made["causal"], made["dtype"]) == ("LLaDA", False, "float32")
    assert made["plan"]["new_tokens"] == 8
    assert made["plan"]["temperature"] == 1.0
    assert (made["task"], made["prompts"], made["seeds"]) == (task.name, N, [0, 1])
    assert made["metrics"] == ["accuracy", "kl"]
    assert made["finished"] is True
    parts = {
        "top-1 (sinks)": edits()["top-1"],
        "top-1 (own)": control(edits()["top-1"]),
        "zero (sinks)": edits()["zero"],
        "zero (own)": control(edits()["zero"]),
    }
    assert made["conditions"] == {"unmasked (unmasked)": None} | {n: each.to_dict() for n, each in parts.items()}
    assert made["read_as"] == {"unmasked (unmasked)": "None"} | {n: repr(each) for n, each in parts.items()}
    again = [Edit.from_dict(content) for content in made["conditions"].values() if content is not None]
    assert again == list(parts.values())
    assert made["fingerprint"] == dlm.fingerprint()
    assert {"sinklens", "torch", "transformers", "transformer-lens"} <= set(made["versions"])
    json.dumps(made)


def test_numpy_seeds(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    result = run(dlm, task, {}, seeds=list(np.arange(2)), metrics=("accuracy",))
    assert AblationResult.open(result.save(tmp_path / "it.json")).scores
