"""Figures show the record's numbers, at the right place, and say what they are."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sinklens import plots
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
            "received": (("prompt", "step", "layer", "head", "key"), received),
            "masked": (("prompt", "step", "key"), masked),
            "token": (("prompt", "key"), token),
            "text": (("prompt", "key"), text),
            "given": (("prompt", "key"), given),
            "commit_step": (("prompt", "key"), np.array([[-1, -1, 0, 1, 2], [-1, -1, 0, 1, -1]])),
        }
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
    monkeypatch.setattr(plots.runs, "CELLS", cells)
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


def ablations() -> pd.DataFrame:
    rows = []
    for model in ("dlm", "arm"):
        rows.append((model, "exact", "unmasked", 0, "unmasked", 0.9, 0.8, 0.95))
        for k in (1, 5):
            rows.append((model, "exact", f"top-{k}", k, "sinks", 0.5, 0.4, 0.7))
            rows.append((model, "exact", f"top-{k}", k, "random", 0.8, 0.7, 0.85))
    return pd.DataFrame(rows, columns=["model", "outcome", "condition", "k", "kind", "accuracy", "low", "high"])


def test_ablation_has_one_panel_per_model_and_pairs_side_by_side():
    figure = plots.ablation(ablations())
    unmasked, sinks, random = figure.data[:3]
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
    assert list(unmasked.x) == [0]
    np.testing.assert_allclose((np.array(sinks.x) + np.array(random.x)) / 2, [1, 2])
    assert sinks.marker.symbol != random.marker.symbol
    np.testing.assert_allclose(sinks.error_y.array, 0.2)
    np.testing.assert_allclose(sinks.error_y.arrayminus, 0.1)
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range == (0, 1)
    assert [trace.showlegend for trace in figure.data] == [True] * 3 + [False] * 3


def test_tables_are_checked():
    with pytest.raises(ValueError, match=r"no column 'null'; it has model, layer, sinks, and this figure needs"):
        plots.layer_counts(layers().drop(columns="null"))
    with pytest.raises(ValueError, match=r"two rows for .*dlm"):
        plots.layer_counts(layers().assign(layer=0))
    with pytest.raises(ValueError, match="no rows"):
        plots.layer_counts(layers().iloc[:0])
    with pytest.raises(ValueError, match="kind 'control' is unknown; the kinds are unmasked, sinks, random"):
        plots.ablation(ablations().replace({"kind": {"random": "control"}}))


def test_figures_never_offer_an_upload():
    for figure in (plots.timeline(tiny_record()), plots.layer_counts(layers()), plots.ablation(ablations())):
        assert "sendChartToCloud" in figure.layout.modebar.remove


def test_plotly_is_only_imported_to_draw():
    for module in (plots.runs, plots.tables, plots.theme):
        top = ast.parse(inspect.getsource(module)).body
        names = [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        assert names
        assert not any(name.startswith("plotly") for name in names)
