"""Budget curves: what is run, what is refused before a forward, and what the table says of given scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinklens import AblationResult, HookedDLM, MaskSinks, Plan, SameStep, Scope, SinkRule, ablate, denoise
from sinklens.errors import ContentError, GateError, TaskError
from sinklens.experiments.budget_table import breaking_point, budget_table
from sinklens.experiments.budgets import budget_curve, budget_edits, gates_for
from sinklens.interventions import ChanceSelection, KeepKeys, LearnedSelection, RandomKeys
from sinklens.probes import Kept
from sinklens.selection import Gate, Shape
from sinklens.tasks import Echo

ALONE = ("without sinks", "without as many others")
GAPS, FILL = Echo(n=3, gaps=0.5), Plan(new_tokens=0)


@pytest.fixture(scope="module")
def twins() -> dict[str, HookedDLM]:
    """Both bundled twins."""
    return {name: HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


def test_each_condition_is_the_edit_that_its_name_says() -> None:
    where = Scope(layers=1)
    edits = budget_edits((0.5, 1.0, 0.25), ("key_norm", "random"), draws=2, where=where, queries="last")
    said: dict[str, Any] = {"where": where, "queries": "last"}
    sinks = SameStep(SinkRule())
    assert edits == {
        "key_norm=0.25": KeepKeys(0.25, "key_norm", **said),
        "key_norm=0.5": KeepKeys(0.5, "key_norm", **said),
        "random#0=0.25": KeepKeys(0.25, "random", seed=0, **said),
        "random#1=0.25": KeepKeys(0.25, "random", seed=1, **said),
        "random#0=0.5": KeepKeys(0.5, "random", seed=0, **said),
        "random#1=0.5": KeepKeys(0.5, "random", seed=1, **said),
        "without sinks": MaskSinks(sinks, **said),
        "without as many others": MaskSinks(RandomKeys(sinks), **said),
    }
    assert list(budget_edits((0.5,), ("recency",), sinks=None)) == ["recency=0.5"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rates": (0.5, 0.0)}, r"rate 0\.0 is outside \(0, 1\]"),
    ({"rates": (1.25,)}, r"rate 1\.25 is outside \(0, 1\]"),
    ({"rates": (0.5, 0.5)}, "names one twice"),
    ({"rates": (1.0,)}, "drops nothing"),
    ({"rates": ("half",)}, "'half'"),
    ({"selectors": ("best",)}, "'best'.* is unknown|selectors.*best"),
    ({"selectors": ("random", "random")}, "names one twice"),
    ({"selectors": (), "gates": {}}, "is empty"),
    ({"draws": 0}, "draws=0"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_no_budget_is_refused_before_a_forward(
    twins: dict[str, HookedDLM], no_forward: None, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContentError, match=message):
        budget_curve(twins["tiny-dlm"], GAPS, plan=FILL, **given)


@pytest.mark.parametrize(
    ("rate", "why"),
    [(0.02, r"0\.02 is less than one of them.*from 0\.021 to 0\.979"), (0.98, r"0\.98 keeps all of them")],
)
def test_a_rate_that_means_nothing_on_the_shortest_prompt_is_refused(
    twins: dict[str, HookedDLM], no_forward: None, rate: float, why: str
) -> None:
    """The canvas has 48 positions."""
    with pytest.raises(TaskError, match=f"48 keys.*{why}"):
        budget_curve(twins["tiny-dlm"], GAPS, (0.5, rate), plan=FILL)


def test_a_baseline_counts_the_keys_of_its_prompt(twins: dict[str, HookedDLM], no_forward: None) -> None:
    """Sixteen tokens at its first step, however many it will write."""
    with pytest.raises(TaskError, match=r"16 keys at its first step, and 0\.95 keeps all"):
        budget_curve(twins["tiny-arm"], Echo(n=2), (0.95,), plan=Plan(new_tokens=32))


def test_a_rate_at_either_end_of_what_a_prompt_allows_is_run(twins: dict[str, HookedDLM]) -> None:
    given: dict[str, Any] = {"gates": {}, "sinks": None, "progress": False}
    result = budget_curve(twins["tiny-dlm"], GAPS, (1 / 48, 47 / 48), ("recency",), FILL, **given)
    kept = budget_table(result).set_index("rate")["kept"]
    assert kept[1 / 48] == pytest.approx(1 / 48)
    assert kept[47 / 48] == pytest.approx(47 / 48)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_the_share_that_was_kept_is_counted(twins: dict[str, HookedDLM], name: str) -> None:
    """By hand: whole keys, rounded up, of a canvas that is whole (tiny-dlm) or grows by one at each step."""
    task, plan = (GAPS, FILL) if name == "tiny-dlm" else (Echo(n=3, answer_tokens=6), Plan(new_tokens=6))
    sizes = [48] if name == "tiny-dlm" else [16 + step for step in range(6)]
    rates, choices = (0.3, 0.8), ("received", "random")
    table = budget_table(budget_curve(twins[name], task, rates, choices, plan, gates={}, progress=False))
    for line in table[table.rate.notna() & (table.selector != "unmasked")].itertuples():
        kept = sum(math.ceil(line.rate * size - 1e-9) for size in sizes) / sum(sizes)
        assert [line.kept, line.kept_low, line.kept_high] == pytest.approx([kept] * 3)
        assert line.exposed == 1
    one, other = (table[table.selector == each].iloc[0] for each in ("without sinks", "without as many others"))
    assert 0.5 < one.kept < 1
    assert one.kept <= other.kept < 1


def test_a_finished_curve_is_not_run_again(
    twins: dict[str, HookedDLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.jsonl"
    given: Any = (GAPS, (0.5,), ("random",), FILL)
    first = budget_curve(twins["tiny-dlm"], *given, save_to=path, progress=False)

    def forward(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward was run")

    monkeypatch.setattr(HookedDLM, "__call__", forward)
    again = budget_curve(twins["tiny-dlm"], *given, save_to=path, progress=False)
    assert json.dumps(again.scores) == json.dumps(first.scores)
    pd.testing.assert_frame_equal(budget_table(again), budget_table(first))


# Gates.


@pytest.fixture(scope="module")
def gate(twins: dict[str, HookedDLM], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained gate of tiny-dlm that chooses in layer 1: it keeps what chance gives, and not the rate."""
    folder = tmp_path_factory.mktemp("gates") / "one"
    Gate.fresh(Shape(), twins["tiny-dlm"], seed=1).save(folder)
    return str(folder)


def test_beside_a_gate_everything_chooses_in_the_layers_in_which_it_does(gate: str) -> None:
    edits = budget_edits((0.5, 0.25), ("recency",), gates={"mine": gate}, draws=2)
    mine = [f"mine{which}={rate}" for rate in (0.25, 0.5) for which in ("", " by chance#0", " by chance#1")]
    where = Scope(layers=slice(1, None))
    assert list(edits) == ["recency=0.25", "recency=0.5", *mine, *ALONE]
    assert edits["recency=0.5"] == KeepKeys(0.5, "recency", where=where)
    assert edits["mine=0.25"] == LearnedSelection(gate, rate=0.25, where=where)
    chance = ChanceSelection(LearnedSelection(gate, rate=0.25, where=where), seed=1, where=where)
    assert edits["mine by chance#1=0.25"] == chance
    assert edits["without sinks"] == MaskSinks(SameStep(SinkRule()), where=where)
    assert budget_edits((0.5,), (), gates={"mine": gate}, where=Scope(), sinks=None, draws=1) == {
        "mine=0.5": LearnedSelection(gate, rate=0.5),
        "mine by chance#0=0.5": ChanceSelection(LearnedSelection(gate, rate=0.5)),
    }


def test_the_share_that_a_gate_keeps_is_that_of_its_own_record(twins: dict[str, HookedDLM], gate: str) -> None:
    """Prompts keep different shares; each is run again by itself under the edit, and recorded."""
    rates, dlm = (0.4, 0.6), twins["tiny-dlm"]
    given: dict[str, Any] = {"gates": {"mine": gate}, "sinks": None, "metrics": ["accuracy"], "progress": False}
    table = budget_table(budget_curve(dlm, GAPS, rates, ("random",), FILL, **given))
    for rate in rates:
        edit, probe = LearnedSelection(gate, rate=rate), Kept(gate, (rate,), where=Scope(layers=1))
        shares = []
        for index in range(3):
            prompt = GAPS[index].prompt
            run = denoise(dlm, prompt, FILL, interventions=[edit], probes=[probe], seed=index, progress=False)
            shares.append(float(run.record["kept"].mean()))
        line = table[(table.selector == "mine") & (table.rate == rate)].iloc[0]
        want = [np.mean(shares), min(shares), max(shares)]
        assert [line.kept, line.kept_low, line.kept_high] == pytest.approx(want)
        assert 0 < min(shares) < max(shares) < 1
        alone = ablate(dlm, GAPS, {f"mine={rate}": edit}, FILL, controls=None, metrics=["accuracy"], progress=False)
        found = [score["kept"] for score in alone.scores if score["kind"] == "sinks"]
        assert found == pytest.approx(shares)  # where nothing else hooks the scores, keys are dropped for real
        chance = table[(table.selector == "mine by chance") & (table.rate == rate)].iloc[0]
        assert chance.kept == pytest.approx(line.kept, abs=0.1)  # of its own run, which goes another way
        assert line.to_random == pytest.approx(line.value - chance.value)


@pytest.mark.parametrize("name", ["random", "", "a=b", "a#1", "unmasked", "without sinks"])
def test_a_gate_cannot_be_called_what_means_something_else(gate: str, name: str) -> None:
    with pytest.raises(ContentError, match=r"names one twice|a name of its own"):
        budget_edits((0.5,), gates={name: gate})


def test_a_gate_that_is_not_there_or_of_another_model_is_refused_before_a_forward(
    twins: dict[str, HookedDLM], gate: str, no_forward: None
) -> None:
    with pytest.raises(GateError, match="'/nowhere'"):
        budget_curve(twins["tiny-dlm"], GAPS, (0.5,), plan=FILL, gates={"mine": "/nowhere"})
    with pytest.raises(GateError, match="tiny-dlm"):
        budget_curve(twins["tiny-arm"], Echo(n=2), (0.5,), plan=Plan(new_tokens=32), gates={"mine": gate})


def test_a_gate_that_comes_with_sinklens_is_there_unasked(twins: dict[str, HookedDLM]) -> None:
    result = budget_curve(twins["tiny-dlm"], GAPS, (0.5,), (), FILL, sinks=None, draws=1, progress=False)
    assert budget_table(result)["selector"].tolist() == ["unmasked", "learned", "learned by chance"]
    for given in (None, {"learned": "auto"}):
        assert gates_for(twins["tiny-dlm"], given) == {"learned": "tiny-dlm"}
    assert gates_for(twins["tiny-dlm"], {}) == {}


# The table, of given scores.

VALUES = {
    "unmasked": [0.9, 0.8, 1.0, 0.7],
    "received=0.25": [0.5, 0.6, 0.4, 0.7],
    "random#0=0.25": [0.2, 0.4, 0.3, 0.1],
    "random#1=0.25": [0.4, 0.2, 0.5, 0.5],
    "without sinks": [0.1, 0.2, 0.3, 0.4],
    "without as many others": [0.8, 0.8, 0.9, 0.7],
}


def scores_of(values: dict[str, list[float]], **more: Any) -> AblationResult:
    """Scores as `ablate` has them; prompt i keeps a share of 0.2 + i / 10."""
    names: dict[str, Any] = {"model": "m", "task": "t", "seed": 0, "metric": "accuracy", "places": 1, **more}
    scores = [
        {**names, "prompt": prompt, "name": str(prompt), "condition": condition, "value": value}
        | {"kind": "unmasked" if condition == "unmasked" else "sinks", "edited_keys": 1, "edited_mass": 1.0}
        | {"exposed": None if condition == "unmasked" else 0.5}
        | {"kept": None if condition == "unmasked" else 0.2 + prompt / 10}
        for condition, each in values.items()
        for prompt, value in enumerate(each)
    ]
    return AblationResult(scores)


def test_the_table_is_paired_by_prompt_and_averages_draws() -> None:
    table = budget_table(scores_of(VALUES)).set_index("selector")
    mean = {name: np.mean(each) for name, each in VALUES.items()}
    drawn = np.mean([VALUES["random#0=0.25"], VALUES["random#1=0.25"]], axis=0)
    assert list(table.index) == ["unmasked", "received", "random", "without sinks", "without as many others"]
    assert table["rate"].tolist() == pytest.approx([1.0, 0.25, 0.25, math.nan, math.nan], nan_ok=True)
    received = mean["received=0.25"]
    assert table.loc["received", "value"] == pytest.approx(received)
    assert table.loc["random", "value"] == pytest.approx(drawn.mean())
    assert table.loc["received", "to_unmasked"] == pytest.approx(received - mean["unmasked"])
    assert table.loc["received", "to_random"] == pytest.approx(received - drawn.mean())
    difference = np.array(VALUES["received=0.25"]) - drawn  # 0.2, 0.3, 0, 0.4
    low, high = table.loc["received", ["to_random_low", "to_random_high"]]
    assert difference.min() <= low < difference.mean() < high <= difference.max()
    worth = mean["without sinks"] - mean["without as many others"]
    assert table.loc["without sinks", "to_random"] == pytest.approx(worth)
    assert table["to_random"].isna().tolist() == [True, False, True, False, True]
    assert table.loc["random", ["kept", "kept_low", "kept_high"]].tolist() == pytest.approx([0.35, 0.2, 0.5])
    assert table["exposed"].tolist() == pytest.approx([math.nan, *[0.5] * 4], nan_ok=True)
    assert table["to_random_kept"].dropna().tolist() == pytest.approx([0.0, 0.0])  # each kept as much as its control
    # Of four prompts: 16 ways to flip signs. Of the differences to random (0.2, 0.3, 0, 0.4) four are as far from 0.
    assert table.loc["received", "to_random_p"] == pytest.approx(4 / 16)
    assert table.loc["without sinks", "to_random_p"] == pytest.approx(2 / 16)
    assert table["to_random_p_holm"].dropna().tolist() == pytest.approx([4 / 16, 2 * 2 / 16])


def test_each_selector_has_the_control_that_chooses_as_it_does() -> None:
    names = ("received", "hidden_norm", "recency", "mine", "random#0", "random_tokens#0", "mine by chance#0")
    level = {name: 0.1 * (1 + place) for place, name in enumerate(names)}
    result = scores_of({"unmasked": [1.0] * 4} | {f"{name}=0.25": [value] * 4 for name, value in level.items()})
    table = budget_table(result).set_index("selector")["to_random"]
    for name, beside in zip(
        names, ["random#0", "random_tokens#0", "random_tokens#0", "mine by chance#0"], strict=False
    ):
        assert table[name] == pytest.approx(level[name] - level[beside])
    assert table[["random", "random_tokens", "mine by chance"]].isna().all()


def test_a_gate_that_keeps_more_than_its_control_is_told_apart_from_one_that_does_not() -> None:
    result = scores_of({name: [0.5] * 4 for name in ("unmasked", "mine=0.25", "mine by chance#0=0.25")})
    more = [
        score | {"kept": score["kept"] + 0.1} if score["condition"] == "mine=0.25" else score for score in result.scores
    ]
    for scores, expected in ((result.scores, 0.0), (more, 0.1)):
        table = budget_table(AblationResult(scores)).set_index("selector")
        assert table.loc["mine", "to_random_kept"] == pytest.approx(expected)


def test_what_was_kept_more_is_paired_by_prompt_in_an_interrupted_curve() -> None:
    """Each prompt keeps as much as its control: prompts of which one is missing, or has no score, are no difference."""
    whole = scores_of({"unmasked": [1.0] * 4, "mine=0.25": [0.5] * 4, "mine by chance#0=0.25": [0.4, math.nan, 0.4]})
    table = budget_table(AblationResult(whole.scores, finished=False)).set_index("selector")
    assert table.loc["mine", "kept"] == pytest.approx(0.35)
    assert table.loc["mine by chance", "kept"] == pytest.approx(0.3)
    assert table.loc["mine", "to_random"] == pytest.approx(0.1)
    assert table.loc["mine", "to_random_kept"] == pytest.approx(0.0)


def test_prompts_that_a_side_could_not_score_are_left_out_of_its_pairs() -> None:
    values = VALUES | {"random#1=0.25": [0.4, math.nan, 0.5, 0.5]}
    table = budget_table(scores_of(values)).set_index("selector")
    assert table.loc["random", "pairs"] == 3
    assert table.loc["random", "value"] == pytest.approx(np.mean([0.3, 0.4, 0.3]))
    assert table.loc["received", "pairs"] == 4
    assert table.loc["received", "to_random"] == pytest.approx(np.mean([0.2, 0.0, 0.4]))


@pytest.mark.parametrize(
    ("values", "metric", "message"),
    [(VALUES, "kl", "metric 'kl' was not measured"), ({"unmasked": [1.0], "top-1": [0.5]}, None, "no budget curve")],
)
def test_a_table_of_something_else_is_refused(values: dict[str, list[float]], metric: str | None, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        budget_table(scores_of(values), metric)


def table_with(lost: dict[float, tuple[float, float, float]]) -> pd.DataFrame:
    """A table of one selector: by rate the difference to unmasked, the low end of its interval, and p."""
    table = budget_table(scores_of({"unmasked": [1.0] * 3} | {f"received={rate}": [1.0] * 3 for rate in lost}))
    for rate, (mean, low, p) in lost.items():
        names = ["to_unmasked", "to_unmasked_low", "to_unmasked_high", "to_unmasked_p_holm"]
        table.loc[(table.rate == rate) & (table.selector == "received"), names] = [mean, low, 0.0, p]
    return table


@pytest.mark.parametrize(
    ("lost", "margin", "holds", "breaks"),
    [
        ({0.1: (-0.5, -0.6, 0.01), 0.5: (-0.1, -0.2, 0.3), 0.9: (0.0, 0.0, 1.0)}, None, 0.5, 0.1),
        # It holds at 0.1 again, which counts for nothing: in between it does not.
        ({0.1: (-0.1, -0.2, 0.3), 0.5: (-0.5, -0.6, 0.01), 0.9: (0.0, 0.0, 1.0)}, None, 0.9, 0.5),
        ({0.1: (0.0, 0.0, 1.0), 0.9: (-0.5, -0.6, 0.01)}, None, math.nan, 0.9),
        ({0.1: (0.3, 0.2, 0.01), 0.9: (0.0, 0.0, 1.0)}, None, 0.1, math.nan),  # better than unmasked is no break
        # Not shown to be below is not the same as shown not to be.
        ({0.1: (-0.1, -0.2, 0.3), 0.9: (-0.01, -0.04, 0.3)}, 0.05, 0.9, 0.1),
    ],
)
def test_a_model_holds_down_to_the_rate_below_which_it_is_shown_to_lose(
    lost: dict[float, tuple[float, float, float]], margin: float | None, holds: float, breaks: float
) -> None:
    line = breaking_point(table_with(lost), margin).iloc[0]
    assert line.selector == "received"
    assert [line.holds, line.breaks] == pytest.approx([holds, breaks], nan_ok=True)
    if not math.isnan(breaks):
        assert line.lost == lost[breaks][0]


def test_a_table_that_is_none_has_no_breaking_point() -> None:
    with pytest.raises(ContentError, match="no column 'rate'"):
        breaking_point(pd.DataFrame({"selector": ["received"]}))
