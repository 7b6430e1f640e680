"""Whose attention a figure shows and which keys it calls sinks is the rule's, or the figure is refused before it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import xarray as xr

from sinklens import HookedDLM, Plan, Scope, denoise, plots, report
from sinklens.analysis import attention, dynamics, norms, rates
from sinklens.errors import RecordError
from sinklens.ground_truth.records import planted
from sinklens.probes import KeyNorm, ReceivedAttention
from sinklens.sinks import Positions, SinkRule

SETS: tuple[Positions, ...] = get_args(Positions)
FIGURES: dict[str, Callable[..., Any]] = {
    "timeline": plots.timeline,
    "sink_positions": plots.sink_positions,
    "layer_steps": plots.layer_steps,
    "heads": plots.heads,
    "histogram": plots.histogram,
    "filtered_curve": plots.filtered_curve,
    "sink_lives": plots.sink_lives,
    "key_norms": plots.key_norms,
    "side_by_side": lambda record, **options: plots.side_by_side(record, record, **options),
}
RULES = [
    SinkRule(0.4, keys="prompt"),
    SinkRule(0.4, queries="masked"),
    SinkRule(0.3, queries="committed", keys="masked"),
    SinkRule(0.2, "share", queries="prompt", keys="response"),
    SinkRule(0.4, queries="auto"),
    SinkRule(0.4, queries="last", per="mean"),
]


@pytest.fixture(scope="module")
def measured() -> dict[str, xr.Dataset]:
    """A record of each twin: two prompts, all sets of queries."""
    plan, prompts = Plan(new_tokens=6, suppress_eos="logits"), ["dolko xe, dolko xo. talma wi", "gake xe"]
    probes = [ReceivedAttention(queries=SETS), KeyNorm()]
    return {
        name: denoise(HookedDLM.from_pretrained(name), prompts, plan, probes=probes, progress=False).record
        for name in ("tiny-dlm", "tiny-arm")
    }


def only(record: xr.Dataset, which: str) -> xr.Dataset:
    received = record["received"].sel(queries=which, drop=True).assign_attrs(queries=which)
    return record.drop_vars("queries").assign(received=received)


def text_of(figure: Any) -> str:
    return figure.layout.title.text.replace("<br>", " ")


@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", FIGURES)
def test_every_rule_can_be_drawn_and_is_said(measured: Any, name: str, rule: SinkRule, twin: str) -> None:
    record = measured[twin]
    which = attention.counting(record, rule.queries)
    figure = FIGURES[name](record, rule=rule)
    assert figure.to_json() == FIGURES[name](only(record, which), rule=rule).to_json()
    assert replace(rule, queries=which).words() in text_of(figure) or name == "filtered_curve"


@pytest.mark.parametrize("name", FIGURES)
def test_a_record_of_masked_queries_is_not_drawn_as_one_of_all(measured: Any, name: str) -> None:
    record = only(measured["tiny-dlm"], "masked")
    with pytest.raises(RecordError, match="from all queries was not measured, only from masked"):
        FIGURES[name](record)
    with pytest.raises(RecordError, match="from committed queries was not measured, only from masked"):
        FIGURES[name](record, rule=SinkRule(queries="committed"))
    assert FIGURES[name](record, rule=SinkRule(queries="masked"))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
def test_figures_show_the_sinks_and_the_null_of_the_rule(measured: Any, twin: str, rule: SinkRule) -> None:
    record = measured[twin]
    which = attention.counting(record, rule.queries)
    received, sinks = record["received"].sel(queries=which), rates.sinks(record, rule)
    null = attention.null(record, which)["received"].isel(layer=0, head=0)

    heat = plots.layer_steps(record, rule).data[0]
    counts = sinks.sum("key").where(received.notnull().any("key")).mean(["prompt", "head"])
    np.testing.assert_allclose(heat.z, counts.transpose("layer", "step"))

    panels = [trace for trace in plots.heads(record, 1, rule).data if trace.type == "heatmap"]
    keys = int((record["token"].isel(prompt=1) >= 0).sum())
    np.testing.assert_allclose(panels[-1].z, null.isel(prompt=1, key=slice(0, keys)))
    np.testing.assert_allclose(panels[0].z, received.isel(prompt=1, layer=0, head=0, key=slice(0, keys)))

    timeline = plots.timeline(record, prompt=1, rule=rule).data[0]
    np.testing.assert_array_equal(timeline.customdata, sinks.isel(prompt=1, key=slice(0, keys)).sum(["layer", "head"]))
    positions = plots.sink_positions(record, prompt=1, rule=rule)
    assert sum(trace.customdata[:, 1].sum() for trace in positions.data if len(trace.x)) == sinks.isel(prompt=1).sum()

    bars = plots.histogram(record, rule).data[:2]
    assert sum(bars[1].y) == int(sinks.sum())
    assert sum(bars[0].y) + sum(bars[1].y) == int(received.notnull().sum())

    curve = plots.filtered_curve(record, [0.1, 0.4], rule).data
    np.testing.assert_allclose(curve[0].y, dynamics.filtered_share(record, [0.1, 0.4], rule))
    np.testing.assert_allclose(curve[1].y, dynamics.filtered_share(attention.null(record, which), [0.1, 0.4], rule))

    points = plots.key_norms(record, rule=rule, points=10**6)
    marked = [trace for trace in points.data if trace.customdata is not None]
    assert sum(int(trace.customdata.sum()) for trace in marked) == int(sinks.sum())
    for layer, note in enumerate(points.layout.annotations):
        value = float(norms.key_norm_correlation(record, queries=which)[layer])
        assert f"{value:.2f}".replace("nan", "undefined") in note.text


def test_a_cut_is_drawn_only_where_the_rule_has_one(measured: Any) -> None:
    """3.95 of 64 keys is the cut of all queries; of a few queries, or among a few keys, the cut is another."""
    record = measured["tiny-dlm"]
    for rule in (SinkRule(queries="masked"), SinkRule(keys="prompt"), SinkRule(0.5, queries="last")):
        assert "no single cut" in text_of(plots.histogram(record, rule))
    assert "The cut depends on the number of keys" in text_of(plots.histogram(record, SinkRule()))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
def test_a_page_has_every_rule(measured: Any, tmp_path: Path, twin: str, rule: SinkRule) -> None:
    page = report.from_record(tmp_path / "a.html", measured[twin], rule=rule).read_text(encoding="utf-8")
    which = attention.counting(measured[twin], rule.queries)
    assert f"how much attention {which} queries" in page
    assert replace(rule, queries=which).words() in page


def test_a_page_of_other_queries_is_not_written(measured: Any, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="from all queries was not measured, only from masked"):
        report.from_record(tmp_path / "a.html", only(measured["tiny-dlm"], "masked"))
    assert not list(tmp_path.iterdir())
    report.from_record(tmp_path / "a.html", only(measured["tiny-dlm"], "masked"), rule=SinkRule(queries="masked"))


def test_a_masked_query_is_shown_its_own_sink() -> None:
    case = planted("split", seed=4)
    for which in ("masked", "committed"):
        figure = plots.layer_steps(case.record, SinkRule(queries=which))
        np.testing.assert_allclose(figure.data[0].z, np.ones((2, 16)))
        lives = plots.sink_lives(case.record, SinkRule(queries=which)).data[0]
        assert {x for x in lives.x if x is not None} == {case.truth[f"{which}_sink"]}


@pytest.mark.parametrize("name", FIGURES)
def test_layers_and_heads_that_were_not_measured_are_no_blanks(tiny_model: Any, name: str) -> None:
    """Head 1 of layer 1 alone, beside a probe of everything."""
    dlm = tiny_model("LLaDA", heads=4, kv_heads=2)
    probes = [ReceivedAttention(Scope(layers=[1], heads=[1])), KeyNorm()]
    record = denoise(dlm, [[5, 17, 9, 33]], Plan(new_tokens=4), probes=probes, progress=False).record
    assert record.sizes["layer"] == 2
    options = {"layer": 1, "head": 1} if name == "sink_lives" else {}
    figure = FIGURES[name](record, rule=SinkRule(0.3), **options)
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert all(np.isfinite(np.asarray(trace.z, float)).all() for trace in heat)


def test_a_figure_asks_the_record_and_not_its_prose() -> None:
    record = planted("static").record
    record["received"].attrs["definition"] = "sum over masked valid queries of the attention that the key receives"
    assert "sum over all valid queries" in text_of(plots.timeline(record))
    record["received"].attrs["queries"] = "masked"
    with pytest.raises(RecordError, match="only from masked"):
        plots.timeline(record)
    record.attrs["provenance"] = json.dumps({})
    with pytest.raises(RecordError, match="whether its model is causal"):
        plots.timeline(record, rule=SinkRule(queries="masked"))


def test_a_block_models_null_is_said_from_block_to_block() -> None:
    """Three blocks of 4, and the model sees two at first. A query of block n sees 4 (n + 1) keys, evenly."""
    prompt, probe = [0, 5, 6, 7, 8, 9, 10], ReceivedAttention(queries=("all", "block"))
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    record = denoise(dlm, prompt, Plan(new_tokens=5), probes=[probe], progress=False).record
    first = 4 * (1 / 4 + 1 / 8 + 1 / 12)
    said = f"Uniform attention, block by block, gives between {4 / 12:.3g} (last block) and {first:.3g} (first block)."
    assert said in text_of(plots.timeline(record))
    # of the 4 queries of one block alone: 4 / 8 in the one step of the second block, 4 / 12 in the 4 of the last
    mean = (8 * 4 / 8 + 4 * 12 * 4 / 12) / (8 + 4 * 12)
    evenly = f"Uniform attention gives every key {4 / 12:.3g} to {4 / 8:.3g} (mean {mean:.2f})."
    assert evenly in text_of(plots.timeline(record, rule=SinkRule(0.4, queries="block")))
