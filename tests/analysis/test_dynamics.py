"""Every metric finds the planted truth, and equals loops over plain Python sets on random, ragged records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sinklens.analysis import dynamics
from sinklens.analysis import overlap as sharing
from sinklens.errors import RecordError
from sinklens.ground_truth.records import planted
from sinklens.sinks import SinkRule

DIMS = ("prompt", "step", "layer", "head", "key")
KINDS = ("static", "jumping", "drifting", "split", "none")
CELLS = list(product(range(2), range(2)))  # layers and heads of the planted records
RULE = SinkRule(epsilon=1.0)
Cell = tuple[int, int, int, int]


@st.composite
def ragged(draw: st.DrawFn, sets: tuple[str, ...] = ()) -> xr.Dataset:
    """Rows of different lengths that end at different steps, a canvas that may grow, maybe a step without probe."""
    prompts, steps, layers, heads, keys = (draw(st.integers(1, most)) for most in (2, 6, 2, 2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    values = rng.gamma(0.3, 4, (prompts, steps, layers, heads, *([len(sets)] if sets else []), keys))
    for row in range(prompts):
        values[row, rng.integers(1, steps + 1) :] = np.nan
        length = rng.integers(1, keys + 1)
        for step in range(steps):
            values[row, step, ..., length if rng.random() < 0.7 else rng.integers(1, length + 1) :] = np.nan
    if steps > 2 and draw(st.booleans()):
        values[:, rng.integers(1, steps)] = np.nan
    dims = ("prompt", "step", "layer", "head", "queries", "key") if sets else DIMS
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in zip(dims, values.shape, strict=True)}
    coords["layer"] = np.arange(layers) * 3 + 1  # a probe that skipped layers
    if sets:
        coords["queries"] = list(sets)
    missing = np.isnan(values).all(axis=tuple(range(2, values.ndim - 1)))
    data = {
        "received": (dims, values.astype(np.float32), {} if sets else {"queries": "all"}),
        "masked": (("prompt", "step", "key"), np.where(missing, -1, 0).astype(np.int8)),
        "given": (("prompt", "key"), np.ones((prompts, keys), np.int8)),
    }
    return xr.Dataset(data, coords, attrs={"provenance": json.dumps({"causal": False})})


def by(name: str, rule: SinkRule = SinkRule()) -> SinkRule:
    """The rule for the attention of other queries."""
    return replace(rule, queries=name)  # type: ignore[arg-type]


def alone_with(record: xr.Dataset, name: str) -> xr.Dataset:
    """A record in which only these queries were measured."""
    received = record["received"].sel(queries=name, drop=True).assign_attrs(queries=name)
    return record.drop_vars("queries").assign(received=received)


def entries(array: xr.DataArray, *dims: str) -> dict[tuple, Any]:
    """Value by coordinates."""
    return array.transpose(*dims).to_series().to_dict()


def naive(record: xr.Dataset) -> dict[Cell, dict[int, float]]:
    """Received attention of the real keys of each measured (prompt, step, layer, head)."""
    cells: dict[Cell, dict[int, float]] = {}
    for (*cell, key), value in entries(record["received"], *DIMS).items():
        if not math.isnan(value):
            prompt, step, layer, head = cell
            cells.setdefault((prompt, step, layer, head), {})[key] = value
    return cells


def steps_of(record: xr.Dataset) -> list[int]:
    """Steps that were measured in some row."""
    return sorted({step for _, step, _, _ in naive(record)})


def naive_sinks(record: xr.Dataset, epsilon: float = 1.0) -> dict[Cell, set[int]]:
    """Equation 3 of arXiv 2510.15731 with column sums."""
    return {
        cell: {
            key
            for key, value in row.items()
            if value - sum(other for at, other in row.items() if at != key) / max(len(row) - 1, 1) > epsilon
        }
        for cell, row in naive(record).items()
    }


def naive_jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one | other else math.nan


def mean(values: Iterable[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan


def runs(record: xr.Dataset) -> dict[tuple[int, int, int], list[tuple[int, set[int]]]]:
    """Sinks of each (prompt, layer, head) over its measured steps."""
    found: dict[tuple[int, int, int], list[tuple[int, set[int]]]] = {}
    for (prompt, step, layer, head), sinks in naive_sinks(record).items():
        found.setdefault((prompt, layer, head), []).append((step, sinks))
    return found


def close(value: Any, expected: float) -> None:
    np.testing.assert_allclose(float(value), expected, rtol=1e-5, atol=1e-7)


def rows(table: Any) -> list[tuple]:
    return sorted(table.itertuples(index=False, name=None))


# ---------------------------------------------------------------------------------------------- planted


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Any:
    return planted(request.param, prompts=2, seed=5)


def test_planted_counts_and_positions(case: Any) -> None:
    record, truth = case.record, case.truth
    np.testing.assert_array_equal(dynamics.sink_rate(record), truth["sink_rate"])
    np.testing.assert_allclose(dynamics.concentration(record), truth["concentration"], rtol=1e-6)
    planted_at = np.broadcast_to(truth["position"][None, :, None, None], (2, 16, 2, 2))
    np.testing.assert_array_equal(dynamics.main_sink(record), planted_at)
    np.testing.assert_allclose(dynamics.drift(record), np.full((2, 2, 2), truth["drift"]), rtol=1e-12)
    first = np.where(truth["sinks"].any(0), truth["sinks"].argmax(0), -1)
    np.testing.assert_array_equal(dynamics.onset(record), np.broadcast_to(first, (2, 2, 2, 32)))


def test_planted_filtered_share_falls_to_the_planted_keys_below_the_excess(case: Any) -> None:
    excess = case.truth["excess"]
    curve = dynamics.filtered_share(case.record, [0, 3, 5.0, 8.0])
    sinks = case.truth["sinks"].sum(1).mean() / 32
    np.testing.assert_allclose(curve, [1 - sinks * (epsilon < excess) for epsilon in (0, 3, 5, 8)])
    assert curve["epsilon"].to_numpy().tolist() == [0, 3, 5, 8]


def test_planted_episodes_and_jumps(case: Any) -> None:
    record, truth = case.record, case.truth
    cells = list(product(range(2), *[range(2)] * 2))
    assert rows(dynamics.dwell(record)) == sorted((*cell, *episode) for cell in cells for episode in truth["dwell"])
    expected = sorted((*cell, step, a, b, abs(a - b)) for cell in cells for step, a, b in truth["jumps"])
    assert rows(dynamics.jumps(record)) == expected
    changes = dynamics.births_deaths(record)
    for step in range(16):
        births = sum(start == step for _, start, _ in truth["dwell"])
        deaths = sum(start + length == step for _, start, length in truth["dwell"])
        np.testing.assert_array_equal(changes["births"].sel(step=step), births * 4)  # 2 prompts x 2 heads
        np.testing.assert_array_equal(changes["deaths"].sel(step=step), deaths * 4)


def test_planted_overlaps(case: Any) -> None:
    record, sinks = case.record, [set(np.flatnonzero(row).tolist()) for row in case.truth["sinks"]]
    expected = [[naive_jaccard(one, other) for other in sinks] for one in sinks]
    np.testing.assert_allclose(sharing.jaccard(record), np.stack([expected] * 2))
    full = 1.0 if any(sinks) else math.nan
    np.testing.assert_array_equal(sharing.overlap(record, "layer"), np.full((2, 2), full))
    np.testing.assert_array_equal(sharing.overlap(record, "head"), np.full((2, 2, 2), full))
    table = sharing.agreement(record, {"sum": SinkRule(), "z": SinkRule(units="zscore"), "top": SinkRule(3.0, top_k=1)})
    ranked = 0.5 if any(len(one) == 2 for one in sinks) else full
    np.testing.assert_array_equal(table, [[full, full, ranked], [full, full, ranked], [ranked, ranked, full]])


def test_planted_centroids(case: Any) -> None:
    found, truth = dynamics.centroid_variance(case.record), case.truth
    if case.truth["sink_rate"] == 0:
        assert all(bool(variable.isnull().all()) for variable in found.data_vars.values())
        return
    centres = [np.flatnonzero(row).mean() for row in truth["sinks"]]
    spread = np.mean([np.flatnonzero(row).var() for row in truth["sinks"]])
    np.testing.assert_allclose(found["centroid"][0, :, 1, 1], centres, rtol=1e-6)
    np.testing.assert_allclose(found["temporal"], np.var(centres) / 32**2, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found["spatial"], spread / 32**2, rtol=1e-6, atol=1e-12)
    assert found["temporal"].dims == ("prompt", "layer", "head")


def test_planted_types() -> None:
    types = {kind: dynamics.classify(planted(kind).record) for kind in KINDS}
    assert set(types["static"]["type"]) == set(types["split"]["type"]) == {"static"}
    assert set(types["jumping"]["type"]) == {"moving"}
    assert len(types["none"]) == 0
    drifting = types["drifting"]
    last = planted("drifting").truth["position"][-1]
    assert set(drifting[drifting["key"] == last]["type"]) == {"static"}  # its run ends before it could move
    assert set(drifting[drifting["key"] != last]["type"]) == {"moving"}
    assert len(dynamics.classify(planted("jumping").record, share=0.5).query("type == 'static'")) == 4 * 2


def test_planted_split_is_seen_by_the_queries() -> None:
    case = planted("split", seed=2)
    for name in ("masked", "committed"):
        at = dynamics.main_sink(case.record, by(name))
        assert (at == case.truth[f"{name}_sink"]).all()
        assert (dynamics.sink_rate(case.record, by(name)) == 1).all()
    sets = sharing.overlap(case.record, "queries")
    assert sets["queries"].to_numpy().tolist() == ["all", "masked", "committed"]
    np.testing.assert_array_equal(sets, np.stack([[[1, 0.5, 0.5], [0.5, 1, 0], [0.5, 0, 1]]] * 2))
    distance = case.truth["committed_sink"] - case.truth["masked_sink"]
    np.testing.assert_allclose(dynamics.centroid_variance(case.record)["spatial"], (distance / 2 / 32) ** 2, rtol=1e-6)


def test_planted_causal_sinks_are_found_where_the_null_stays_below_the_cut() -> None:
    case = planted("static", causal=True, strength=12.0, seed=1)
    rule = SinkRule(epsilon=case.truth["null"].max())
    assert (dynamics.main_sink(case.record, rule) == case.truth["position"][0]).all()


# ---------------------------------------------------------------------------------------------- against loops


@given(record=ragged())
def test_counts_equal_loops(record: xr.Dataset) -> None:
    received, found = naive(record), naive_sinks(record)
    rate, share, main = (
        dynamics.sink_rate(record, RULE),
        dynamics.concentration(record),
        dynamics.main_sink(record, RULE),
    )
    for layer in record["layer"].to_numpy():
        here = [cell for cell in found if cell[2] == layer]
        close(rate.sel(layer=layer), mean(float(bool(found[cell])) for cell in here))
        close(share.sel(layer=layer), mean(max(received[c].values()) / sum(received[c].values()) for c in here))
    for cell, best in entries(main, *DIMS[:-1]).items():
        assert best == max(found.get(cell, ()), key=lambda key, cell=cell: received[cell][key], default=-1)
    for epsilon, value in zip((0.5, 2), dynamics.filtered_share(record, (0.5, 2)), strict=True):
        sinks = sum(map(len, naive_sinks(record, epsilon).values()))
        close(value, 1 - sinks / sum(map(len, received.values())))


@given(record=ragged())
def test_histories_equal_loops(record: xr.Dataset) -> None:
    received, slopes = naive(record), entries(dynamics.drift(record, RULE), "prompt", "layer", "head")
    onsets: dict[tuple, int] = {}
    episodes, jumps, types = [], [], []
    for (prompt, layer, head), history in runs(record).items():
        cell = (prompt, layer, head)
        for index, (step, sinks) in enumerate(history):
            earlier = history[index - 1][1] if index else set()
            for key in sinks:
                onsets.setdefault((*cell, key), step)
                if key not in earlier:
                    later = [key in after for _, after in history[index:]]
                    episodes.append((*cell, key, step, [*later, False].index(False)))
        tops = [
            max(sinks, key=lambda key, step=step: received[(prompt, step, layer, head)][key], default=-1)
            for step, sinks in history
        ]
        for (_, a), (step, b) in pairwise(zip((step for step, _ in history), tops, strict=True)):
            if -1 not in (a, b) and a != b:
                jumps.append((*cell, step, a, b, abs(a - b)))
        for key in {key for _, sinks in history for key in sinks}:
            start = onsets[(*cell, key)]
            exists = [sinks for step, sinks in history if step >= start and key in received[(prompt, step, *cell[1:])]]
            part = sum(key in sinks for sinks in exists) / len(exists)
            types.append((*cell, key, start, len(exists), part, "static" if part >= 0.9 else "moving"))
        points = [(step, at) for (step, _), at in zip(history, tops, strict=True) if at >= 0]
        slope = (
            np.polyfit([step for step, _ in points], [at for _, at in points], 1)[0] if len(points) > 1 else math.nan
        )
        np.testing.assert_allclose(slopes[cell], slope, atol=1e-9)
    assert rows(dynamics.dwell(record, RULE)) == sorted(episodes)
    assert rows(dynamics.jumps(record, RULE)) == sorted(jumps)
    assert rows(dynamics.classify(record, RULE)) == sorted(types)
    for at, step in entries(dynamics.onset(record, RULE), "prompt", "layer", "head", "key").items():
        assert step == onsets.get(at, -1)


@given(record=ragged())
def test_sets_equal_loops(record: xr.Dataset) -> None:
    found, steps = naive_sinks(record), steps_of(record)
    prompts, layers, heads = (record[dim].to_numpy().tolist() for dim in ("prompt", "layer", "head"))
    matrix = entries(sharing.jaccard(record, RULE), "layer", "step", "other_step")
    assert sorted(matrix) == sorted(product(layers, steps, steps))
    for layer, one, other in matrix:
        cells = [((p, one, layer, h), (p, other, layer, h)) for p in prompts for h in heads]
        expected = mean(naive_jaccard(found[a], found[b]) for a, b in cells if a in found and b in found)
        close(matrix[layer, one, other], expected)
    by_head = entries(sharing.overlap(record, "head", RULE), "layer", "head", "other_head")
    for (layer, one, other), value in by_head.items():
        cells = [((p, t, layer, one), (p, t, layer, other)) for p in prompts for t in steps]
        close(value, mean(naive_jaccard(found[a], found[b]) for a, b in cells if a in found))
    for (one, other), value in entries(sharing.overlap(record, "layer", RULE), "layer", "other_layer").items():
        union = {
            (p, t, layer): set().union(*(found.get((p, t, layer, h), set()) for h in heads))
            for p, t, layer in product(prompts, steps, layers)
        }
        expected = mean(naive_jaccard(union[p, t, one], union[p, t, other]) for p in prompts for t in steps)
        close(value, expected)
    table = sharing.agreement(record, {"one": RULE, "two": SinkRule(epsilon=2.0), "same": SinkRule(epsilon=1.0)})
    strict = naive_sinks(record, 2.0)
    close(table.loc["one", "two"], mean(naive_jaccard(found[cell], strict[cell]) for cell in found))
    np.testing.assert_array_equal(table, table.T)
    close(table.loc["one", "same"], 1.0 if any(found.values()) else math.nan)


@given(record=ragged())
def test_centroids_equal_loops(record: xr.Dataset) -> None:
    received, found = naive(record), dynamics.centroid_variance(record, RULE)
    centroid = entries(found["centroid"], *DIMS[:-1])
    for (prompt, layer, head), history in runs(record).items():
        at = {"prompt": prompt, "layer": layer, "head": head}
        size = len({key for cell, row in received.items() if cell[0] == prompt for key in row}) ** 2
        centres, spreads = [], []
        for step, sinks in history:
            weights = {key: received[(prompt, step, layer, head)][key] for key in sinks}
            if weights:
                centres.append(sum(key * w for key, w in weights.items()) / sum(weights.values()))
                around = sum(w * (key - centres[-1]) ** 2 for key, w in weights.items())
                spreads.append(around / sum(weights.values()))
                close(centroid[prompt, step, layer, head], centres[-1])
            else:
                assert math.isnan(centroid[prompt, step, layer, head])
        close(found["temporal"].sel(at), float(np.var(centres)) / size if centres else math.nan)
        close(found["spatial"].sel(at), mean(spreads) / size)


# ---------------------------------------------------------------------------------------------- invariants


@given(record=ragged())
def test_invariants(record: xr.Dataset) -> None:
    found = naive_sinks(record)
    flags = sum(map(len, found.values()))
    assert sum(dynamics.dwell(record, RULE)["length"].tolist()) == flags
    matrix = sharing.jaccard(record, RULE)
    np.testing.assert_array_equal(matrix, matrix.transpose("layer", "other_step", "step"))
    diagonal = np.diagonal(matrix.to_numpy(), axis1=1, axis2=2)
    assert set(diagonal[~np.isnan(diagonal)]) <= {1.0}
    changes, steps = dynamics.births_deaths(record, RULE), steps_of(record)
    for layer, (before, now) in product(record["layer"].to_numpy().tolist(), pairwise([-1, *steps])):
        here = [cell for cell in found if cell[1] == now and cell[2] == layer]  # rows that go on
        change = sum(len(found[cell]) - len(found.get((cell[0], before, *cell[2:]), ())) for cell in here)
        at = changes.sel(step=now, layer=layer)
        assert int(at["births"]) - int(at["deaths"]) == change
        assert 0 <= int(at["deaths"]) <= sum(len(found.get((c[0], before, *c[2:]), ())) for c in here)


@settings(max_examples=8)
@given(record=ragged(sets=("all", "masked")))
def test_queries_give_what_a_record_of_them_alone_gives(record: xr.Dataset) -> None:
    for name in ("all", "masked"):
        alone, rule = alone_with(record, name), by(name, RULE)
        for metric in (dynamics.sink_rate, dynamics.main_sink, dynamics.drift, sharing.jaccard, dynamics.onset):
            xr.testing.assert_identical(metric(record, rule), metric(alone, rule))
        assert rows(dynamics.dwell(record, rule)) == rows(dynamics.dwell(alone, rule))
        xr.testing.assert_identical(dynamics.centroid_variance(record, rule), dynamics.centroid_variance(alone, rule))
    sets = sharing.overlap(record, "queries", RULE)
    one, other = (naive_sinks(alone_with(record, name)) for name in ("all", "masked"))
    for layer in record["layer"].to_numpy():
        expected = mean(naive_jaccard(one[cell], other[cell]) for cell in one if cell[2] == layer)
        close(sets.sel(layer=layer, queries="all", other_queries="masked"), expected)


@given(record=ragged())
def test_a_prompt_alone_gives_what_it_gives_in_a_batch(record: xr.Dataset) -> None:
    together = dynamics.drift(record, RULE)
    for prompt in record["prompt"].to_numpy():
        alone = dynamics.drift(record.sel(prompt=[prompt]), RULE)
        xr.testing.assert_allclose(alone, together.sel(prompt=[prompt]))
        table = dynamics.dwell(record, RULE)
        assert rows(dynamics.dwell(record.sel(prompt=[prompt]), RULE)) == rows(table[table["prompt"] == prompt])


def test_the_record_is_not_changed(case: Any) -> None:
    before = case.record.copy(deep=True)
    for metric in (dynamics.sink_rate, dynamics.onset, sharing.jaccard, dynamics.centroid_variance, dynamics.classify):
        metric(case.record)
    assert case.record.identical(before)


def test_a_causal_record_tells_the_rule_which_queries_see_a_key() -> None:
    case = planted("static", causal=True, strength=8.0, seed=1)
    assert json.loads(case.record.attrs["provenance"])["causal"]
    position = int(case.truth["position"][0])
    share = 8.0 / (32 - position)
    inside, beyond = (SinkRule(epsilon=share + change, units="share") for change in (-0.01, 0.01))
    assert (dynamics.onset(case.record, inside).sel(key=position) == 0).all()
    assert (dynamics.onset(case.record, beyond).sel(key=position) == -1).all()


def test_what_is_missing_is_named() -> None:
    record = planted("static").record
    with pytest.raises(RecordError, match="ReceivedAttention"):
        dynamics.drift(record.drop_vars("received"))
    with pytest.raises(RecordError, match="ReceivedAttention"):
        sharing.overlap(record.drop_vars("received"), "queries")
    with pytest.raises(RecordError, match="queries='masked'"):
        dynamics.drift(record, by("masked"))
    with pytest.raises(RecordError, match=r'queries=\("all", "masked", "committed"\)'):
        sharing.overlap(record, "queries")
    with pytest.raises(RecordError, match="only from all, masked, committed"):
        dynamics.drift(planted("split").record, by("prompt"))
    with pytest.raises(ValueError, match="is unknown; choose from 'layer', 'head', 'queries'"):
        sharing.overlap(record, "prompt")  # pyright: ignore[reportArgumentType]
