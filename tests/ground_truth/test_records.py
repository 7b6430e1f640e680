"""Planted records hold what they promise, by sums over the patterns alone, and have the layout of real ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens import records
from sinklens.ground_truth.records import Planted, planted
from sinklens.records import VARIABLES
from sinklens.sinks import SinkRule, received_attention, uniform_null

KINDS = ("static", "jumping", "drifting", "split", "none")
PLANTABLE = [(kind, causal) for kind in KINDS for causal in (False, True) if (kind, causal) != ("split", True)]


def everyone(case: Planted) -> Any:
    values = case.record["received"]
    return values.sel(queries="all") if "queries" in values.dims else values


@pytest.mark.parametrize(("kind", "causal"), PLANTABLE)
@given(seed=st.integers(0, 1000), steps=st.integers(4, 9), keys=st.integers(16, 40), strength=st.floats(5, 7.9))
def test_patterns_are_attention_and_received_is_their_column_sum(
    kind: Any, causal: bool, seed: int, steps: int, keys: int, strength: float
) -> None:
    case = planted(kind, steps=steps, keys=keys, strength=strength, causal=causal, seed=seed, prompts=2, layers=3)
    assert case.patterns.shape == (steps, 3, 2, keys, keys)
    assert (case.patterns >= 0).all()
    torch.testing.assert_close(case.patterns.sum(-1), torch.ones(steps, 3, 2, keys))
    if causal:
        assert (case.patterns.triu(1) == 0).all()
    received = everyone(case).transpose("prompt", "step", "layer", "head", "key").to_numpy()
    for row in received:
        np.testing.assert_allclose(row, received_attention(case.patterns).numpy(), rtol=1e-5)
    np.testing.assert_allclose(received.mean(-1), 1, rtol=1e-5)
    sinks = case.truth["sinks"]
    np.testing.assert_array_equal(received[0, :, 0, 0][sinks], np.float32(strength))
    if not causal and kind != "none":  # what is left is spread evenly
        rest = (keys - strength * sinks[0].sum()) / (keys - sinks[0].sum())
        np.testing.assert_allclose(received[0, :, 0, 0][~sinks], rest, rtol=1e-5)


@given(seed=st.integers(0, 1000), steps=st.integers(1, 9), strength=st.floats(4, 16))
def test_split_queries_use_their_own_sink_and_give_it_the_strength(seed: int, steps: int, strength: float) -> None:
    case = planted("split", seed=seed, steps=steps, strength=strength)
    received = case.record["received"].isel(prompt=0, layer=0, head=0)
    assert received["queries"].to_numpy().tolist() == ["all", "masked", "committed"]
    hidden = torch.from_numpy(case.record["masked"].isel(prompt=0).to_numpy() == 1)
    for name, queries in (("masked", hidden), ("committed", ~hidden)):
        own, other = case.truth[f"{name}_sink"], case.truth["masked_sink"] + case.truth["committed_sink"]
        mine = received.sel(queries=name).to_numpy()
        np.testing.assert_allclose(mine, received_attention(case.patterns[:, 0, 0], queries).numpy(), rtol=1e-5)
        np.testing.assert_array_equal(mine[:, own], np.float32(strength))
        np.testing.assert_array_equal(mine[:, other - own], 0)
    parts = received.sel(queries=["masked", "committed"]).sum("queries")
    np.testing.assert_allclose(parts, received.sel(queries="all"), rtol=1e-5)


def test_static_stays_drifting_moves_by_one_and_jumping_returns() -> None:
    static, drifting, jumping = (planted(kind).truth for kind in ("static", "drifting", "jumping"))
    assert len(set(static["position"])) == 1
    assert set(np.diff(drifting["position"])) == {1}
    a, b, c, again = jumping["position"][::4]
    assert len({a, b, c}) == 3
    assert again == a
    assert jumping["dwell"] == sorted([(a, 0, 4), (b, 4, 4), (c, 8, 4), (a, 12, 4)])
    assert jumping["jumps"] == [(4, a, b), (8, b, c), (12, c, a)]


def test_none_is_the_uniform_null_and_a_causal_null_is_told() -> None:
    for causal in (False, True):
        case = planted("none", causal=causal, keys=64)
        np.testing.assert_allclose(
            everyone(case)[0, 0, 0, 0], uniform_null(64, "causal" if causal else "bidirectional"), rtol=1e-5
        )
        np.testing.assert_allclose(case.truth["null"], uniform_null(64, "causal" if causal else "bidirectional"))
        assert not case.truth["sinks"].any()
        flags = SinkRule()(torch.from_numpy(everyone(case).to_numpy()))
        assert int(flags[0, 0, 0, 0].sum()) == int(causal)  # the trap: key 0 of 64 causal keys passes without a sink


@pytest.mark.parametrize("kind", ["static", "jumping", "drifting", "split"])
def test_the_excess_is_where_rules_stop_finding_the_sinks(kind: Any) -> None:
    case = planted(kind, strength=6.0)
    values = torch.from_numpy(everyone(case).transpose(..., "head", "key").to_numpy())[0, :, 0, 0]
    below, above = (SinkRule(epsilon=case.truth["excess"] + change)(values) for change in (-1e-3, 1e-3))
    np.testing.assert_array_equal(below, case.truth["sinks"])
    assert not above.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_has_the_layout_of_a_real_one(kind: Any, tmp_path: Any) -> None:
    record = planted(kind, prompts=2, heads=4).record
    assert record.sizes["prompt"] == 2
    assert (record.sizes["layer"], record.sizes["head"], record.sizes["kv_head"]) == (2, 4, 2)
    assert set(VARIABLES) <= set(record.data_vars)
    assert record.attrs["sinklens_schema"] == records.SCHEMA
    assert json.loads(record.attrs["provenance"])["model"] == f"planted:{kind}"
    masked, token = record["masked"].to_numpy(), record["token"].to_numpy()
    np.testing.assert_array_equal(record["canvas"], np.where(masked == 1, 2, token[:, None]))
    after = np.concatenate([masked[:, 1:], np.zeros_like(masked[:, :1])], 1)
    for step in range(record.sizes["step"]):
        np.testing.assert_array_equal(record["commit_step"] == step, (masked[:, step] == 1) & (after[:, step] == 0))
    np.testing.assert_array_equal(record["commit_step"] == -1, record["given"] == 1)
    np.testing.assert_array_equal(record["confidence"].isnull(), record["given"] == 1)
    for name, variable in VARIABLES.items():
        assert record[name].dims == variable.dims
        assert record[name].dtype == np.dtype(variable.dtype)
        assert record[name].attrs == {"units": variable.unit, "definition": variable.definition}
    if kind == "split":
        assert record["received"].dims == ("prompt", "step", "layer", "head", "queries", "key")
    else:
        assert record["received"].attrs["queries"] == "all"
    assert record["text"].to_numpy()[0, 0] == "<|bos|>"
    assert record["text"].to_numpy()[1, -1] == "<|eos|>"
    assert records.open(records.save(record, tmp_path / "planted.nc")).identical(record)


def test_the_seed_decides() -> None:
    one, same, other = (planted("jumping", seed=seed) for seed in (3, 3, 4))
    assert one.record.identical(same.record)
    assert not one.record.identical(other.record)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "wobbling"},
            "kind='wobbling' is unknown; choose from 'static', 'jumping', 'drifting', 'split', 'none'",
        ),
        ({"kind": "static", "strength": 33}, "at most the number of queries that can use the sink, which is 32"),
        ({"kind": "static", "strength": 0.5}, "at least 1"),
        ({"kind": "split", "strength": 17}, "which is 16"),
        ({"kind": "split", "causal": True}, "no masked queries"),
        ({"kind": "drifting", "strength": 18, "causal": True}, "which is 17"),
        ({"kind": "drifting", "steps": 33}, "at least 1 steps and 33 keys"),
        ({"kind": "jumping", "steps": 3}, "at least 4 steps"),
        ({"kind": "none", "layers": 0}, "layers=0"),
    ],
)
def test_what_cannot_be_planted_raises(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "static", "strength": 32},
        {"kind": "static", "strength": 32, "causal": True},
        {"kind": "split", "strength": 16},
        {"kind": "drifting", "strength": 17, "causal": True},
        {"kind": "drifting", "steps": 32},
        {"kind": "static", "steps": 1, "keys": 2, "strength": 1},
    ],
)
def test_the_limits_themselves_can_be_planted(arguments: Any) -> None:
    case = planted(**arguments)
    torch.testing.assert_close(case.patterns.sum(-1), torch.ones(case.patterns.shape[:-1]))
    np.testing.assert_allclose(everyone(case).max("key"), np.float32(arguments.get("strength", 8.0)))
