"""The figures of ablations carry the numbers of `summary` and `effects`, each under its own name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sinklens import plots
from sinklens.experiments.results import AblationResult

NAMES = {"sinks": "sinks", "random": "random keys", "same_mass": "random keys of the same mass"}


def made(
    model: str,
    conditions: tuple[str, ...],
    seed: int,
    controls: tuple[str, ...] = ("random", "same_mass"),
    exposed: float = 1.0,
) -> AblationResult:
    """An ablation with made-up scores: 8 prompts, 2 seeds, two metrics; one score that nothing could be said of."""
    draw = np.random.default_rng(seed)
    arms = [("unmasked", "unmasked")] + [(name, kind) for name in conditions for kind in ("sinks", *controls)]
    rows = []
    for condition, kind in arms:
        for prompt in range(8):
            for repeat in range(2):
                row: dict[str, Any] = {"model": model, "task": "made up", "prompt": prompt, "name": f"p{prompt}"}
                row |= {"seed": repeat, "condition": condition, "kind": kind, "places": 4}
                row["exposed"] = None if kind == "unmasked" else exposed
                row |= {"edited_keys": int(draw.integers(1, 9)), "edited_mass": float(draw.random())}
                rows.append({**row, "metric": "accuracy", "value": float(draw.integers(0, 5)) / 4})
                rows.append({**row, "metric": "kl", "value": float(draw.random())})
    rows[-1]["value"] = math.nan
    return AblationResult(rows)


ONE = made("tiny-dlm", ("top-1", "top-5", "top-10"), 0)
TWO = made("tiny-arm", ("top-1", "top-5"), 1)
DOSES = made("tiny-dlm", ("k=1", "k=5", "k=10", "other"), 2)


def bars(axis: Any, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of error bars."""
    return values - np.asarray(axis.arrayminus), values + np.asarray(axis.array)


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_conditions_show_the_summary(metric: str) -> None:
    figure = plots.conditions([ONE, TWO], metric)
    for panel, result in (("x", ONE), ("x2", TWO)):
        table = result.summary()
        table = table[table.metric == metric]
        labels = [name for name in dict.fromkeys(table.condition) if name != "unmasked"]
        axis = figure.layout["xaxis" if panel == "x" else "xaxis2"]
        assert list(axis.ticktext) == labels
        traces = [trace for trace in figure.data if trace.xaxis == panel]
        assert [trace.name for trace in traces] == list(NAMES.values())
        for trace, kind in zip(traces, NAMES, strict=True):
            part = table[table.kind == kind]
            values = np.asarray(trace.y)
            np.testing.assert_allclose(values, part["value"])
            low, high = bars(trace.error_y, values)
            np.testing.assert_allclose(low, part["low"])
            np.testing.assert_allclose(high, part["high"])
            assert [labels[round(x)] for x in trace.x] == list(part.condition)  # each beside its own tick
            assert [row[0] for row in trace.customdata] == list(part.condition)
            np.testing.assert_allclose([row[3] for row in trace.customdata], part["edited_keys"])
    lines = [shape.y0 for shape in figure.layout.shapes]
    bare = [
        float(table[(table.metric == metric) & (table.kind == "unmasked")]["value"].iloc[0])
        for table in (ONE.summary(), TWO.summary())
    ]
    assert lines == pytest.approx(bare)


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_effects_show_every_difference(metric: str) -> None:
    figure = plots.effects(ONE, metric)
    table = ONE.effects(metric)
    labels = list(figure.layout.yaxis.ticktext)
    shown = {}
    for trace in figure.data:
        low, high = bars(trace.error_x, np.asarray(trace.x))
        for place, *numbers in zip(trace.y, trace.x, low, high, trace.customdata, strict=True):
            value, least, most, (condition, *_, p) = numbers
            assert labels[place] == f"{condition} {trace.name}"
            shown[condition, trace.name] = (value, least, most, p)
    expected = {}
    for row in table.itertuples():
        against = (row.to_unmasked, row.to_unmasked_low, row.to_unmasked_high, row.to_unmasked_p_holm)
        expected[row.condition, "- unmasked"] = against
        beyond = (row.to_control, row.to_control_low, row.to_control_high, row.to_control_p_holm)
        expected[row.condition, f"- {NAMES[row.control]}"] = beyond
    assert set(shown) == set(expected)
    assert len(labels) == len(expected) == 9
    for name, numbers in expected.items():
        assert shown[name] == pytest.approx(numbers)


def test_effects_without_controls_and_with_a_margin() -> None:
    figure = plots.effects(made("tiny-dlm", ("top-1",), 3, controls=()), margin=0.1)
    assert [trace.name for trace in figure.data] == ["- unmasked"]
    bands = [(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"]
    assert bands == [(-0.1, 0.1)]
    assert "0.1" in figure.layout.title.text
    without = plots.effects(ONE)
    assert not [shape for shape in without.layout.shapes if shape.type == "rect"]


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_dose_response_shows_the_summary_over_the_doses(metric: str) -> None:
    figure = plots.dose_response(DOSES, "k", metric)
    table = DOSES.summary()
    table = table[table.metric == metric]
    assert [trace.name for trace in figure.data] == [f"tiny-dlm: {name}" for name in NAMES.values()]
    assert figure.layout.yaxis.range == ((-0.02, 1.05) if metric == "accuracy" else None)  # a share is shown whole
    for trace, kind in zip(figure.data, NAMES, strict=True):
        part = table[(table.kind == kind) & (table.condition != "other")]
        assert list(trace.x) == [1.0, 5.0, 10.0]  # to scale, not one after the other
        values = np.asarray(trace.y)
        np.testing.assert_allclose(values, part["value"])
        low, high = bars(trace.error_y, values)
        np.testing.assert_allclose(low, part["low"])
        np.testing.assert_allclose(high, part["high"])
        assert (trace.line.dash == "solid") == (kind == "sinks")
        np.testing.assert_allclose(trace.customdata, part[["low", "high", "edited_keys", "edited_mass", "exposed"]])
    (line,) = figure.layout.shapes
    assert line.y0 == pytest.approx(float(table[table.kind == "unmasked"]["value"].iloc[0]))


def test_exposure_below_one_is_said_in_every_figure() -> None:
    partly = made("m", ("k=1", "k=2"), 5, exposed=0.75)
    figures = plots.conditions(partly), plots.effects(partly), plots.dose_response(partly, "k")
    for figure in figures:
        assert "Of some conditions only 0.75 of the scored places were exposed" in figure.layout.title.text
    assert list(figures[0].layout.xaxis.ticktext) == ["k=1<br>0.75 exposed", "k=2<br>0.75 exposed"]
    assert all("(0.75 exposed)" in label for label in figures[1].layout.yaxis.ticktext)
    for figure in (plots.conditions(DOSES), plots.effects(DOSES), plots.dose_response(DOSES, "k")):
        assert "exposed" not in figure.layout.title.text


def test_doses_that_are_no_numbers_keep_their_order() -> None:
    result = made("tiny-dlm", ("steps=8-15", "steps=0-7"), 4)
    assert list(plots.dose_response(result, "steps").data[0].x) == ["8-15", "0-7"]


def test_dose_response_of_several_models() -> None:
    other = made("tiny-arm", ("k=1", "k=5"), 5, controls=("random",))
    figure = plots.dose_response([DOSES, other], "k", "accuracy")
    names = [*(f"tiny-dlm: {name}" for name in NAMES.values()), "tiny-arm: sinks", "tiny-arm: random keys"]
    assert [trace.name for trace in figure.data] == names
    assert len({trace.marker.symbol for trace in figure.data}) == len(names)  # told apart without colours
    assert len(figure.layout.shapes) == 2


def test_titles_say_metric_and_unit() -> None:
    for figure in (plots.conditions(ONE, "kl"), plots.effects(ONE, "kl"), plots.dose_response(DOSES, "k", "kl")):
        assert "KL(unedited || edited)" in figure.layout.title.text
        assert "nats" in figure.layout.title.text
    assert plots.conditions(ONE).layout.yaxis.range == (0, 1.02)  # shares show the whole scale


def test_names_are_text_not_markup() -> None:
    result = made("<b>m</b>", ("k=1", "<i>x</i>"), 6, controls=("random",))
    for figure in (plots.conditions(result), plots.effects(result), plots.dose_response(result, "k")):
        text = figure.to_json()
        assert "<b>m</b>" not in text.replace("\\u003c", "<").replace("\\u003e", ">")
        assert "<i>x</i>" not in text.replace("\\u003c", "<").replace("\\u003e", ">")


@pytest.mark.parametrize("draw", [plots.conditions, plots.effects, lambda r, m: plots.dose_response(r, "k", m)])
def test_a_metric_that_was_not_measured_is_named(draw: Any) -> None:
    with pytest.raises(ValueError, match="metric 'order' was not measured; there are accuracy, kl"):
        draw(DOSES, "order")


def test_a_control_of_one_result_only_is_in_the_legend_once() -> None:
    without = made("tiny-arm", ("top-1",), 7, controls=())
    figure = plots.conditions([without, ONE, TWO])
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(shown) == sorted(NAMES.values())


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match=r"no condition is named 'epsilon'=\.\.\.; there are unmasked, k=1"):
        plots.dose_response(DOSES, "epsilon")
    with pytest.raises(ValueError, match="the results have no scores"):
        plots.conditions(AblationResult([]))
