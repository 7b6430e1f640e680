"""Norms beside attention: planted answers, and equality with loops and a Spearman by hand."""

from __future__ import annotations

import json
import math
import statistics
from itertools import product
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sinklens.analysis import norms
from sinklens.errors import RecordError
from sinklens.ground_truth.records import planted
from sinklens.sinks import SinkRule

DIMS = ("prompt", "step", "layer", "head", "key")
SHARED = ("prompt", "step", "layer", "kv_head", "key")
RULE = SinkRule(epsilon=1.0)


@st.composite
def ragged(draw: st.DrawFn) -> xr.Dataset:
    """Rows of different lengths that end at different steps; two or one query heads per key head; many ties."""
    prompts, steps, layers, kv_heads, groups = (draw(st.integers(1, 2)) for _ in range(5))
    keys, rng = draw(st.integers(2, 9)), np.random.default_rng(draw(st.integers(0, 10_000)))
    received = rng.integers(0, 6, (prompts, steps, layers, kv_heads * groups, keys)).astype(np.float32)
    shared = {name: rng.integers(1, 6, (prompts, steps, layers, kv_heads, keys)).astype(np.float32) for name in "kv"}
    masked = rng.integers(0, 2, (prompts, steps, keys)).astype(np.int8)
    given_ = rng.integers(0, 2, (prompts, keys)).astype(np.int8)
    text = rng.choice(np.array(["<|eos|>", " a", " b"], dtype=object), (prompts, keys))
    for row in range(prompts):
        length, end = rng.integers(1, keys + 1), rng.integers(1, steps + 1)
        for values in (received, *shared.values()):
            values[row, ..., length:] = values[row, end:] = np.nan
        masked[row, :, length:] = masked[row, end:] = given_[row, length:] = -1
        text[row, length:] = ""
    coords = {dim: np.arange(size) for dim, size in zip(DIMS, received.shape, strict=True)}
    return xr.Dataset(
        {
            "received": (DIMS, received, {"queries": "all"}),
            "key_norm": (SHARED, shared["k"]),
            "value_norm": (SHARED, shared["v"]),
            "masked": (("prompt", "step", "key"), masked),
            "given": (("prompt", "key"), given_),
            "text": (("prompt", "key"), text),
        },
        coords,
        {"provenance": json.dumps({"causal": False, "heads": kv_heads * groups, "key_heads": kv_heads})},
    )


def rank(values: list[float]) -> list[float]:
    """Average ranks, by counting."""
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def naive_spearman(a: list[float], b: list[float]) -> float:
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return math.nan
    return statistics.correlation(rank(a), rank(b))


def naive_type(record: xr.Dataset, prompt: int, step: int, key: int) -> str:
    if int(record["masked"][prompt, step, key]) == 1:
        return "mask"
    if int(record["given"][prompt, key]) == 1:
        return "prompt"
    return "eos" if record["text"].to_numpy()[prompt, key] == "<|eos|>" else "committed"


def naive_correlation(record: xr.Dataset, layer: int, only: str | None = None) -> float:
    received, key_norm = record["received"].to_numpy(), record["key_norm"].to_numpy()
    prompts, steps, _, heads, keys = received.shape
    group, found = heads // key_norm.shape[3], []
    for prompt, step, head in product(range(prompts), range(steps), range(heads)):
        at = [
            key
            for key in range(keys)
            if not math.isnan(received[prompt, step, layer, head, key])
            and (only is None or naive_type(record, prompt, step, key) == only)
        ]
        a = [float(received[prompt, step, layer, head, key]) for key in at]
        b = [-float(key_norm[prompt, step, layer, head // group, key]) for key in at]
        found.append(naive_spearman(a, b))
    finite = [value for value in found if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan


@given(record=ragged())
def test_key_norm_correlation_equals_loops(record: xr.Dataset) -> None:
    whole, types = norms.key_norm_correlation(record), norms.key_norm_correlation(record, "key_type")
    assert types["key_type"].to_numpy().tolist() == list(norms.KEY_TYPES)
    for layer in range(record.sizes["layer"]):
        np.testing.assert_allclose(float(whole.sel(layer=layer)), naive_correlation(record, layer), atol=1e-12)
        for name in norms.KEY_TYPES:
            value = float(types.sel(layer=layer, key_type=name))
            np.testing.assert_allclose(value, naive_correlation(record, layer, name), atol=1e-12)


@given(record=ragged())
def test_kind_equals_loops(record: xr.Dataset) -> None:
    table = norms.kind(record, RULE)
    received, value_norm = record["received"].to_numpy(), record["value_norm"].to_numpy()
    group = received.shape[3] // value_norm.shape[3]
    for layer in range(record.sizes["layer"]):
        counts = {"drained": 0, "informative": 0, "unclear": 0}
        for prompt, step, head in product(*(range(received.shape[axis]) for axis in (0, 1, 3))):
            row = [float(v) for v in received[prompt, step, layer, head] if not math.isnan(v)]
            lengths = [float(v) for v in value_norm[prompt, step, layer, head // group] if not math.isnan(v)]
            for at, value in enumerate(row):
                if value - (sum(row) - value) / max(len(row) - 1, 1) > 1.0:
                    relative = lengths[at] / statistics.median(lengths)
                    counts["drained" if relative < 0.75 else "informative" if relative > 1.25 else "unclear"] += 1
        assert table[table["layer"] == layer].iloc[0].to_dict() == {"layer": layer, **counts}


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["static", "jumping", "drifting", "split", "none"])
def test_planted_norms(kind: Any, heads: int) -> None:
    case = planted(kind, heads=heads, prompts=2)
    correlation = norms.key_norm_correlation(case.record)
    expected = math.nan if kind == "none" else 1.0
    np.testing.assert_allclose(correlation, [expected] * 2, rtol=1e-12)
    table = norms.kind(case.record)
    assert table["drained"].tolist() == [case.truth["drained"]] * 2
    assert table[["informative", "unclear"]].to_numpy().sum() == 0


def test_monotone_norms_give_one_and_minus_one() -> None:
    record = planted("none", causal=True).record  # every key receives something else
    np.testing.assert_allclose(norms.key_norm_correlation(record), 1, rtol=1e-12)
    opposite = record.assign(key_norm=10 - record["key_norm"])
    np.testing.assert_allclose(norms.key_norm_correlation(opposite), -1, rtol=1e-12)
    by_type = norms.key_norm_correlation(opposite, "key_type")
    np.testing.assert_allclose(by_type.sel(key_type=["prompt", "committed", "mask"]), -1, rtol=1e-12)
    assert by_type.sel(key_type="eos").isnull().all()  # a single EOS key


def test_the_value_norm_decides_the_kind_and_the_bounds_can_be_chosen() -> None:
    case = planted("static")
    for factor, column in ((4.0, "informative"), (2.0, "unclear"), (1.0, "drained")):
        record = case.record.copy()
        at = int(case.truth["position"][0])
        record["value_norm"] = record["value_norm"].where(record["key"] != at, 0.5 * factor)
        assert norms.kind(record)[column].tolist() == [case.truth["drained"]] * 2
    assert norms.kind(case.record, low=0.4)["unclear"].tolist() == [case.truth["drained"]] * 2


def test_masked_queries_have_their_own_correlation() -> None:
    case = planted("split", seed=3)
    masked = case.record["received"].sel(queries="masked", drop=True).assign_attrs(queries="masked")
    alone = case.record.drop_vars("queries").assign(received=masked)
    one = norms.key_norm_correlation(case.record, queries="masked")
    xr.testing.assert_identical(one, norms.key_norm_correlation(alone, queries="masked"))
    assert norms.kind(case.record, SinkRule(queries="masked"))["drained"].tolist() == [case.truth["drained"] // 2] * 2


def test_some_heads_keep_the_keys_that_they_use() -> None:
    """Heads 2 and 3 use the second key head, whatever heads stand beside them in the record."""
    record = planted("none", heads=4, causal=True).record
    record["key_norm"][:, :, :, 1] = 10 - record["key_norm"][:, :, :, 1]  # the second key head: large keys attract
    for heads, expected in (([0, 1], 1.0), ([2, 3], -1.0), ([3], -1.0), ([1, 2], 0.0)):
        found = norms.key_norm_correlation(record.isel(head=heads))
        np.testing.assert_allclose(found, [expected] * 2, atol=1e-12)
    with pytest.raises(RecordError, match="use key head 1, whose key_norm it does not have"):
        norms.key_norm_correlation(record.isel(kv_head=[0]))
    record.attrs["provenance"] = json.dumps({"causal": True})
    with pytest.raises(RecordError, match="which query heads share a key head"):
        norms.key_norm_correlation(record)


def test_key_types_follow_the_canvas() -> None:
    record = planted("static", seed=2).record  # commits its EOS early
    types = norms.key_types(record)
    for step in (0, 8, 15):
        named = [norms.KEY_TYPES[index] for index in types.isel(prompt=0, step=step).to_numpy()]
        assert named == [naive_type(record, 0, step, key) for key in range(32)]
    assert "eos" in {norms.KEY_TYPES[index] for index in np.unique(types)}


def test_what_is_missing_is_named() -> None:
    record = planted("static").record
    with pytest.raises(RecordError, match=r"KeyNorm\(\)"):
        norms.key_norm_correlation(record.drop_vars("key_norm"))
    with pytest.raises(RecordError, match=r"ValueNorm\(\)"):
        norms.kind(record.drop_vars("value_norm"))
    with pytest.raises(RecordError, match="ReceivedAttention"):
        norms.kind(record.drop_vars("received"))
    with pytest.raises(RecordError, match="queries='masked'"):
        norms.kind(record, SinkRule(queries="masked"))
    with pytest.raises(ValueError, match="key_type"):
        norms.key_norm_correlation(record, by="token")  # pyright: ignore[reportArgumentType]


def residuals(values: list[float], others: list[float]) -> np.ndarray:
    """What a straight line through the ranks of `others` leaves of the ranks of `values`."""
    x, y = (np.array([statistics.mean(i for i, s in enumerate(sorted(v)) if s == one) for one in v], float)
            for v in (others, values))  # fmt: skip
    slope, height = np.polyfit(x, y, 1)
    return y - slope * x - height


@pytest.mark.parametrize("causal", [False, True])
def test_predictors_are_correlations_of_what_the_other_one_leaves(causal: bool) -> None:
    """A partial correlation is that of the residuals of two regressions; attention relative to uniform attention."""
    record = planted("static", steps=2, keys=14, layers=2, heads=2, prompts=2, causal=causal).record.copy(deep=True)
    draw, queries = np.random.default_rng(2), range(14)
    record["received"][:] = draw.random(record["received"].shape)
    record["key_norm"][:] = draw.random(record["key_norm"].shape)
    even = [sum(1 / (i + 1) for i in queries if i >= j) if causal else 1.0 for j in range(14)]
    table = norms.predictors(record)
    assert table[["layer", "prompt"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    for line in table.itertuples():
        found: list[tuple[float, ...]] = []
        for step, head in product(range(2), range(2)):
            row = record["received"].to_numpy()[line.prompt, step, line.layer, head]
            attention = [float(value) / uniform for value, uniform in zip(row, even, strict=True)]
            small = (-record["key_norm"].to_numpy()[line.prompt, step, line.layer, 0]).tolist()
            early = [-float(j) for j in range(14)]
            given_place = np.corrcoef(residuals(attention, early), residuals(small, early))[0, 1]
            given_norm = np.corrcoef(residuals(attention, small), residuals(early, small))[0, 1]
            plain = naive_spearman(attention, small), naive_spearman(attention, early)
            found.append((*plain, given_place, given_norm))
        got = [line.small_norm, line.early, line.small_norm_given_position, line.early_given_norm]
        assert got == pytest.approx(np.mean(found, axis=0).tolist(), abs=1e-6)


def test_a_planted_sink_has_a_small_key_wherever_it_stands() -> None:
    """The planted norm falls as attention rises, so nothing is left for the position once it is known."""
    table = norms.predictors(planted("static").record)
    assert table["small_norm"].tolist() == pytest.approx([1, 1])
    assert table["early_given_norm"].isna().all()
