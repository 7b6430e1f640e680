"""The figure of an adaptation shows the log's numbers at their updates, and refuses what is no such log."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sinklens import plots


def row(update: int, first: list[float], on: list[float], accuracy: list[float], **more: Any) -> dict[str, Any]:
    """A line as examples/adapt_smollm2.py writes it, of a model with three layers."""
    return {
        "update": update,
        "tokens": update * 40,
        "loss": None,
        "t=0.15": {"cross_entropy": 2.0, "accuracy": accuracy[0]},
        "t=0.5": {"cross_entropy": 4.0, "accuracy": accuracy[1]},
        "facts, 1 masks": accuracy[2],
        "facts, 4 masks": accuracy[3],
        "sinks": {
            "first_token": first,
            "per_head": [1.0, 2.0, 4.5],
            "on": dict(zip(("first", "newline", "punctuation", "separator"), on, strict=True)),
        },
        **more,
    }


CAUSAL = row(0, [0.1, 0.7, 0.4], [0.5, 0.1, 0.1, 0.1], [0.3, 0.1, 0.8, 1.0], causal=True)
ROWS = [
    row(0, [0.01, 0.02, 0.03], [0.0, 0.2, 0.3, 0.1], [0.2, 0.05, 0.3, 0.2], causal=False),
    row(20, [0.02, 0.02, 0.05], [0.1, 0.3, 0.2, 0.15], [0.4, 0.2, 0.6, 0.7], causal=False),
    row(300, [0.0, 0.06, 0.0], [0.05, 0.6, 0.1, 0.25], [0.5, 0.3, 0.7, 0.9], causal=False),
]


def shown(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def test_every_number_of_the_log_is_drawn_at_its_update(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(each) for each in [CAUSAL, *ROWS]) + "\n")
    for log in (tmp_path, str(tmp_path / "log.jsonl"), [CAUSAL, *ROWS]):
        figure = plots.adaptation(log)
        assert list(shown(figure, "layer 1").y) == [0.7, 0.02, 0.02, 0.06]
        assert shown(figure, "mean over layers").y == pytest.approx([0.4, 0.02, 0.03, 0.02])
        assert list(shown(figure, "first token").y) == [0.5, 0.0, 0.1, 0.05]
        assert list(shown(figure, "newline").y) == [0.1, 0.2, 0.3, 0.6]
        assert shown(figure, "other").y == pytest.approx([0.2, 0.4, 0.25, 0.0])
        assert list(shown(figure, "15% of tokens masked").y) == [0.3, 0.2, 0.4, 0.5]
        assert list(shown(figure, "50% of tokens masked").y) == [0.1, 0.05, 0.2, 0.3]
        assert list(shown(figure, "facts, 1 mask").y) == [0.8, 0.3, 0.6, 0.7]
        assert list(shown(figure, "facts, 4 masks").y) == [1.0, 0.2, 0.7, 0.9]
        axis = figure.layout.xaxis
        labels = dict(zip(axis.tickvals, axis.ticktext, strict=True))
        for trace in figure.data:
            assert [labels.get(x, x) for x in trace.x] == ["<br>causal", "0", "20", "300"]
            assert list(trace.x) == sorted(trace.x)
        assert axis.type == "log"
        assert shown(figure, "newline").customdata[2] == "update 20, 2.50 sinks per head"
        panels = [shown(figure, name).xaxis for name in ("layer 0", "other", "facts, 1 mask")]
        assert panels == ["x", "x2", "x3"]
        assert (
            "0.400 in the causal original, 0.020 at update 0, 0.020 at update 300"
            in figure.layout.title.text.replace("<br>", " ")
        )
        assert "uniform" not in [trace.name for trace in figure.data]


def test_uniform_attention_is_that_of_the_direction_at_each_place(tmp_path: Path) -> None:
    """Causal: query i gives the first token 1 / (i + 1), so the mean of that; seeing both ways: 1 / length."""
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(each) for each in [CAUSAL, *ROWS]))
    (tmp_path / "recipe.json").write_text('{"length": 4}')
    line = shown(plots.adaptation(tmp_path), "uniform")
    assert line.y == pytest.approx([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, 0.25, 0.25, 0.25])
    assert line.line.dash not in (None, "solid")


def test_a_log_without_its_original_says_so() -> None:
    figure = plots.adaptation([{k: v for k, v in each.items() if k != "causal"} for each in ROWS])
    assert not any("causal" in text for text in figure.layout.xaxis.ticktext)
    assert "the causal original is not in this log" in figure.layout.title.text.replace("<br>", " ")


def test_thirty_layers_do_not_fill_the_legend_and_no_colour_is_alone() -> None:
    rows = deepcopy(ROWS)
    for each in rows:
        each["sinks"]["first_token"] = [0.01 * n for n in range(30)]
    figure = plots.adaptation(rows)
    layers = [trace for trace in figure.data if trace.name.startswith("layer")]
    assert len({trace.line.color for trace in layers}) == 30
    named = [trace for trace in layers if trace.showlegend]
    assert [trace.name for trace in named] == ["layer 0", "layer 15", "layer 29"]
    assert len({trace.line.dash for trace in named}) == 3
    for axis in ("x2", "x3"):
        looks = {(each.line.dash, each.marker.symbol) for each in figure.data if each.xaxis == axis}
        assert len(looks) == sum(each.xaxis == axis for each in figure.data)


TWINS = Path(plots.__file__).parents[1] / "twins"


@pytest.mark.parametrize("name", ["adaptation", "tiny-dlm", "tiny-arm"])
def test_headings_of_neighbouring_panels_leave_room_for_each_other(name: str) -> None:
    figure = plots.adaptation([CAUSAL, *ROWS]) if name == "adaptation" else plots.emergence(TWINS / name)
    headings = sorted((each.x, each.text) for each in figure.layout.annotations)
    assert len(headings) == 3
    for (left, one), (right, other) in pairwise(headings):
        between = (right - left) * (660 - 100)  # the narrowest figure of a page, less its margins
        assert (len(one) + len(other)) / 2 * 7 < between, f"{one!r} meets {other!r} at 660 pixels"


def test_a_training_that_wrote_its_beginning_twice_is_drawn_once() -> None:
    figure = plots.adaptation([CAUSAL, ROWS[0], CAUSAL, *ROWS])
    assert len(shown(figure, "layer 0").x) == 4


@pytest.mark.parametrize("field", ["first_token", "per_head", "on"])
def test_a_missing_field_of_the_sinks_is_named(field: str) -> None:
    rows = deepcopy(ROWS)
    del rows[1]["sinks"][field]
    with pytest.raises(ValueError, match=rf"sinks of update 20 has no '{field}'; it has "):
        plots.adaptation(rows)


def test_what_is_no_such_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no log .*log\.jsonl"):
        plots.adaptation(tmp_path)
    with pytest.raises(ValueError, match="no rows"):
        plots.adaptation([])
    with pytest.raises(ValueError, match="needs update, sinks; this one has loss"):
        plots.adaptation([{"loss": 1}])
    with pytest.raises(ValueError, match="needs t=<share"):
        plots.adaptation([{"update": 0, "sinks": ROWS[0]["sinks"]}])
    with pytest.raises(ValueError, match="needs facts, 4 masks; this one has"):
        plots.adaptation([ROWS[0], {name: value for name, value in ROWS[1].items() if name != "facts, 4 masks"}])
    with pytest.raises(ValueError, match=r"t=0\.5 of update 0 has no 'accuracy'; it has cross_entropy"):
        plots.adaptation([ROWS[0] | {"t=0.5": {"cross_entropy": 1.0}}])
    other = deepcopy(ROWS)
    other[2]["update"] = 20
    with pytest.raises(ValueError, match="two different rows of update 20; it mixes two trainings"):
        plots.adaptation(other)
    other = deepcopy(ROWS)
    other[1]["sinks"]["first_token"].pop()
    with pytest.raises(ValueError, match="update 20 has other layers"):
        plots.adaptation(other)
    other = deepcopy(ROWS)
    other[1]["sinks"]["on"] = {"newline": 1.0}
    with pytest.raises(ValueError, match="'on' of update 20 has no 'first'"):
        plots.adaptation(other)
