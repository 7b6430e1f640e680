"""What an ablation found: paired effects, corrected p-values, tables, files. Made-up rows, every number by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.utilities.statistics import derive_generator

from sinklens import AblationResult
from sinklens.errors import RecordError
from sinklens.experiments.results import Effect
from sinklens.experiments.statistics import equivalent, holm, permutation_p

nan = math.nan
ACCURACY = {
    ("unmasked", "unmasked"): [1.0, 0.5, 0.75, nan, 1.0, 1.0],
    ("cut", "sinks"): [0.5, 0.5, 0.25, 0.0, 0.0, 0.75],
    ("cut", "random"): [1.0, 0.25, 0.75, 1.0, nan, 1.0],
}


def row(condition: str, kind: str, metric: str, prompt: int, seed: int, value: float, **more: Any) -> dict[str, Any]:
    """One row."""
    names = {"model": "m", "task": "t", "name": f"p{prompt}", "prompt": prompt, "seed": seed, "metric": metric}
    exposed = None if kind == "unmasked" else 0.5 if kind == "sinks" else 1.0
    touched = kind != "unmasked"
    edited = {"exposed": exposed, "edited_keys": touched * (6 + prompt), "edited_mass": touched * 1.5}
    return {**names, "condition": condition, "kind": kind, "value": value, "places": 4, **edited, **more}


def made_up() -> AblationResult:
    """Prompt 3 could not be scored unmasked, prompt 4 not under the control; prompt 0 has a second seed."""
    rows = [
        row(condition, kind, metric, prompt, seed, (value / (1 + 3 * seed)) if metric == "accuracy" else 0.0)
        for (condition, kind), values in ACCURACY.items()
        for prompt, value in enumerate(values)
        for seed in ((0, 1) if prompt == 0 else (0,))
        for metric in ("accuracy", "kl")
    ]
    return AblationResult(sorted(rows, key=lambda each: (each["metric"], -each["prompt"], each["seed"])))


def by_hand_bootstrap(differences: list[float]) -> tuple[float, float]:
    """A percentile bootstrap of the mean, resampled here with TransformerLens's default generator, 256 at a time."""
    values, generator = torch.tensor(differences, dtype=torch.float64), derive_generator(0)
    means: list[float] = []
    while len(means) < 2000:
        picks = torch.randint(0, len(values), (min(256, 2000 - len(means)), len(values)), generator=generator)
        means += [float(np.mean([float(values[i]) for i in row])) for row in picks]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


# Effects.


def test_effects_are_paired_by_prompt_without_what_could_not_be_scored() -> None:
    effect = made_up().effect("cut")
    # Prompt 0 is the mean of two seeds (1 and 1 / 4 of the values), then 1, 2, 5.
    # The control could not score prompt 4, which only its own comparison loses.
    to_unmasked = [0.625 * (0.5 - 1.0), 0.0, -0.5, -1.0, -0.25]
    to_control = [0.625 * (0.5 - 1.0), 0.25, -0.5, -0.25]
    assert (effect.condition, effect.metric, effect.control, effect.pairs) == ("cut", "accuracy", "random", 5)
    assert effect.pairs_control == 4
    assert effect.unmasked == pytest.approx((0.625 + 0.5 + 0.75 + 1.0 + 1.0) / 5)
    assert effect.value == pytest.approx((0.3125 + 0.5 + 0.25 + 0.0 + 0.75) / 5)
    assert effect.to_unmasked == pytest.approx(sum(to_unmasked) / 5)
    assert effect.to_control == pytest.approx(sum(to_control) / 4)
    assert effect.to_unmasked == pytest.approx(effect.value - effect.unmasked)
    for interval, differences in ((effect.to_unmasked_interval, to_unmasked), (effect.to_control_interval, to_control)):
        assert interval == pytest.approx(by_hand_bootstrap(differences), abs=1e-3)
    assert effect.to_unmasked_p == pytest.approx(permutation_p(torch.tensor(to_unmasked)))
    assert effect.to_control_p == pytest.approx(permutation_p(torch.tensor(to_control)))
    assert (effect.margin, effect.equivalent, effect.equivalent_to_control) == (None, None, None)
    kl = made_up().effect("cut", "kl")
    assert (kl.pairs, kl.to_unmasked, kl.to_control, kl.to_unmasked_p) == (6, 0, 0, 1)


def test_the_order_of_rows_does_not_matter() -> None:
    one = made_up()
    assert AblationResult(one.scores[::-1]).effect("cut", "accuracy") == one.effect("cut", "accuracy")


def test_an_interval_equals_a_bootstrap_by_hand() -> None:
    differences = [0.3, -0.2, 0.5, 0.1, 0.05, 0.9, -0.4]
    rows = [row("unmasked", "unmasked", "kl", i, 0, 0.0) for i in range(7)]
    rows += [row("a", "sinks", "kl", i, 0, value) for i, value in enumerate(differences)]
    effect = AblationResult(rows).effect("a")
    assert effect.to_unmasked_interval == pytest.approx(by_hand_bootstrap(differences), abs=1e-3)
    assert (effect.control, effect.to_control, effect.to_control_p) == (None, None, None)


def test_the_unit_is_the_prompt_and_not_the_seed() -> None:
    """A hundred seeds of three prompts are three values."""
    rows = [row("unmasked", "unmasked", "kl", p, s, 0.0) for p in range(3) for s in range(100)]
    rows += [row("a", "sinks", "kl", p, s, p + (s % 2)) for p in range(3) for s in range(100)]
    effect = AblationResult(rows).effect("a")
    assert (effect.pairs, effect.to_unmasked) == (3, 1.5)
    assert effect.to_unmasked_p == pytest.approx(2 / 8)
    assert effect.to_unmasked_interval == pytest.approx((0.5, 2.5))


def test_a_seed_that_a_side_could_not_score_is_left_out_on_all_sides() -> None:
    rows = [row("unmasked", "unmasked", "kl", 0, 0, 1.0), row("unmasked", "unmasked", "kl", 0, 1, 100.0)]
    rows += [row("a", "sinks", "kl", 0, 0, 3.0), row("a", "sinks", "kl", 0, 1, nan)]
    effect = AblationResult(rows).effect("a")
    assert (effect.pairs, effect.unmasked, effect.value) == (1, 1.0, 3.0)


def test_pairs_that_an_interrupt_left_half_done_do_not_count() -> None:
    """Prompt 1 was not run under the condition, prompt 2 not under its control."""
    left = {(1, "sinks"), (2, "random")}
    rows = [each for each in made_up().scores if (each["prompt"], each["kind"]) not in left]
    effect = AblationResult(rows, finished=False).effect("cut")
    assert (effect.pairs, effect.pairs_control) == (4, 2)
    assert effect.to_unmasked == pytest.approx((-0.3125 - 0.5 - 1.0 - 0.25) / 4)
    assert effect.to_control == pytest.approx((-0.3125 - 0.25) / 2)


def test_an_effect_that_was_not_run_is_an_error_that_says_what_was() -> None:
    with pytest.raises(ValueError, match=r"no scores for \('top-9', 'sinks', 'accuracy'\).*'cut'.*'random'.*'kl'"):
        made_up().effect("top-9")
    with pytest.raises(ValueError, match=r"no scores for \('cut', 'sinks', 'order'\)|'unmasked', 'order'"):
        made_up().effect("cut", "order")
    with pytest.raises(ValueError, match=r"no scores for \('cut', 'bottom', 'accuracy'\)"):
        made_up().effect("cut", control="bottom")
    nothing = AblationResult([{**each, "value": nan} for each in made_up().scores])
    with pytest.raises(ValueError, match="no prompt could be scored for 'cut', metric 'accuracy'"):
        nothing.effect("cut")


def grid(prompts: int = 12, metric: str = "kl") -> tuple[AblationResult, dict[tuple[str, str], np.ndarray]]:
    """Three conditions, two controls each, two seeds; and the means over seeds."""
    draw = np.random.default_rng(0)
    shift = {"a": 2.0, "b": 0.6, "c": 0.0}
    sides = [("unmasked", "unmasked"), *((c, k) for c in shift for k in ("sinks", "random", "bottom"))]
    values = {side: draw.normal(size=(prompts, 2)) + shift.get(side[0], 0) * (side[1] == "sinks") for side in sides}
    rows = [
        row(condition, kind, metric, prompt, seed, float(table[prompt, seed]))
        for (condition, kind), table in values.items()
        for prompt in range(prompts)
        for seed in range(2)
    ]
    return AblationResult(rows), {side: table.mean(1) for side, table in values.items()}


def test_the_difference_of_differences() -> None:
    result, means = grid()
    for condition in "abc":
        for control in ("random", "bottom"):
            effect = result.effect(condition, "kl", control=control)
            change = means[condition, "sinks"] - means["unmasked", "unmasked"]
            other = means[condition, control] - means["unmasked", "unmasked"]
            assert effect.to_unmasked == pytest.approx(change.mean())
            assert effect.to_control == pytest.approx((change - other).mean())
            assert effect.to_control == pytest.approx((means[condition, "sinks"] - means[condition, control]).mean())
            assert effect.to_unmasked_p == pytest.approx(permutation_p(torch.tensor(change)))
            assert effect.to_control_p == pytest.approx(permutation_p(torch.tensor(change - other)))


def test_the_table_corrects_each_set_of_tests_by_itself() -> None:
    """Three tests against the unmasked run, although each is in two rows; six against the controls."""
    result, means = grid()
    frame = result.effects("kl")
    assert frame[["condition", "control"]].to_numpy().tolist() == [
        [condition, control] for condition in "abc" for control in ("random", "bottom")
    ]
    plain = [
        permutation_p(torch.tensor(means[condition, "sinks"] - means["unmasked", "unmasked"])) for condition in "abc"
    ]
    beyond = [
        permutation_p(torch.tensor(means[condition, "sinks"] - means[condition, control]))
        for condition in "abc"
        for control in ("random", "bottom")
    ]
    assert frame["to_unmasked_p"].tolist() == pytest.approx(np.repeat(plain, 2).tolist())
    assert frame["to_unmasked_p_holm"].tolist() == pytest.approx(np.repeat(holm(plain), 2).tolist())
    assert frame["to_control_p"].tolist() == pytest.approx(beyond)
    assert frame["to_control_p_holm"].tolist() == pytest.approx(holm(beyond))
    assert min(plain) * 3 == pytest.approx(frame["to_unmasked_p_holm"].min())
    for (_, line), (condition, control) in zip(
        frame.iterrows(), ((c, k) for c in "abc" for k in ("random", "bottom")), strict=True
    ):
        effect = result.effect(condition, "kl", control=control)
        assert (line["to_unmasked_low"], line["to_unmasked_high"]) == effect.to_unmasked_interval
        assert (line["to_control_low"], line["to_control_high"]) == effect.to_control_interval
        assert (line["pairs"], line["value"], line["unmasked"]) == (12, effect.value, effect.unmasked)


def test_a_table_of_conditions_with_and_without_controls() -> None:
    result, _ = grid()
    rows = [each for each in result.scores if each["condition"] != "b" or each["kind"] == "sinks"]
    frame = AblationResult(rows).effects("kl")
    assert frame["condition"].tolist() == ["a", "a", "b", "c", "c"]
    lone = frame.iloc[2]
    assert lone["control"] is None or lone["control"] != lone["control"]
    for name in ("to_control", "to_control_low", "to_control_high", "to_control_p", "to_control_p_holm"):
        assert math.isnan(lone[name])
    others = frame[frame["condition"] != "b"]
    assert others["to_control_p_holm"].tolist() == pytest.approx(holm(others["to_control_p"].tolist()))


def test_a_corrected_p_is_never_below_the_p_of_its_row() -> None:
    result, _ = grid()
    rows = [
        each | ({"value": nan} if each["kind"] == "random" and each["prompt"] >= 4 else {}) for each in result.scores
    ]
    frame = AblationResult(rows).effects("kl")
    assert (frame["to_unmasked_p_holm"] >= frame["to_unmasked_p"]).all()


def test_a_table_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no conditions"):
        AblationResult([row("unmasked", "unmasked", "kl", 0, 0, 0.0)]).effects()


def test_margins() -> None:
    draw = np.random.default_rng(1)
    noise = draw.normal(size=(3, 40)) * 0.01
    rows = [row("unmasked", "unmasked", "accuracy", i, 0, 0.5 + noise[0, i]) for i in range(40)]
    rows += [row("a", "sinks", "accuracy", i, 0, 0.5 + noise[1, i]) for i in range(40)]
    rows += [row("a", "random", "accuracy", i, 0, 0.8 + noise[2, i]) for i in range(40)]
    result = AblationResult(rows)
    for margin, first, second in ((0.05, True, False), (1e-4, False, False), (0.5, True, True)):
        effect = result.effect("a", margin=margin)
        assert (effect.margin, effect.equivalent, effect.equivalent_to_control) == (margin, first, second)
        assert effect.equivalent == equivalent(torch.tensor(noise[1] - noise[0]), margin)
        frame = result.effects(margin=margin)
        assert (frame["equivalent"][0], frame["equivalent_to_control"][0]) == (first, second)
    with pytest.raises(ValueError, match="must be above 0"):
        result.effect("a", margin=0.0)


def test_an_effect_is_a_plain_record() -> None:
    assert isinstance(made_up().effect("cut"), Effect)


# The summary.


def test_the_summary_is_the_mean_over_prompts_each_the_mean_over_seeds() -> None:
    summary = made_up().summary()
    columns = ["model", "metric", "condition", "kind", "value", "low", "high", "scored", "places"]
    assert list(summary.columns) == [*columns, "exposed", "edited_keys", "edited_mass"]
    assert len(summary) == 6
    frame = summary.set_index(["metric", "condition", "kind"])
    line = frame.loc["accuracy", "unmasked", "unmasked"]
    assert line["value"] == pytest.approx((0.625 + 0.5 + 0.75 + 1 + 1) / 5)
    assert (line["scored"], line["places"]) == (5, 7 * 4)
    assert line["low"] <= line["value"] <= line["high"]
    assert (line["edited_keys"], line["edited_mass"]) == (0, 0)
    assert math.isnan(line["exposed"])
    line = frame.loc["accuracy", "cut", "sinks"]
    assert line["edited_keys"] == pytest.approx((6 + 6 + 7 + 8 + 9 + 10 + 11) / 7)
    assert line["edited_mass"] == 1.5
    assert line["exposed"] == 0.5


def test_exposure_stands_beside_every_effect() -> None:
    effect = made_up().effect("cut", "kl")
    assert (effect.exposed, effect.exposed_control) == (0.5, 1.0)
    assert made_up().effects("kl")[["exposed", "exposed_control"]].iloc[0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_summary_does_not_claim_certainty_where_all_prompts_agree(value: float) -> None:
    """Clopper-Pearson for 0 (or all) of n: the other end is (alpha / 2) ** (1 / n) away."""
    rows = [{**each, "value": value} for each in made_up().scores]
    line = AblationResult(rows).summary().set_index(["metric", "condition", "kind"]).loc["accuracy", "cut", "sinks"]
    width = 1 - 0.025 ** (1 / 6)
    assert (line["low"], line["high"]) == pytest.approx((0.0, width) if value == 0 else (1 - width, 1.0), abs=1e-6)


def test_the_summary_of_what_is_no_share_is_bootstrapped() -> None:
    line = made_up().summary().set_index(["metric", "condition", "kind"]).loc["kl", "cut", "sinks"]
    assert (line["value"], line["low"], line["high"], line["scored"]) == (0, 0, 0, 6)


def test_the_summary_of_what_could_not_be_scored() -> None:
    rows = [{**each, "value": nan, "places": 0} for each in made_up().scores]
    for _, line in AblationResult(rows).summary().iterrows():
        assert all(math.isnan(line[name]) for name in ("value", "low", "high"))
        assert (line["scored"], line["places"]) == (0, 0)


def test_the_frame_has_all_rows() -> None:
    frame = made_up().to_dataframe()
    assert len(frame) == len(made_up().scores) == 3 * 7 * 2
    assert list(frame.columns) == list(made_up().scores[0])


# Files.


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    made = {"plan": {"steps": 4, "threshold": None}, "seeds": [0, 1], "conditions": {"a (sinks)": "é"}}
    for result in (
        AblationResult(made_up().scores, False, made),
        AblationResult(
            [row("unmasked", "unmasked", "log_likelihood", 0, 0, 0.1 + 0.2), row("a", "b", "kl", 0, 0, nan)]
        ),
        AblationResult([]),
    ):
        path = result.save(tmp_path / "deep" / "er" / "it.json")
        again = AblationResult.open(str(path))
        assert path == tmp_path / "deep" / "er" / "it.json"
        assert (again.finished, again.provenance) == (result.finished, result.provenance)
        assert [list(each) for each in again.scores] == [list(each) for each in result.scores]
        for ours, theirs in zip(again.scores, result.scores, strict=True):
            for name, value in theirs.items():
                assert ours[name] == value or (math.isnan(ours[name]) and math.isnan(value))
        assert [each.name for each in path.parent.iterdir()] == ["it.json"]
    restored = AblationResult.open(AblationResult(made_up().scores).save(tmp_path / "a.json"))
    assert restored.effect("cut") == made_up().effect("cut")
    assert restored.summary().equals(made_up().summary())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = made_up().save(tmp_path / "it.json")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        AblationResult([row("a", "b", "kl", 0, 0, 0.0, name=object())]).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["it.json"]


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "text": b"not json",
    "binary": b"\x89HDF\xff\xfe\x00",
    "list": b"[1, 2]",
    "number": b"3",
    "object": b'{"a": 1}',
    "scores only": b'{"scores": []}',
    "jsonl": b'{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n',
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_an_error(tmp_path: Path, what: str) -> None:
    (tmp_path / "it.json").write_bytes(FOREIGN[what])
    with pytest.raises(RecordError, match=r"it.json' is no ablation that AblationResult.save wrote"):
        AblationResult.open(tmp_path / "it.json")


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = made_up().save(tmp_path / "it.json")
    text = path.read_text()
    for length in (1, len(text) // 2, len(text) - 1):
        path.write_text(text[:length])
        with pytest.raises(RecordError):
            AblationResult.open(path)


def test_no_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(RecordError, match="is no ablation"):
            AblationResult.open(path)


@pytest.mark.parametrize(
    "stored",
    [{"scores": 3, "finished": True, "provenance": {}}, {"scores": [{"a": 1}], "finished": "yes", "provenance": {}}],
)
def test_a_file_with_the_right_keys_and_wrong_parts_is_an_error(tmp_path: Path, stored: Any) -> None:
    (tmp_path / "it.json").write_text(json.dumps(stored))
    with pytest.raises(RecordError):
        AblationResult.open(tmp_path / "it.json")
