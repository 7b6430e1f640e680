"""Figures of budgets and of survival hold the numbers of the tables that they were given."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sinklens import AblationResult, plots
from sinklens.analysis import kept
from sinklens.experiments.budget_table import budget_table
from sinklens.ground_truth.records import planted

RATES = (0.25, 0.5)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Two selectors at two rates, and the sinks alone."""
    draw = np.random.default_rng(0)
    names = ["unmasked", *(f"{name}={rate}" for name in ("received", "random#0", "random#1") for rate in RATES)]
    scores = [
        {"model": "m", "task": "t", "seed": 0, "metric": "accuracy", "places": 1, "prompt": prompt, "name": ""}
        | {"condition": name, "kind": "unmasked" if name == "unmasked" else "sinks", "value": float(draw.random())}
        | {"exposed": None if name == "unmasked" else 1.0, "edited_keys": 1, "edited_mass": 1.0}
        | {"kept": None if name == "unmasked" else float(draw.random())}
        for name in [*names, "without sinks", "without as many others"]
        for prompt in range(6)
    ]
    return budget_table(AblationResult(scores))


def traces(figure: Any, name: str) -> list[Any]:
    """The traces of a name, one per panel."""
    return [trace for trace in figure.data if trace.name == name]


def test_curves_are_the_table_and_end_at_the_unedited_run(table: pd.DataFrame) -> None:
    figure = plots.budget_curves({"one": table, "two": table}, "rate")
    for name, selector in (("most attended", "received"), ("random, by head", "random")):
        part = table[table.selector == selector]
        for trace in traces(figure, name):
            assert list(trace.x) == [*RATES, 1.0]
            np.testing.assert_allclose(trace.y, [*part.value, table.value[0]])
            np.testing.assert_allclose(np.add(trace.y, trace.error_y.array)[:2], part.high)
            np.testing.assert_allclose(np.subtract(trace.y, trace.error_y.arrayminus)[:2], part.low)
        assert len(traces(figure, name)) == 2
    (alone, _) = traces(figure, "without sinks")
    line = table[table.selector == "without sinks"].iloc[0]
    assert [alone.x[0], alone.y[0]] == [line.kept, line.value]
    assert [shape.y0 for shape in figure.layout.shapes] == [table.value[0]] * 2
    (in_truth,) = traces(plots.budget_curves({"one": table}), "most attended")
    np.testing.assert_allclose(in_truth.x, [*table[table.selector == "received"].kept, 1.0])
    assert plots.budget_curves({"one": table}, log=False).layout.xaxis.type != "log"


def test_reached_shares_are_beside_what_was_asked(table: pd.DataFrame) -> None:
    figure = plots.reached_shares({"one": table})
    (trace,), part = traces(figure, "most attended"), table[table.selector == "received"]
    np.testing.assert_allclose(trace.y, part.kept)
    np.testing.assert_allclose(np.add(trace.y, trace.error_y.array), part.kept_high)
    (asked,) = traces(figure, "asked")
    assert list(asked.x) == list(asked.y)


def kept_record(rates: tuple[float, ...] = (0.1, 0.2, 0.5, 0.6, 0.9)) -> xr.Dataset:
    """A planted record, and a gate that chooses by chance."""
    record = planted("jumping", steps=4, keys=8, strength=4.0).record
    flags = np.random.default_rng(1).random((1, 4, 2, len(rates), 8)) < np.array(rates)[:, None]
    dims = ("prompt", "step", "layer", "rate", "key")
    return record.assign(kept=xr.DataArray(flags.astype(float), dims=dims, coords={"rate": list(rates)}))


@pytest.mark.parametrize("x", ["layer", "step", "rate"])
def test_sinks_that_are_kept_are_beside_chance(x: Any) -> None:
    frame = kept.sinks_kept(kept_record(), by=() if x == "rate" else (x,))
    figure = plots.sinks_kept({"m": frame}, x)
    if x == "rate":
        (mine,), (chance,) = traces(figure, "all rates: kept"), traces(figure, "all rates: chance")
        part = frame
    else:
        assert len(figure.data) == 8  # four of the five rates, the lowest and the highest among them
        (mine,), (chance,) = traces(figure, "rate 0.9: kept"), traces(figure, "rate 0.9: chance")
        part = frame[frame.rate == 0.9]
    np.testing.assert_allclose(mine.x, part[x])
    if x != "rate":  # no tick where nothing was measured
        assert list(figure.layout.xaxis.tickvals) == sorted(set(part[x]))
    np.testing.assert_allclose(mine.y, part.kept)
    np.testing.assert_allclose(chance.y, part.chance)


def test_a_text_shows_each_token_with_its_number() -> None:
    record = kept_record()
    lowest = kept.survival(record)
    for layer, step in ((None, None), (1, None), (None, 2), (1, 2)):
        figure = plots.survival(record, layer=layer, step=step)
        want = lowest.isel(prompt=0)
        want = want.mean("layer") if layer is None else want.isel(layer=layer)
        want = want.mean("step") if step is None else want.isel(step=step)
        words, numbers = figure.data[0], figure.data[1]
        assert len(words.text) == 8
        assert words.text[0] == "&lt;|bos|&gt;"
        assert list(numbers.text) == [f"{value:.2f}".removeprefix("0") for value in want.to_numpy()]
        np.testing.assert_allclose([row[2] for row in numbers.customdata], want)
        boxed = [shape.line.width > 0 for shape in figure.layout.shapes]
        assert boxed == (record["given"].to_numpy()[0] == 0).tolist()


def test_lines_of_a_text_do_not_overlap() -> None:
    """No two boxes of tokens share any area, and a line break ends a line."""
    record = planted("static", steps=2, keys=200).record
    flags = xr.DataArray(np.ones((1, 2, 2, 1, 200)), dims=("prompt", "step", "layer", "rate", "key"))
    text = record["text"].to_numpy().copy()
    text[0, 5], text[0, 9] = "\n", " word" * 9
    record = record.assign(kept=flags.assign_coords(rate=[0.5]), text=(("prompt", "key"), text))
    shapes = plots.survival(record).layout.shapes
    assert len(shapes) == 200
    assert shapes[6].y0 > shapes[5].y1
    for one, other in itertools.pairwise(shapes):
        assert other.x0 >= one.x1 or other.y0 >= one.y1
    assert max(shape.x1 for shape in shapes) <= 101


def test_what_cannot_be_drawn_is_said(table: pd.DataFrame) -> None:
    other = table.assign(metric="kl")
    with pytest.raises(ValueError, match="several metrics, accuracy, kl"):
        plots.budget_curves({"one": table, "two": other})
    with pytest.raises(ValueError, match="no tables"):
        plots.reached_shares({})
    with pytest.raises(ValueError, match="'one' has no column 'rate'"):
        plots.sinks_kept({"one": pd.DataFrame({"layer": [0]})})
    frame = kept.sinks_kept(kept_record())
    with pytest.raises(ValueError, match=r"rate 0\.3 is not in the table"):
        plots.sinks_kept({"m": frame}, rates=[0.3])
    with pytest.raises(ValueError, match="several lines for one rate and step"):
        plots.sinks_kept({"m": kept.sinks_kept(kept_record(), by=("step", "layer"))}, "step")
    with pytest.raises(ValueError, match="no 'kept'"):
        plots.survival(planted("static").record)
    with pytest.raises(ValueError, match="layer 7 does not exist"):
        plots.survival(kept_record(), layer=7)
