"""Figures show the record's numbers, at the right place, and say what they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sinklens import plots, report, sinks
from sinklens.analysis import dynamics, norms
from sinklens.analysis import rates as metrics
from sinklens.ground_truth.records import planted
from sinklens.sinks import SinkRule

RULE = SinkRule(epsilon=1.0)


def tiny_record() -> xr.Dataset:
    """2 prompts, 3 steps, 2 layers x 2 heads, 5 keys; prompt 1 is one key shorter; key 4 first exists at step 1."""
    received = np.random.default_rng(0).random((2, 3, 2, 2, 5)).astype(np.float32)
    received[:, :, 1, 0, 2] = 4.0
    received[:, 0, :, :, 4] = np.nan
    received[1, :, :, :, 4] = np.nan
    masked = np.zeros((2, 3, 5), np.int8)
    masked[:, 0, 2:] = 1
    masked[:, 1, 3:] = 1
    masked[:, 0, 4] = masked[1, :, 4] = -1
    token = np.array([[0, 5, 6, 7, 8], [0, 5, 6, 7, -1]])
    text = np.array([["<|bos|>", "a", "\n", "b", " "], ["<|bos|>", "a", "\n", "b", ""]], dtype=object)
    given = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, -1]])
    return xr.Dataset(
        {
            "received": (("prompt", "step", "layer", "head", "key"), received, {"queries": "all"}),
            "masked": (("prompt", "step", "key"), masked),
            "token": (("prompt", "key"), token),
            "text": (("prompt", "key"), text),
            "given": (("prompt", "key"), given),
            "commit_step": (("prompt", "key"), np.array([[-1, -1, 0, 1, 2], [-1, -1, 0, 1, -1]])),
        },
        attrs={"provenance": json.dumps({"causal": False})},
    )


def shown(figure, label):
    return next(trace for trace in figure.data if trace.name == label)


def test_timeline_has_the_records_numbers_under_every_menu_entry():
    record = tiny_record()
    figure = plots.timeline(record, rule=RULE)
    received = record["received"].isel(prompt=0)
    expected = {
        "mean over layers and heads": received.mean(["layer", "head"], skipna=False),
        "layer 1, mean over heads": received.isel(layer=1).mean("head", skipna=False),
        "layer 0, head 1": received.isel(layer=0, head=1),
    }
    for label, values in expected.items():
        np.testing.assert_allclose(shown(figure, label).z, values, rtol=1e-6)
    menu = figure.layout.updatemenus[0].buttons
    assert [button.label for button in menu][:3] == [
        "mean over layers and heads",
        "layer 0, mean over heads",
        "layer 1, mean over heads",
    ]
    assert len(menu) == 1 + 2 + 4
    for index, button in enumerate(menu):
        on = [trace.name for trace, there in zip(figure.data, button.args[0]["visible"], strict=True) if there]
        assert on == [button.label, figure.data[2 * index + 1].name]
    assert [trace.visible for trace in figure.data] == [True, True] + [False] * 12


def test_timeline_leaves_missing_cells_blank_and_starts_with_step_0_on_top():
    figure = plots.timeline(tiny_record(), rule=RULE)
    heat = figure.data[0]
    np.testing.assert_array_equal(np.isnan(heat.z), [[0, 0, 0, 0, 1], [0] * 5, [0] * 5])
    assert heat.hoverongaps is False
    assert heat.zmin == 0
    low, high = figure.layout.yaxis.range
    assert low > 2
    assert high < 0


def test_hover_shows_the_token_that_stood_there_at_that_step():
    text = plots.timeline(tiny_record(), rule=RULE).data[0].text
    assert tuple(text[0]) == ("&lt;|bos|&gt;", "a", "[MASK]", "[MASK]", "")
    assert tuple(text[1]) == ("&lt;|bos|&gt;", "a", "\\n", "[MASK]", "[MASK]")
    assert tuple(text[2]) == ("&lt;|bos|&gt;", "a", "\\n", "b", "' '")


def test_sinks_are_marked_and_counted_in_the_chosen_heads():
    figure = plots.timeline(tiny_record(), rule=RULE)
    heat, marks = figure.data[:2]
    np.testing.assert_array_equal(heat.customdata, [[0, 0, 1, 0, 0]] * 3)
    assert "of 4 (layer, head) pairs" in heat.hovertemplate
    assert sorted(zip(marks.y, marks.x, strict=True)) == [(0, 2), (1, 2), (2, 2)]
    place = [trace.name for trace in figure.data].index("layer 0, mean over heads")
    assert not figure.data[place].customdata.any()
    assert len(figure.data[place + 1].x) == 0


def test_axis_has_final_tokens_and_a_line_between_given_and_filled():
    figure = plots.timeline(tiny_record(), rule=RULE)
    assert figure.layout.xaxis.ticktext == ("&lt;|bos|&gt;", "a", "\\n", "b", "' '")
    assert {shape.x0 for shape in figure.layout.shapes} == {1.5}


def test_a_shorter_prompt_is_cut_to_its_own_positions():
    heat = plots.timeline(tiny_record(), prompt=1, rule=RULE).data[0]
    assert heat.z.shape == (3, 4)
    assert list(heat.x) == [0, 1, 2, 3]


def test_never_written_positions_have_no_token():
    record = tiny_record()
    record["commit_step"][0, 3:] = -1
    record["masked"][0, :, 4] = -1
    figure = plots.timeline(record, rule=RULE)
    assert figure.layout.xaxis.ticktext[3:] == ("[MASK]", "")


def test_long_rows_have_numbers_instead_of_tokens():
    record = tiny_record().isel(prompt=[0], key=[0, 1, 2] + [3] * 62)
    assert plots.timeline(record, rule=RULE).layout.xaxis.ticktext is None


@pytest.mark.parametrize(("cells", "entries", "said"), [(15 * 7, 7, ""), (15 * 3, 3, "heads"), (15, 1, "layers")])
def test_menu_entries_are_left_out_for_size_and_the_title_says_so(monkeypatch, cells, entries, said):
    monkeypatch.setattr(plots.canvas, "CELLS", cells)
    figure = plots.timeline(tiny_record(), rule=RULE)
    assert len(figure.layout.updatemenus[0].buttons) == entries
    assert ("Left out for size" in figure.layout.title.text) == bool(said)
    assert said in figure.layout.title.text


def test_coordinates_label_steps_and_layers():
    record = tiny_record().assign_coords(step=[10, 20, 30], layer=[3, 7])
    figure = plots.timeline(record, rule=RULE)
    assert list(figure.data[0].y) == [10, 20, 30]
    assert shown(figure, "layer 7, head 0").z[0, 2] == 4.0


def test_sink_positions():
    figure = plots.sink_positions(tiny_record(), rule=RULE, title="<|mask|>")
    assert figure.layout.title.text.startswith('<b style="font-size:16px">&lt;|mask|&gt;</b>')
    first, second = figure.data
    assert (first.name, second.name) == ("layer 0", "layer 1")
    assert len(first.x) == 0
    np.testing.assert_array_equal(second.customdata, [[2, 1]] * 3)
    assert list(second.y) == [0, 1, 2]
    assert second.text == ("[MASK]", "\\n", "\\n")
    assert np.all(np.round(second.x) == 2)


def test_no_sink_is_said():
    figure = plots.sink_positions(tiny_record(), rule=SinkRule(epsilon=100.0))
    assert "no sink" in figure.layout.annotations[0].text


@pytest.mark.parametrize("name", ["received", "masked", "text"])
def test_a_missing_variable_is_named(name):
    with pytest.raises(ValueError, match=rf"no '{name}'.*commit_step"):
        plots.timeline(tiny_record().drop_vars(name))


def test_a_missing_prompt_is_named():
    with pytest.raises(ValueError, match="prompt 2 does not exist; there are 2: 0 to 1"):
        plots.sink_positions(tiny_record(), prompt=2)
    with pytest.raises(ValueError, match="no dim 'prompt'"):
        plots.timeline(tiny_record().isel(prompt=0))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (SinkRule(), "more than 3 (column sum)"),
        (SinkRule(epsilon=2, units="zscore"), "2 standard deviations"),
        (SinkRule(epsilon=None, top_k=2), "the 2 positions"),
        (SinkRule(top_k=2), "at most the 2 largest"),
    ],
)
def test_the_title_says_the_rule(rule, words):
    assert words in plots.timeline(tiny_record(), rule=rule).layout.title.text.replace("<br>", " ")


def layers() -> pd.DataFrame:
    rows = [("dlm", 0, 0.3, 0.0), ("dlm", 1, 0.5, 0.0), ("arm", 0, 0.1, 0.8), ("arm", 1, 0.9, 0.8)]
    return pd.DataFrame(rows, columns=["model", "layer", "sinks", "null"])


def test_layer_counts():
    first, second, null = plots.layer_counts(layers()).data
    assert (first.name, list(first.y), list(second.y)) == ("dlm", [0.3, 0.5], [0.1, 0.9])
    assert first.offset + first.width == pytest.approx(second.offset)
    assert null.y[:5] == (0.0, 0.0, None, 0.0, 0.0)
    assert null.x[6:8] == pytest.approx((second.offset, second.offset + second.width))


def test_token_classes():
    frame = pd.DataFrame(
        [("dlm", "<|mask|>", 0.25, 0.5), ("dlm", "word", 0.75, 0.5), ("dlm", "digit", float("nan"), 0.0)],
        columns=["model", "token_class", "share_of_sinks", "share_of_keys"],
    )
    figure = plots.token_classes(frame)
    sinks, keys = figure.data
    assert list(sinks.x) == ["&lt;|mask|&gt;", "word"]
    assert (list(sinks.y), list(keys.y)) == ([0.25, 0.75], [0.5, 0.5])
    assert keys.marker.pattern.shape == "/"
    assert figure.layout.yaxis.range == (0, 1)


def test_tables_are_checked():
    with pytest.raises(ValueError, match=r"no column 'null'; it has model, layer, sinks, and this figure needs"):
        plots.layer_counts(layers().drop(columns="null"))
    with pytest.raises(ValueError, match=r"two rows for .*dlm"):
        plots.layer_counts(layers().assign(layer=0))
    with pytest.raises(ValueError, match="no rows"):
        plots.layer_counts(layers().iloc[:0])


def test_figures_never_offer_an_upload():
    for figure in (plots.timeline(tiny_record()), plots.layer_counts(layers())):
        assert "sendChartToCloud" in figure.layout.modebar.remove


def test_plotly_is_only_imported_to_draw():
    for path in Path(plots.__file__).parent.glob("[!_]*.py"):
        module = importlib.import_module(f"sinklens.plots.{path.stem}")
        top = ast.parse(inspect.getsource(module)).body
        names = [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        assert names
        assert not any(name.startswith("plotly") for name in names)


# Planted records: what the figures must show is known.


def both_kinds() -> tuple[xr.Dataset, xr.Dataset]:
    return planted("jumping", seed=1).record, planted("static", causal=True, strength=8.0, seed=1).record


def test_layer_steps_counts_sinks_per_head_with_the_null_in_the_title():
    case = planted("split", steps=8, layers=3)
    heat = plots.layer_steps(case.record).data[0]
    np.testing.assert_allclose(heat.z, np.full((3, 8), 2.0))  # two planted sinks, in every head
    assert (list(heat.x), list(heat.y)) == (list(range(8)), [0, 1, 2])
    assert "Uniform attention would count 0." in plots.layer_steps(case.record).layout.title.text


def test_layer_steps_shows_where_and_when():
    record = tiny_record()
    z = plots.layer_steps(record, RULE).data[0].z
    expected = metrics.sinks(record, RULE).sum("key").where(record["received"].notnull().any("key"))
    np.testing.assert_allclose(z, expected.mean(["prompt", "head"]).transpose("layer", "step"))
    assert z[1].min() >= 0.5 > z[0].max()  # the planted key of layer 1, head 0
    record["received"][:, 1] = np.nan
    assert np.isnan(plots.layer_steps(record, RULE).data[0].z[:, 1]).all()


def test_a_causal_null_is_counted_by_the_rule_itself():
    text = plots.layer_steps(planted("none", keys=64, causal=True).record).layout.title.text
    assert "Uniform attention would count 1." in text  # H_64 = 4.74 passes 3.95
    text = plots.layer_steps(planted("none", keys=16, causal=True).record).layout.title.text
    assert "Uniform attention would count 0." in text  # H_16 = 3.38 does not pass 3.81


def named(figure, start: str):
    return next(trace for trace in figure.data if trace.name.startswith(start))


def test_histogram_holds_every_key_once_and_parts_them_at_the_cut():
    case = planted("jumping", strength=8.0)  # 16 steps, 2 layers, 2 heads, 32 keys
    figure = plots.histogram(case.record)
    others, flagged = named(figure, "not flagged"), named(figure, "sinks")
    assert sum(flagged.y) == 16 * 4
    assert sum(others.y) == 16 * 4 * 31
    assert list(flagged.x) == [pytest.approx(8.0, abs=flagged.width)]
    assert list(others.x) == [pytest.approx(24 / 31, abs=others.width)]
    cut = SinkRule().cut(32)
    assert named(figure, "cut").x == (cut, cut)
    assert (cut / flagged.width) == pytest.approx(round(cut / flagged.width))  # an edge of the bins
    assert named(figure, "uniform attention").x == (1, 1)
    assert figure.layout.yaxis.type == "log"
    assert flagged.marker.pattern.shape != others.marker.pattern.shape


def test_histogram_of_one_layer():
    figure = plots.histogram(tiny_record(), RULE, layer=1)
    received = tiny_record()["received"].isel(layer=1)
    assert sum(sum(trace.y) for trace in figure.data[:2]) == int(received.notnull().sum())
    with pytest.raises(ValueError, match="layer 7 does not exist; the record has layer 0, 1"):
        plots.histogram(tiny_record(), layer=7)


def test_histogram_shades_the_cut_when_rows_differ_in_length():
    band = named(plots.histogram(tiny_record(), RULE), "cut")  # 4 and 5 keys
    assert (min(band.x), max(band.x)) == (1 + 3 / 4, 1 + 4 / 5)
    assert band.fill == "toself"
    assert "number of keys (4 to 5)" in plots.histogram(tiny_record(), RULE).layout.title.text


def test_histogram_does_not_invent_a_cut():
    record = tiny_record()
    rule = SinkRule(epsilon=None, top_k=1)
    values, flags = record["received"].to_numpy(), metrics.sinks(record, rule).to_numpy()
    figure = plots.histogram(record, rule)
    band = named(figure, f"{values[flags].min():.3f} to")
    assert min(band.x) == pytest.approx(values[flags].min())
    assert max(band.x) == pytest.approx(np.nanmax(values[~flags]))
    assert "no single cut" in figure.layout.title.text.replace("<br>", " ")
    # "share" has a cut of its own, but not for the keys of a causal model, which different numbers of queries see.
    causal = planted("static", causal=True).record
    assert "no single cut" in plots.histogram(causal, SinkRule(epsilon=0.3, units="share")).layout.title.text


def test_histogram_draws_the_causal_null_as_a_distribution():
    figure = plots.histogram(planted("none", keys=16, steps=4, causal=True).record)
    line, bars = named(figure, "uniform attention"), named(figure, "not flagged")
    # Attention is uniform, so that the outline follows the bars.
    heights = {round(x, 4): y for x, y in zip(bars.x, bars.y, strict=True)}
    for left, right, height in zip(line.x[:-1], line.x[1:], line.y[:-1], strict=True):
        assert height == heights.get(round((left + right) / 2, 4), 0.6)


def test_filtered_curve_steps_up_at_the_planted_excess():
    case = planted("static", strength=8.0)
    below, above = case.truth["excess"] - 0.1, case.truth["excess"] + 0.1
    figure = plots.filtered_curve({"a": case.record, "b": planted("none").record}, [0.0, below, above])
    a, b, null = figure.data
    assert (a.name, b.name, null.name) == ("a", "b", "uniform attention")
    np.testing.assert_allclose(a.y, [1 - 1 / 32, 1 - 1 / 32, 1])
    np.testing.assert_allclose(b.y, [1, 1, 1])
    np.testing.assert_allclose(null.y, [1, 1, 1])
    assert a.line.color != b.line.color
    assert a.marker.symbol != b.marker.symbol
    assert {(shape.x0, shape.x1) for shape in figure.layout.shapes} >= {(3, 3)}
    assert {(shape.y0, shape.y1) for shape in figure.layout.shapes} >= {(0.96, 0.96)}


def test_filtered_curve_has_one_null_per_kind_of_model():
    bidirectional, causal = both_kinds()
    figure = plots.filtered_curve({"dlm": bidirectional, "<arm>": causal, "dlm2": bidirectional}, [0.0, 2.0])
    names = [trace.name for trace in figure.data]
    assert names[3:] == ["uniform attention (dlm, dlm2)", "uniform attention (&lt;arm&gt;)"]
    null = sinks.uniform_null(32, "causal")
    share = [1 - int(SinkRule(epsilon=epsilon)(null).sum()) / 32 for epsilon in (0.0, 2.0)]
    np.testing.assert_allclose(figure.data[4].y, share)
    assert share[0] < share[1] < 1


def test_filtered_curve_stays_below_the_limit_of_the_unit_and_refuses_what_it_cannot_draw():
    record = planted("static").record
    figure = plots.filtered_curve(record, rule=SinkRule(epsilon=0.5, units="mean"))
    assert max(figure.data[0].x) < 1
    assert not [shape for shape in figure.layout.shapes if shape.y0 == 0.96]  # the paper's unit is another
    with pytest.raises(ValueError, match="no epsilon to vary"):
        plots.filtered_curve(record, rule=SinkRule(epsilon=None, top_k=1))
    with pytest.raises(ValueError, match="records is empty"):
        plots.filtered_curve({})


def test_sink_lives_are_the_planted_episodes():
    case = planted("jumping", layers=2, heads=2)
    figure = plots.sink_lives(case.record, layer=1, head=1)
    birth, death, lasting = (shown(figure, name) for name in ("birth", "death", "alive at the end"))
    starts = sorted((key, first) for key, first, _ in case.truth["dwell"])
    assert sorted(zip(birth.x, birth.y, strict=True)) == starts
    ends = sorted((key, first + length) for key, first, length in case.truth["dwell"] if first + length < 16)
    assert sorted(zip(death.x, death.y, strict=True)) == ends
    assert list(lasting.x) == [case.truth["position"][-1]]
    bar = shown(figure, "sink")
    assert list(bar.x[:3]) == [starts[0][0]] * 2 + [None]
    births, deaths = shown(figure, "births"), shown(figure, "deaths")
    assert dict(zip(births.y, births.x, strict=True)) == {0: 1, 4: 1, 8: 1, 12: 1}
    assert dict(zip(deaths.y, deaths.x, strict=True)) == {4: -1, 8: -1, 12: -1}
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_sink_lives_count_as_dynamics_does():
    record = tiny_record()
    figure = plots.sink_lives(record, SinkRule(epsilon=0.3), layer=0, head=1)
    counted = dynamics.births_deaths(record.isel(prompt=[0], layer=[0], head=[1]), SinkRule(epsilon=0.3))
    for name, sign in (("births", 1), ("deaths", -1)):
        trace = shown(figure, name)
        numbers = dict(zip(trace.y, np.array(trace.x) * sign, strict=True))
        assert [numbers.get(step, 0) for step in range(3)] == list(counted[name].sum("layer").to_numpy())
    assert sum(shown(figure, "deaths").customdata) > 0


def test_sink_lives_show_the_causal_null_and_say_what_is_unknown():
    record = planted("static", keys=64, causal=True).record
    null = shown(plots.sink_lives(record), "sink under uniform attention")
    assert [round(x) for x in null.x if x is not None] == [0, 0]
    assert "no sink" in plots.sink_lives(planted("none").record).layout.annotations[-1].text
    for wanted, text in (
        ({"layer": 2}, "layer 2 does not exist; the record has layer 0, 1"),
        ({"head": 5}, "head 5 does not exist; the record has head 0, 1"),
        ({"prompt": 1}, "prompt 1 does not exist; there are 1: 0 to 0"),
    ):
        with pytest.raises(ValueError, match=text):
            plots.sink_lives(record, **wanted)


def test_key_norms_puts_norms_on_x_and_attention_on_y():
    case = planted("jumping", layers=2, heads=4)
    figure = plots.key_norms(case.record, points=10**6)
    points = [trace for trace in figure.data if trace.customdata is not None]
    x, y = (np.concatenate([np.asarray(trace[axis]) for trace in points]) for axis in ("x", "y"))
    assert len(x) == 16 * 2 * 4 * 32
    np.testing.assert_allclose(x, 1 + 8 - y, rtol=1e-5)  # as planted
    marked = np.concatenate([np.asarray(trace.customdata) for trace in points])
    np.testing.assert_array_equal(marked == 1, y > 7)
    widths = np.concatenate([np.asarray(trace.marker.line.width) for trace in points])
    np.testing.assert_array_equal(widths > 0, y > 7)
    texts = [note.text for note in figure.layout.annotations]
    assert texts == ["layer 0: Spearman 1.00", "layer 1: Spearman 1.00"]
    assert {shape.y0 for shape in figure.layout.shapes} == {1}
    assert "All 4,096 points" in figure.layout.title.text.replace("<br>", " ")


def test_key_norms_gives_query_heads_the_norms_of_their_key_head():
    case = planted("static", layers=1, heads=4)  # 2 key heads
    record = case.record.copy(deep=True)
    record["key_norm"][:, :, :, 1] = 100.0
    record["received"][:, :, :, 2:] = 0.25  # the query heads that share it
    points = [trace for trace in plots.key_norms(record, points=10**6).data if trace.customdata is not None]
    x, y = (np.concatenate([np.asarray(trace[axis]) for trace in points]) for axis in ("x", "y"))
    np.testing.assert_array_equal(x == 100, y == 0.25)
    assert (x == 100).any()


def test_key_norms_tell_types_apart_by_colour_and_symbol():
    case = planted("static", keys=32)
    figure = plots.key_norms(case.record, layer=1, points=10**6)
    points = [trace for trace in figure.data if trace.customdata is not None]
    per_type = {trace.name: len(trace.x) for trace in points}
    counts = np.bincount(norms.key_types(case.record).to_numpy().ravel(), minlength=4) * 2  # heads
    assert per_type == dict(zip(norms.KEY_TYPES, counts, strict=True))
    assert len({(trace.marker.symbol) for trace in points}) == len({trace.marker.color for trace in points}) == 4
    assert [note.text for note in figure.layout.annotations] == ["layer 1: Spearman 1.00"]


def test_key_norms_sample_is_fixed_and_said():
    record = planted("jumping").record
    first, second = (plots.key_norms(record, points=100) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert sum(len(trace.x) for trace in first.data if trace.customdata is not None) == 100
    assert "100 of 2,048 points" in first.layout.title.text.replace("<br>", " ")
    with pytest.raises(ValueError, match=r"no 'key_norm'.*KeyNorm"):
        plots.key_norms(record.drop_vars("key_norm"))


def test_heads_are_the_records_heads_beside_uniform_attention():
    record = tiny_record()
    figure = plots.heads(record, 0, RULE)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [trace.name for trace in maps] == [
        "layer 0, head 0", "layer 0, head 1", "layer 1, head 0", "layer 1, head 1", "uniform attention",
    ]  # fmt: skip
    received = record["received"].isel(prompt=0)
    for trace, (layer, head) in zip(maps, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=False):
        np.testing.assert_allclose(trace.z, received.isel(layer=layer, head=head))
    np.testing.assert_array_equal(maps[-1].z, np.where(received[:, 0, 0].isnull(), np.nan, 1.0))
    assert len({trace.coloraxis for trace in maps}) == 1
    marks = figure.data[5]  # of layer 1, head 0
    assert [trace.xaxis for trace in maps] == ["x", "x2", "x4", "x5", "x3"]
    assert (marks.xaxis, marks.yaxis) == ("x4", "y4")
    assert sorted(zip(marks.y, marks.x, strict=True)) == [(0, 2), (1, 2), (2, 2)]


def test_heads_that_do_not_fit_are_left_out_and_said(monkeypatch):
    record = planted("jumping", layers=6, heads=4).record
    assert "Left out" not in plots.heads(record).layout.title.text
    monkeypatch.setattr(plots.layers_heads, "PANELS", 8)
    figure = plots.heads(record)
    assert sum(trace.type == "heatmap" for trace in figure.data) <= 8 + 1
    assert "Left out for size: 2 of 6 layers and 2 of 4 heads" in figure.layout.title.text
    chosen = plots.heads(record, layers=[5], heads=[3])
    assert chosen.data[0].name == "layer 5, head 3"
    with pytest.raises(ValueError, match=r"6 layers x 4 heads .* at most 8 panels"):
        plots.heads(record, layers=range(6), heads=range(4))
    with pytest.raises(ValueError, match="head 4 does not exist; the record has head 0 to 3"):
        plots.heads(record, heads=[4])
    monkeypatch.setattr(plots.layers_heads, "CELLS", 3 * 16 * 32)
    assert sum(trace.type == "heatmap" for trace in plots.heads(record).data) == 2 + 1


def test_heads_clip_the_colours_of_few_high_cells_and_say_so():
    record = planted("none", steps=20, keys=40).record
    record["received"][0, 3, 1, 1, 7] = 30.0
    figure = plots.heads(record)
    assert figure.layout.coloraxis.cmax == pytest.approx(1)
    assert "values up to 30 (at most 0.5 % of the cells) look like 1" in figure.layout.title.text.replace("<br>", " ")


@pytest.mark.parametrize("figure", [plots.layer_steps, plots.timeline])
def test_side_by_side_has_both_under_one_colour_range(figure):
    left, right = planted("split", strength=4.0).record, planted("static", strength=12.0).record
    both = plots.side_by_side(left, right, figure, ("one", "<two>"), rule=RULE)
    maps = [trace for trace in both.data if trace.type == "heatmap"]
    alone = [figure(record, rule=RULE).data[0] for record in (left, right)]
    for trace, own in zip(maps, alone, strict=True):
        np.testing.assert_array_equal(trace.z, own.z)
    assert {trace.zmax for trace in maps} == {max(own.zmax for own in alone)}
    assert alone[0].zmax != alone[1].zmax
    assert [trace.xaxis for trace in maps] == ["x", "x2"]
    assert [note.text for note in both.layout.annotations[:2]] == ["one", "&lt;two&gt;"]
    assert not both.layout.updatemenus


def test_side_by_side_says_what_differs_and_keeps_the_lines():
    left, right = planted("static").record, planted("none", keys=64, causal=True).record
    text = plots.side_by_side(left, right, names=("dlm", "arm")).layout.title.text
    assert "dlm: Uniform attention would count 0." in text
    assert "arm: Uniform attention would count 1." in text
    both = plots.side_by_side(left, right, plots.timeline)
    assert {(shape.xref, shape.x0) for shape in both.layout.shapes} == {("x", 15.5), ("x2", 31.5)}
    for pair in ((left, right), (right, left)):
        bars = plots.side_by_side(*pair, plots.histogram)
        ends = [plots.histogram(record).layout.xaxis.range[1] for record in pair]
        assert bars.layout.xaxis.range == bars.layout.xaxis2.range == (0, max(ends))
    with pytest.raises(ValueError, match="several panels"):
        plots.side_by_side(left, left, plots.heads)


class Attention:
    """Stands in for the package, which is an extra."""

    def __init__(self, monkeypatch):
        module = types.ModuleType("circuitsvis.attention")
        module.attention_heads = self
        monkeypatch.setitem(sys.modules, "circuitsvis", types.ModuleType("circuitsvis"))
        monkeypatch.setitem(sys.modules, "circuitsvis.attention", module)

    def __call__(self, **given):
        return given


def patterned() -> xr.Dataset:
    case = planted("jumping", keys=8, steps=4, strength=4.0)
    patterns = case.patterns.numpy()[None].copy()
    patterns[:, 0] = np.nan  # step 0 was not measured
    dims = ("prompt", "step", "layer", "head", "query", "key")
    return case.record.assign(pattern=(dims, patterns))


def test_circuitsvis_gets_one_pattern_with_both_triangles(monkeypatch):
    Attention(monkeypatch)
    record = patterned()
    view = plots.circuitsvis(record, step=2, layer=1, heads=[1])
    np.testing.assert_array_equal(view["attention"], record["pattern"].to_numpy()[0, 2, 1, [1]])
    assert np.triu(view["attention"][0], 1).any()
    assert view["mask_upper_tri"] is False
    assert view["attention_head_names"] == ["layer 1, head 1"]
    masked = record["masked"].to_numpy()[0, 2] == 1
    assert [token == "[MASK]" for token in view["tokens"]] == list(masked)
    assert masked.any()
    assert view["tokens"][0] == "<|bos|>"
    np.testing.assert_array_equal(plots.circuitsvis(record)["attention"], record["pattern"].to_numpy()[0, 1, 0])
    bare = plots.circuitsvis(np.eye(2), ["a", "b"])
    assert (bare["attention"].shape, bare["tokens"]) == ((1, 2, 2), ["a", "b"])


def test_circuitsvis_says_what_is_wrong(monkeypatch):
    record = patterned()
    for wanted, text in (
        ({"step": 0}, "step 0 does not exist; the record has step 1 to 3"),
        ({"layer": 9}, "layer 9 does not exist; the record has layer 0, 1"),
        ({"heads": [9]}, "head 9 does not exist"),
        ({"prompt": 3}, "prompt 3 does not exist"),
        ({"tokens": ["a"]}, "8 positions, 1 tokens"),
    ):
        with pytest.raises(ValueError, match=text):
            plots.circuitsvis(record, **wanted)
    with pytest.raises(ValueError, match=r"no 'pattern'.*Pattern"):
        plots.circuitsvis(record.drop_vars("pattern"))
    record["pattern"][:, :, :, :, 3] = np.nan
    with pytest.raises(ValueError, match="not measured"):
        plots.circuitsvis(record)
    monkeypatch.setitem(sys.modules, "circuitsvis", None)
    monkeypatch.delitem(sys.modules, "circuitsvis.attention", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'sinklens\[circuitsvis\]'"):
        plots.circuitsvis(np.eye(2), ["a", "b"])


TWINS = Path(plots.__file__).parents[1] / "twins"


def test_emergence_draws_every_head_of_the_log():
    rows = [json.loads(line) for line in (TWINS / "tiny-arm" / "training.jsonl").read_text().splitlines()]
    figure = plots.emergence(TWINS / "tiny-arm")
    np.testing.assert_allclose(shown(figure, "layer 1, head 2").y, [row["bos_share"][1][2] for row in rows])
    null, counted = (trace for trace in figure.data if trace.name == "uniform")
    assert set(null.y) == {rows[0]["bos_null"]}
    assert set(counted.y) == {1}
    np.testing.assert_allclose(shown(figure, "layer 1").y, [row["mask_0.0"]["sinks_per_layer"][1] for row in rows])
    np.testing.assert_allclose(shown(figure, "nothing masked").y, [row["mask_0.0"]["accuracy"] for row in rows])
    axis = figure.layout.xaxis
    assert axis.type == "log"
    assert list(shown(figure, "layer 1").customdata) == [row["step"] for row in rows]
    assert list(shown(figure, "layer 1").x)[1:] == [row["step"] for row in rows][1:]
    assert axis.ticktext[axis.tickvals.index(shown(figure, "layer 1").x[0])] == "0"


def test_emergence_of_a_model_without_bos_shares():
    rows = [json.loads(line) for line in (TWINS / "tiny-dlm" / "training.jsonl").read_text().splitlines()]
    figure = plots.emergence(rows)
    assert "share of sinks on BOS" in figure.layout.annotations[0].text
    np.testing.assert_allclose(shown(figure, "50% masked").y, [row["mask_0.5"]["sinks_on"]["bos"] for row in rows])
    lines = [trace for trace in figure.data if trace.xaxis == "x2"]
    assert len({(line.line.color, line.line.dash) for line in lines}) == 2 * 3 + 1


def test_emergence_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no training log .*training\.jsonl"):
        plots.emergence(tmp_path)
    with pytest.raises(ValueError, match="no rows"):
        plots.emergence([])
    with pytest.raises(ValueError, match="needs step and mask_<ratio>; this one has loss"):
        plots.emergence([{"loss": 1}])
    with pytest.raises(ValueError, match=r"mask_0.5 of step 0 has no 'sinks_per_layer'; it has accuracy"):
        plots.emergence([{"step": 0, "mask_0.5": {"accuracy": 1.0}}])


NEW = (plots.layer_steps, plots.histogram, plots.filtered_curve, plots.sink_lives, plots.key_norms, plots.heads)


@pytest.mark.parametrize("figure", NEW)
def test_new_figures_say_rule_and_null_and_name_what_is_missing(figure):
    record = planted("jumping").record
    text = figure(record).layout.title.text.replace("<br>", " ")
    assert "more than 3 (column sum)" in text
    assert "niform attention" in text
    with pytest.raises(ValueError, match=r"no 'received'.*ReceivedAttention"):
        figure(record.drop_vars("received"))
    with pytest.raises(ValueError, match="no dim 'prompt'"):
        figure(record.isel(prompt=0))


@pytest.mark.parametrize("figure", NEW)
def test_new_figures_of_records_of_several_queries_show_those_of_the_rule(figure):
    record = planted("split").record
    for queries in ("all", "masked", "committed"):
        received = record["received"].sel(queries=queries, drop=True).assign_attrs(queries=queries)
        alone = record.drop_vars("queries").assign(received=received)
        rule = SinkRule(queries=queries)
        assert figure(record, rule=rule).to_json() == figure(alone, rule=rule).to_json()


def test_the_null_of_some_queries_is_theirs():
    record = planted("split").record
    null = plots.heads(record, rule=SinkRule(queries="masked")).data[-2].z
    np.testing.assert_allclose(null[:, 0], record["masked"].isel(prompt=0).sum("key") / 32, rtol=1e-5)
    causal = record.assign_attrs(provenance=json.dumps({"causal": True}))
    null = plots.heads(causal, rule=SinkRule(queries="masked")).data[-2].z
    for step in (0, 9):  # query i gives each of its i + 1 keys as much
        masked = np.flatnonzero(record["masked"].isel(prompt=0, step=step) == 1)
        expected = [sum(1 / (i + 1) for i in masked if i >= key) for key in range(32)]
        np.testing.assert_allclose(null[step], expected, rtol=1e-5)


def test_a_report_has_the_figures_of_the_whole_run(tmp_path):
    record = planted("jumping", prompts=2).record
    page = report.from_record(tmp_path / "a.html", record).read_text(encoding="utf-8")
    titles = ["How many sinks, layer", "How much attention keys", "How many keys each", "Key norm and"]
    titles += ["Who is attended", "Where the sinks are", "Every head"]
    at = [page.index(f"\\u003e{title}") if f"\\u003e{title}" in page else page.index(f">{title}") for title in titles]
    assert at == sorted(at)
    bare = report.from_record(
        tmp_path / "b.html", record.drop_vars("key_norm"), rule=SinkRule(epsilon=None, top_k=1)
    ).read_text(encoding="utf-8")
    assert "Key norm and" not in bare
    assert "How many keys each" not in bare
