"""The paired ablation: what its rows hold, what its numbers are, and what survives an interrupt or a kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.utilities.statistics import derive_generator

from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Where, ZeroSinks, ablate, denoise, trials
from sinklens.experiment import AblationResult
from sinklens.interventions import random_control
from sinklens.tasks import Echo, Jsonl

PLAN = Plan(new_tokens=8, block_length=8, steps=4, temperature=1.0)
N = 6
KEY = ("prompt", "seed", "condition", "kind", "outcome")


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
    return {"top-1": MaskSinks(PreviousStep(top_k=1)), "zero": ZeroSinks(SameStep(top_k=3), Where(layers=[0]))}


def run(model: HookedDLM, task: Any, conditions: Any = None, plan: Plan = PLAN, **options: Any) -> AblationResult:
    """`ablate` without a progress bar."""
    return ablate(model, task, edits() if conditions is None else conditions, plan, progress=False, **options)


def table(rows: list[dict[str, Any]]) -> dict[Any, Any]:
    """Rows by key, comparable: nan is nan."""
    out = {}
    for row in rows:
        key = tuple(row[name] for name in KEY)
        assert key not in out, f"{key} twice"
        out[key] = {
            name: "nan" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()
        }
    return out


def same(ours: AblationResult, theirs: AblationResult) -> None:
    """The same rows."""
    assert table(ours.rows) == table(theirs.rows)


@pytest.fixture(scope="module")
def whole(dlm: HookedDLM, task: Echo) -> AblationResult:
    """An uninterrupted run, for comparison."""
    return run(dlm, task, seeds=[0, 5])


@pytest.fixture(scope="module")
def half(whole: AblationResult) -> AblationResult:
    """Its second seed alone."""
    return AblationResult([row for row in whole.rows if row["seed"] == 5])


FORCED: dict[str, Any] = {"seeds": [5], "outcomes": ("forced",)}


def of_forced(result: AblationResult) -> AblationResult:
    """Its forced outcomes alone."""
    return AblationResult([row for row in result.rows if row["outcome"] == "forced"])


# What the rows are.


def test_one_row_per_prompt_seed_condition_kind_and_outcome(whole: AblationResult, task: Echo) -> None:
    arms = [("unmasked", "unmasked"), ("top-1", "sinks"), ("top-1", "random"), ("zero", "sinks"), ("zero", "random")]
    expected = {(p, s, c, k, o) for p in range(N) for s in (0, 5) for c, k in arms for o in ("forced", "generated")}
    assert set(table(whole.rows)) == expected
    assert len(whole.rows) == len(expected)
    assert whole.finished
    for row in whole.rows:
        assert row["model"] == "tiny-dlm"
        assert row["name"] == task[row["prompt"]].name
        assert (row["edited_keys"] == 0) == (row["kind"] == "unmasked")
        if row["total"]:
            assert row["accuracy"] == row["correct"] / row["total"]
        else:
            assert math.isnan(row["accuracy"])


def test_forced_places_are_the_same_under_every_condition(whole: AblationResult) -> None:
    totals: dict[int, set[int]] = {}
    for row in whole.rows:
        if row["outcome"] == "forced":
            totals.setdefault(row["prompt"], set()).add(row["total"])
    assert all(len(found) == 1 for found in totals.values())


def naive_scores(model: HookedDLM, task: Any, plan: Plan, seed: int, index: int, edits: list[Any]) -> Any:
    """(correct, total) of one prompt, forced and generated, from plain denoise calls of this prompt alone."""
    example = task[index]
    options = {"interventions": edits, "seed": seed * 1_000_003 + index, "progress": False}
    free = denoise(model, example.prompt, plan, **options)
    score = task.score(example, free.completions[0])
    truth = model.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    forced = denoise(model, example.prompt, plan, force=[truth], **options)
    said = forced.predicted[0][forced.filled[0]].tolist()
    counts = task.checkable(example, truth)
    right = sum(a == b for a, b, place in zip(said, truth, counts, strict=True) if place)
    return (right, sum(counts)), (score.correct, score.total)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_rows_equal_plain_denoising_and_scoring(name: str, dlm: HookedDLM, arm: HookedDLM, task: Echo) -> None:
    model = dlm if name == "tiny-dlm" else arm
    plan = PLAN if model is dlm else Plan(new_tokens=8, temperature=1.0)
    found = table(run(model, task, {"cut": MaskSinks(PreviousStep(top_k=2))}, PLAN).rows)
    for index in range(N):
        for condition, kind, parts in (
            ("unmasked", "unmasked", []),
            ("cut", "sinks", [MaskSinks(PreviousStep(top_k=2))]),
            ("cut", "random", [random_control(MaskSinks(PreviousStep(top_k=2)))]),
        ):
            expected = naive_scores(model, task, plan, 0, index, parts)
            for outcome, (correct, total) in zip(("forced", "generated"), expected, strict=True):
                row = found[index, 0, condition, kind, outcome]
                assert (row["correct"], row["total"]) == (correct, total)


def test_conditions_change_something(whole: AblationResult) -> None:
    """Otherwise the tests that compare rows would compare nothing."""
    found = table(whole.rows)
    for condition, kind in (("top-1", "sinks"), ("top-1", "random"), ("zero", "sinks")):
        changed = [
            key
            for key, row in found.items()
            if key[2:4] == (condition, kind)
            and (row["correct"], row["total"])
            != tuple(found[*key[:2], "unmasked", "unmasked", key[4]][name] for name in ("correct", "total"))
        ]
        assert changed, (condition, kind)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_no_row(dlm: HookedDLM, task: Echo, half: AblationResult, batch_size: int) -> None:
    same(run(dlm, task, seeds=[5], batch_size=batch_size), half)


def test_the_batch_size_changes_no_row_where_rows_end_at_different_steps(dlm: HookedDLM, arm: HookedDLM) -> None:
    """A row that is done is edited no more, however long the others of its batch go on."""
    gaps, texts = Echo(4, seed=0, gaps=0.5), Echo(4, seed=1, prompt_tokens=12, answer_tokens=30)
    conditions = {"top-1": MaskSinks(PreviousStep(top_k=1))}
    for model, task, plan in ((dlm, gaps, Plan(new_tokens=0)), (arm, gaps, Plan(new_tokens=0)), (arm, texts, Plan(30))):
        options = {"outcomes": ("generated",), "plan": plan, "controls": None}
        alone, together = (run(model, task, conditions, batch_size=size, **options) for size in (1, 4))
        same(alone, together)


def test_without_controls_there_are_no_random_rows(dlm: HookedDLM, task: Echo) -> None:
    result = run(dlm, task, controls=None, outcomes=("generated",))
    assert {row["kind"] for row in result.rows} == {"unmasked", "sinks"}
    effect = result.effect("top-1", "generated")
    assert effect.to_control is None
    assert effect.to_control_interval is None


def test_gaps_are_filled_under_force(dlm: HookedDLM, arm: HookedDLM) -> None:
    """Answers of different lengths are right where there are gaps to fill."""
    gaps = Echo(4, seed=0, gaps=0.5)
    for model in (dlm, arm):
        result = run(model, gaps, {"top-1": MaskSinks(PreviousStep(top_k=1))}, Plan(new_tokens=0))
        for row in result.rows:
            assert row["total"] == len(gaps[row["prompt"]].answer.split(" "))


def test_an_edit_whose_steps_never_come_edits_nothing(dlm: HookedDLM, task: Echo) -> None:
    """Under a threshold a run may be over before the scope begins."""
    late = {"late": MaskSinks(PreviousStep(top_k=1), Where(steps=slice(7, None)))}
    plan = Plan(new_tokens=8, block_length=8, threshold=0.01)
    found = table(run(dlm, task, late, plan, outcomes=("generated",)).rows)
    for index in range(N):
        plain = found[index, 0, "unmasked", "unmasked", "generated"]
        for kind in ("sinks", "random"):
            row = found[index, 0, "late", kind, "generated"]
            assert row["edited_keys"] == 0
            assert (row["correct"], row["total"]) == (plain["correct"], plain["total"])


# Effects.


def made_up() -> AblationResult:
    """Rows with known accuracies; (prompt 3, seed 0) could not be scored unmasked, (prompt 4, seed 0) not at random."""
    accuracy = {
        ("unmasked", "unmasked"): [1.0, 0.5, 0.75, float("nan"), 1.0, 1.0],
        ("cut", "sinks"): [0.5, 0.5, 0.25, 0.0, 0.0, 0.75],
        ("cut", "random"): [1.0, 0.25, 0.75, 1.0, float("nan"), 1.0],
    }
    rows = [
        {
            "model": "m",
            "prompt": prompt,
            "seed": seed,
            "condition": condition,
            "kind": kind,
            "outcome": outcome,
            "accuracy": value if outcome == "forced" else 0.0,
            "total": 4,
        }
        for (condition, kind), values in accuracy.items()
        for prompt, value in enumerate(values)
        for seed in ((0, 1) if prompt == 0 else (0,))
        for outcome in ("forced", "generated")
    ]
    return AblationResult(rows[::-1])  # in any order


def by_hand_bootstrap(differences: list[float]) -> tuple[float, float]:
    """A percentile bootstrap of the mean, resampled here with TransformerLens's default generator, 256 at a time."""
    values, generator = torch.tensor(differences, dtype=torch.float64), derive_generator(0)
    means: list[float] = []
    while len(means) < 2000:
        picks = torch.randint(0, len(values), (min(256, 2000 - len(means)), len(values)), generator=generator)
        means += [float(np.mean([float(values[i]) for i in row])) for row in picks]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_effects_are_paired_differences_without_what_could_not_be_scored() -> None:
    effect = made_up().effect("cut")
    to_unmasked = [-0.5, -0.5, 0.0, -0.5, -0.25]  # prompts 0 (two seeds), 1, 2, 5
    to_control = [-0.5, -0.5, 0.25, -0.5, -0.25]
    assert (effect.condition, effect.outcome, effect.pairs) == ("cut", "forced", 5)
    assert effect.to_unmasked == pytest.approx(sum(to_unmasked) / 5)
    assert effect.to_control == pytest.approx(sum(to_control) / 5)
    assert effect.to_unmasked_interval == pytest.approx(by_hand_bootstrap(to_unmasked), abs=1e-3)
    assert effect.to_control_interval == pytest.approx(by_hand_bootstrap(to_control), abs=1e-3)
    assert made_up().effect("cut", "generated").to_unmasked == 0


def test_pairs_that_an_interrupt_left_half_done_do_not_count() -> None:
    """Prompt 1 was not run under the condition, prompt 2 not under its control."""
    left = {(1, "sinks"), (2, "random")}
    rows = [row for row in made_up().rows if (row["prompt"], row["kind"]) not in left]
    effect = AblationResult(rows, finished=False).effect("cut")
    assert effect.pairs == 3
    assert effect.to_unmasked == pytest.approx((-0.5 - 0.5 - 0.25) / 3)


def test_an_interval_holds_the_mean(whole: AblationResult) -> None:
    for condition in ("top-1", "zero"):
        for outcome in ("forced", "generated"):
            effect = whole.effect(condition, outcome)
            found = table(whole.rows)
            sides = {"unmasked": ("unmasked", "unmasked"), "control": (condition, "random")}
            pairs = [(p, s) for p in range(N) for s in (0, 5)]
            accuracy = {
                name: [float(found[*pair, *side, outcome]["accuracy"]) for pair in pairs]
                for name, side in {**sides, "sinks": (condition, "sinks")}.items()
            }
            scored = [i for i in range(len(pairs)) if not any(math.isnan(side[i]) for side in accuracy.values())]
            assert effect.pairs == len(scored)
            for against, mean, interval in (
                ("unmasked", effect.to_unmasked, effect.to_unmasked_interval),
                ("control", effect.to_control, effect.to_control_interval),
            ):
                by_hand = [accuracy["sinks"][i] - accuracy[against][i] for i in scored]
                assert mean == pytest.approx(sum(by_hand) / len(by_hand))
                assert interval[0] - 1e-9 <= mean <= interval[1] + 1e-9


def test_an_effect_that_was_not_run_is_an_error_that_says_what_was() -> None:
    with pytest.raises(ValueError, match=r"no rows for \('top-9', 'sinks', 'forced'\).*'cut', 'random', 'forced'"):
        made_up().effect("top-9")
    nothing = AblationResult([{**row, "accuracy": float("nan")} for row in made_up().rows])
    with pytest.raises(ValueError, match="no prompt could be scored for 'cut'"):
        nothing.effect("cut")


def test_the_summary_is_the_mean_over_examples() -> None:
    summary = made_up().summary().set_index(["outcome", "condition", "kind"])
    row = summary.loc["forced", "unmasked", "unmasked"]
    assert row["accuracy"] == pytest.approx((1 + 1 + 0.5 + 0.75 + 1 + 1) / 6)
    assert (row["scored"], row["places"]) == (6, 7 * 4)
    assert row["low"] <= row["accuracy"] <= row["high"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_summary_does_not_claim_certainty_where_all_examples_agree(value: float) -> None:
    """Clopper-Pearson for 0 (or all) of n: the other end is (alpha / 2) ** (1 / n) away."""
    rows = [{**row, "accuracy": value} for row in made_up().rows]
    row = AblationResult(rows).summary().iloc[0]
    width = 1 - 0.025 ** (1 / 7)
    assert (row["low"], row["high"]) == pytest.approx((0.0, width) if value == 0 else (1 - width, 1.0), abs=1e-6)


# Errors come before any forward.


@pytest.fixture
def no_denoise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any run fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("denoise was called")

    monkeypatch.setattr(trials, "denoise", refuse)


@pytest.mark.usefixtures("no_denoise")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": {"unmasked": MaskSinks()}}, "'unmasked' is taken by the unedited run"),
        ({"outcomes": ("forced", "guessed")}, "guessed"),
        ({"outcomes": ()}, "outcomes"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"seeds": []}, r"seeds=\[\] must not be empty"),
        ({"plan": Plan(new_tokens=9, block_length=9)}, r"answers of new_tokens=9 tokens.* has .?8"),
    ],
)
def test_what_cannot_be_run_is_refused(dlm: HookedDLM, task: Echo, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(dlm, task, **options)


def jsonl(path: Path, *items: tuple[str, str]) -> Jsonl:
    """A task file."""
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Jsonl(path)


ITEMS = (("dolko xe dolko xo", "dolko talma"), ("gake xe gake wa", "gake gake"), ("boma", "gante karte"))


@pytest.mark.usefixtures("no_denoise")
@pytest.mark.parametrize("outcomes", [("forced",), ("generated", "forced")])
def test_a_wrong_answer_in_a_later_batch_is_refused_before_the_first(
    dlm: HookedDLM, tmp_path: Path, outcomes: tuple
) -> None:
    task = jsonl(tmp_path / "t.jsonl", *ITEMS, ("boma", "gante karte xa karte"))
    with pytest.raises(ValueError, match="new_tokens=2"):
        run(dlm, task, plan=Plan(new_tokens=2), batch_size=2, outcomes=outcomes)


def test_a_jsonl_task_from_end_to_end(dlm: HookedDLM, arm: HookedDLM, tmp_path: Path) -> None:
    task = jsonl(tmp_path / "task.jsonl", *ITEMS)
    for model in (dlm, arm):
        result = run(model, task, {"top-1": MaskSinks(PreviousStep(top_k=1))}, Plan(new_tokens=2))
        found = table(result.rows)
        assert len(found) == 3 * 3 * 2
        plan = Plan(new_tokens=2)
        for index, (prompt, answer) in enumerate(ITEMS):
            said = denoise(model, prompt, plan, seed=index, progress=False).completions[0]
            row = found[index, 0, "unmasked", "unmasked", "generated"]
            assert (row["correct"], row["total"]) == (int(said == answer), 1)
            assert found[index, 0, "unmasked", "unmasked", "forced"]["total"] == 2
            assert row["name"] == f"task.jsonl:{index + 1}"


# Saving and going on.


def test_saved_rows_are_not_run_again(
    dlm: HookedDLM, task: Echo, whole: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "deep" / "rows.jsonl"
    first = run(dlm, task, seeds=[0, 5], save_to=store)
    same(first, whole)
    content = store.read_bytes()
    monkeypatch.setattr(trials, "denoise", None)
    again = run(dlm, task, seeds=[0, 5], save_to=store)
    assert again.finished
    same(again, whole)
    assert store.read_bytes() == content
    only = run(dlm, task, {"zero": edits()["zero"]}, seeds=[5], save_to=store, outcomes=("forced",))
    assert set(table(only.rows)) == {
        key for key in table(whole.rows) if key[1] == 5 and key[2] in ("unmasked", "zero") and key[4] == "forced"
    }


def changed_in_the_last_layer(dlm: HookedDLM) -> HookedDLM:
    """The same name, the same first layers, another model."""
    other = HookedDLM.from_pretrained("tiny-dlm")
    with torch.no_grad():
        for name, weight in other.bridge.named_parameters():
            if "unembed" in name or "lm_head" in name:
                weight.neg_()
    tokens = torch.arange(5)[None]
    assert not torch.allclose(other(tokens), dlm(tokens))
    return other


OTHERS: dict[str, Any] = {
    "plan": lambda dlm, task: (dlm, task, {"a": MaskSinks(SameStep(top_k=1))}, Plan(new_tokens=8, steps=4)),
    "edit": lambda dlm, task: (dlm, task, {"a": MaskSinks(SameStep(top_k=2))}, PLAN),
    "operator": lambda dlm, task: (dlm, task, {"a": ZeroSinks(SameStep(top_k=1))}, PLAN),
    "scope": lambda dlm, task: (dlm, task, {"a": MaskSinks(SameStep(top_k=1), Where(layers=[0]))}, PLAN),
    "revision": lambda dlm, task: (HookedDLM.from_pretrained("tiny-dlm", revision="step-0"), task, None, PLAN),
    "weights": lambda dlm, task: (changed_in_the_last_layer(dlm), task, None, PLAN),
    "task": lambda dlm, task: (dlm, Echo(N, seed=4, prompt_tokens=12, answer_tokens=8), None, PLAN),
    "prompt length": lambda dlm, task: (dlm, Echo(N, seed=3, prompt_tokens=14, answer_tokens=8), None, PLAN),
}


@pytest.mark.parametrize("what", OTHERS)
def test_rows_of_something_else_are_not_reused(dlm: HookedDLM, task: Echo, tmp_path: Path, what: str) -> None:
    store, own = tmp_path / "rows.jsonl", {"a": MaskSinks(SameStep(top_k=1))}
    options = {"controls": None, "outcomes": ("forced",)}
    run(dlm, task, own, save_to=store, **options)
    model, other_task, conditions, plan = OTHERS[what](dlm, task)
    conditions = conditions or own
    mixed = run(model, other_task, conditions, plan, save_to=store, **options)
    same(mixed, run(model, other_task, conditions, plan, **options))
    again = run(dlm, task, own, save_to=store, **options)
    same(again, run(dlm, task, own, **options))


def test_first_step_policies_are_other_edits(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    options = {"controls": None, "outcomes": ("forced",)}
    none, own = ({"a": MaskSinks(PreviousStep(top_k=3, first=first))} for first in ("none", "same"))
    run(dlm, task, none, save_to=tmp_path / "rows", **options)
    same(run(dlm, task, own, save_to=tmp_path / "rows", **options), run(dlm, task, own, **options))


def test_a_task_file_that_was_edited_is_another_task(dlm: HookedDLM, tmp_path: Path) -> None:
    options = {"plan": Plan(new_tokens=2), "controls": None, "save_to": tmp_path / "rows", "outcomes": ("generated",)}
    path = tmp_path / "task.jsonl"
    said = denoise(dlm, ITEMS[0][0], Plan(new_tokens=2), progress=False).completions[0]
    wrong = run(dlm, jsonl(path, (ITEMS[0][0], "boma boma")), {}, **options)
    right = run(dlm, jsonl(path, (ITEMS[0][0], said)), {}, **options)
    assert (wrong.rows[0]["correct"], right.rows[0]["correct"]) == (0, 1)


def test_a_condition_may_be_renamed(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    options = {"save_to": tmp_path / "rows", "outcomes": ("forced",)}
    run(dlm, task, {"old": MaskSinks(SameStep(top_k=1))}, **options)
    renamed = run(dlm, task, {"new": MaskSinks(SameStep(top_k=1))}, **options)
    assert {row["condition"] for row in renamed.rows} == {"unmasked", "new"}
    renamed.effect("new")


def test_two_names_for_one_edit_both_come_back(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    both = {"a": MaskSinks(SameStep(top_k=1)), "b": MaskSinks(SameStep(top_k=1))}
    options = {"outcomes": ("forced",), "controls": None}
    run(dlm, task, {"a": both["a"]}, save_to=tmp_path / "rows", **options)
    same(run(dlm, task, both, save_to=tmp_path / "rows", **options), run(dlm, task, both, **options))


@pytest.mark.parametrize("then", [1, 5])
def test_another_batch_size_on_resume_loses_no_prompt(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, then: int
) -> None:
    store = tmp_path / "rows.jsonl"
    run(dlm, task, seeds=[5], batch_size=4, save_to=store)
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(line for i, line in enumerate(lines) if i % 3 == 0))
    same(run(dlm, task, seeds=[5], batch_size=then, save_to=store), half)


@pytest.mark.parametrize(
    "cut", [slice(-1), slice(-2), slice(-40), slice(3)], ids=["newline", "bracket", "row", "start"]
)
def test_a_truncated_last_line_is_repaired(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, cut: slice
) -> None:
    store, expected = tmp_path / "rows.jsonl", of_forced(half)
    run(dlm, task, save_to=store, **FORCED)
    lines = store.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    store.write_text("".join(lines[:3]) + lines[3][cut])
    same(run(dlm, task, save_to=store, **FORCED), expected)
    same(run(dlm, task, save_to=store, **FORCED), expected)
    assert [len(json.loads(line)) for line in store.read_text().splitlines()] == [N] * len(lines)


def test_a_repair_that_is_killed_loses_nothing(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole lines stay on disk, whatever happens to the process while it drops the broken one."""
    store = tmp_path / "rows.jsonl"
    run(dlm, task, save_to=store, **FORCED)
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:3]) + lines[3][:40])

    def killed(self: Path, *args: Any, **kwargs: Any) -> int:
        self.open("w").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        patch.setattr(trials, "denoise", killed)  # a repair by other means goes on to here
        with contextlib.suppress(KeyboardInterrupt, AttributeError):
            run(dlm, task, save_to=store, **FORCED)
    assert store.read_text().splitlines(keepends=True)[:3] == lines[:3]


def test_a_damaged_line_in_the_middle_is_an_error(dlm: HookedDLM, task: Echo, tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    run(dlm, task, save_to=store)
    lines = store.read_text().splitlines()
    store.write_text("\n".join([lines[0], lines[1][:30], *lines[2:]]) + "\n")
    before = store.read_bytes()
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is damaged"):
        run(dlm, task, save_to=store)
    assert store.read_bytes() == before


@pytest.mark.parametrize("at", [0, 1, 7])
def test_an_interrupt_returns_finished_batches_and_the_rest_follows(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store, calls = tmp_path / "rows.jsonl", []

    def denoise_until(*args: Any, **kwargs: Any) -> Any:
        if len(calls) == at:
            raise KeyboardInterrupt
        calls.append(1)
        return denoise(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "denoise", denoise_until)
        part = run(dlm, task, seeds=[5], save_to=store)
    assert not part.finished
    assert len(part.rows) == at * N
    expected = table(half.rows)
    assert table(part.rows) == {key: expected[key] for key in table(part.rows)}
    rest = run(dlm, task, seeds=[5], save_to=store)
    assert rest.finished
    same(rest, half)


def test_an_interrupt_inside_a_run_counts_nothing_of_it(
    dlm: HookedDLM, task: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a batch: `denoise` returns what it has, and that is not a result."""
    forwards, forward = [], HookedDLM.__call__

    def until(self: HookedDLM, *args: Any, **kwargs: Any) -> Any:
        forwards.append(1)
        if len(forwards) == 4 + 2:  # two steps into the second batch
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HookedDLM, "__call__", until)
    part = run(dlm, task)
    assert not part.finished
    assert {(row["condition"], row["outcome"]) for row in part.rows} == {("unmasked", "forced")}
    assert len(part.rows) == N
    assert not dlm.hooked


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
        "zero": sl.ZeroSinks(sl.SameStep(top_k=3), sl.Where(layers=[0])),
    }
    plan = sl.Plan(new_tokens=8, block_length=8, steps=4, temperature=1.0)
    task = Echo(6, seed=3, prompt_tokens=12, answer_tokens=8)
    sl.ablate(dlm, task, conditions, plan, seeds=[5], batch_size=2, save_to=sys.argv[1], progress=False)
    """
)


def test_a_killed_ablation_goes_on_where_it_was(
    dlm: HookedDLM, task: Echo, half: AblationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL as soon as the first rows are on disk."""
    store = tmp_path / "rows.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 60
        while not (store.is_file() and store.stat().st_size) and time.monotonic() < until:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    lines = store.read_text().splitlines(keepends=True)
    stored = sum(line.endswith("\n") for line in lines)
    assert 1 <= stored < 30, "the run was over before it could be killed"
    calls = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return denoise(*args, **kwargs)

    monkeypatch.setattr(trials, "denoise", counting)
    rest = run(dlm, task, seeds=[5], batch_size=2, save_to=store)
    assert len(calls) == 30 - stored
    same(rest, half)
