"""What a record knows of its attention, and that every analysis asks it: whose it is, who could see whom, the null."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import xarray as xr

from sinklens import HookedDLM, Plan, Scope, denoise
from sinklens.analysis import attention, dynamics, norms, overlap, rates
from sinklens.errors import RecordError
from sinklens.ground_truth.records import planted
from sinklens.probes import KeyNorm, QKDecomposition, ReceivedAttention, SinkMask, ValueNorm
from sinklens.sinks import Positions, SinkRule
from sinklens.sinks.named import RULES

SETS: tuple[Positions, ...] = get_args(Positions)
PROMPTS = ["dolko xe, dolko xo. talma wi", "gake xe"]

# Every function of a record and a rule.
BY_RULE: dict[str, Callable[[xr.Dataset, SinkRule], Any]] = {
    "sinks": rates.sinks,
    "flagged": rates.flagged,
    "per_layer": rates.per_layer,
    "token_classes": rates.token_classes,
    "place_classes": rates.place_classes,
    "sink_tokens": rates.sink_tokens,
    "movement": rates.movement,
    "sink_rate": dynamics.sink_rate,
    "filtered_share": lambda record, rule: dynamics.filtered_share(record, [0.1, 0.4], rule),
    "main_sink": dynamics.main_sink,
    "onset": dynamics.onset,
    "dwell": dynamics.dwell,
    "births_deaths": dynamics.births_deaths,
    "jumps": dynamics.jumps,
    "drift": dynamics.drift,
    "centroid_variance": dynamics.centroid_variance,
    "classify": dynamics.classify,
    "kind": norms.kind,
    "qk_at_sinks": norms.qk_at_sinks,
    "jaccard": overlap.jaccard,
    "overlap": lambda record, rule: overlap.overlap(record, "layer", rule),
    "agreement": lambda record, rule: overlap.agreement(record, {"one": rule, "two": replace(rule, top_k=1)}),
}
# Every function of a record and the queries.
BY_QUERIES: dict[str, Callable[[xr.Dataset, Any], Any]] = {
    "received": attention.received,
    "null": attention.null,
    "concentration": dynamics.concentration,
    "key_norm_correlation": lambda record, queries: norms.key_norm_correlation(record, queries=queries),
}
RULES_TO_TRY = [
    SinkRule(0.4, keys="prompt"),
    SinkRule(0.4, queries="masked"),
    SinkRule(0.4, queries="masked", keys="masked"),
    SinkRule(0.1, "share", queries="prompt", keys="response"),
    SinkRule(0.4, queries="auto"),
    SinkRule(0.4, queries="last", per="mean"),
    SinkRule(None, top_k=1, queries="committed", keys="last"),
]


@pytest.fixture(scope="module")
def measured() -> dict[str, xr.Dataset]:
    """A record of each twin with all queries and all that an analysis may want."""
    found = {}
    for name in ("tiny-dlm", "tiny-arm"):
        probes = [ReceivedAttention(queries=SETS), KeyNorm(), ValueNorm(), QKDecomposition()]
        dlm = HookedDLM.from_pretrained(name)
        for index, rule in enumerate(RULES_TO_TRY):
            if not (dlm.is_causal and "masked" in (rule.queries, rule.keys)):  # a baseline sees no masks: refused
                probes.append(SinkMask(rule, variable=f"sink_{index}"))
        plan = Plan(new_tokens=6, suppress_eos="logits")
        found[name] = denoise(dlm, PROMPTS, plan, probes=probes, progress=False).record
    return found


def only(record: xr.Dataset, which: str) -> xr.Dataset:
    """The record that a run with `ReceivedAttention(queries=which)` makes."""
    received = record["received"].sel(queries=which, drop=True).assign_attrs(queries=which)
    return record.drop_vars("queries").assign(received=received)


def same(one: Any, other: Any) -> None:
    if isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, xr.DataArray | xr.Dataset):
        xr.testing.assert_identical(one, other)
    else:
        assert one.equals(other)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("queries", ["last", "auto"])
def test_a_rule_that_can_never_fire_is_refused(measured: dict[str, xr.Dataset], name: str, queries: Any) -> None:
    """One query gives a key at most 1: epsilon = 3 would find no sink in any model, and look like a finding."""
    rule, record = SinkRule(queries=queries), measured[name]
    if queries == "auto" and name == "tiny-dlm":
        assert rates.sinks(record, rule).equals(rates.sinks(record))  # there it is all queries
        return
    for refuse in (rates.sinks, rates.per_layer, dynamics.main_sink, dynamics.classify):
        with pytest.raises(ValueError, match=r"at most 1, so epsilon=3 can never fire"):
            refuse(record, rule)
    with pytest.raises(ValueError, match=r"can never fire"):
        denoise(HookedDLM.from_pretrained(name), PROMPTS, probes=[SinkMask(rule)], progress=False)
    assert rates.sinks(record, SinkRule(0.99, queries=queries)).dims


def test_a_rule_relative_to_the_length_can_fire_by_one_query(measured: dict[str, xr.Dataset]) -> None:
    act = replace(RULES["act"], queries="last")
    assert rates.sinks(measured["tiny-arm"], act).any()


def test_all_functions_are_looked_at() -> None:
    """A new analysis belongs into one of the tables above."""
    by_hand = {
        "described",
        "happened",
        "classes",
        "key_types",
        "places",
        "predictors",
        "beside",
        "group_size",
        *BY_RULE,
        *BY_QUERIES,
    }
    for module in (rates, dynamics, norms, overlap):
        public = {
            name
            for name, each in vars(module).items()
            if inspect.isfunction(each) and each.__module__ == module.__name__ and not name.startswith("_")
        }
        assert public <= by_hand, module


@pytest.mark.parametrize("name", BY_RULE)
def test_a_record_of_some_queries_never_passes_as_one_of_all(measured: Any, name: str) -> None:
    for queries, other in (("masked", "all"), ("masked", "committed"), ("all", "masked"), ("last", "all")):
        record = only(measured["tiny-dlm"], queries)
        with pytest.raises(RecordError, match=f"from {other} queries was not measured, only from {queries}") as error:
            BY_RULE[name](record, SinkRule(0.4, queries=other))  # type: ignore[arg-type]
        assert f"SinkRule(queries={queries!r})" in str(error.value)
        assert f"ReceivedAttention(queries={other!r})" in str(error.value)


@pytest.mark.parametrize("name", BY_QUERIES)
def test_functions_of_queries_refuse_others_too(measured: Any, name: str) -> None:
    if name != "null":  # needs no attention but where it was measured
        with pytest.raises(RecordError, match="from all queries was not measured, only from masked"):
            BY_QUERIES[name](only(measured["tiny-dlm"], "masked"), "all")
    for queries in SETS:
        record = measured["tiny-dlm"]
        same(BY_QUERIES[name](record, queries), BY_QUERIES[name](only(record, queries), queries))


@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("rule", RULES_TO_TRY, ids=repr)
@pytest.mark.parametrize("name", BY_RULE)
def test_every_rule_works_in_every_function(measured: Any, name: str, rule: SinkRule, twin: str) -> None:
    """Also where the record holds these queries only; what is found is the same."""
    record = measured[twin]
    which = attention.counting(record, rule.queries)
    assert which == (rule.queries if rule.queries != "auto" else "last" if twin == "tiny-arm" else "all")
    if name == "filtered_share" and rule.epsilon is None:
        rule = replace(rule, epsilon=1.0)
    same(BY_RULE[name](record, rule), BY_RULE[name](only(record, which), rule))


@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("index", range(len(RULES_TO_TRY)))
def test_a_record_gives_the_sinks_that_the_probe_saw(measured: Any, twin: str, index: int) -> None:
    record = measured[twin]
    if twin == "tiny-arm" and "masked" in (RULES_TO_TRY[index].queries, RULES_TO_TRY[index].keys):
        assert f"sink_{index}" not in record
        return
    online = record[f"sink_{index}"]
    np.testing.assert_array_equal(rates.sinks(record, RULES_TO_TRY[index]).where(online.notnull()) == 1, online == 1)


def test_all_queries_are_asked_for_by_default(measured: Any) -> None:
    for function in (rates.sinks, rates.per_layer, dynamics.drift, dynamics.concentration, norms.key_norm_correlation):
        with pytest.raises(RecordError, match="from all queries was not measured"):
            function(only(measured["tiny-dlm"], "masked"))


def test_a_selected_set_of_queries_is_known_by_its_label(measured: Any) -> None:
    record = measured["tiny-dlm"].sel(queries="masked")
    same(rates.sinks(record, SinkRule(queries="masked")), rates.sinks(measured["tiny-dlm"], SinkRule(queries="masked")))
    with pytest.raises(RecordError, match="only from masked"):
        rates.sinks(record)


# What the record does not say is not guessed.


def test_what_the_record_does_not_say_is_an_error(measured: Any) -> None:
    record = only(measured["tiny-dlm"], "all")
    silent = record.copy()
    silent["received"] = silent["received"].assign_attrs(queries=None)
    with pytest.raises(RecordError, match="does not say whose attention was received"):
        rates.sinks(silent)
    for attrs in ({}, {"provenance": "{}"}, {"provenance": json.dumps({"causal": "yes"})}):
        unknown = record.copy()
        unknown.attrs = attrs
        with pytest.raises(RecordError, match="does not say whether its model is causal"):
            rates.sinks(unknown)
    for name in ("masked", "given"):
        with pytest.raises(RecordError, match=f"has no '{name}'"):
            rates.sinks(record.drop_vars(name), SinkRule(keys="prompt"))
    with pytest.raises(RecordError, match=r"no dim 'prompt'; choose a prompt with isel\(prompt=\[0\]\)"):
        rates.sinks(record.isel(prompt=0))
    with pytest.raises(ValueError, match="which='given' is unknown"):
        attention.positions(record, "given")  # type: ignore[arg-type]


# Who could see whom, and the null.


@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
def test_the_sight_and_the_null_equal_loops(measured: Any, twin: str) -> None:
    record = measured[twin]
    causal = json.loads(record.attrs["provenance"])["causal"]
    sight = attention.sight(record)
    prompts, steps, keys = (record.sizes[dim] for dim in ("prompt", "step", "key"))
    for which in SETS:
        counts = attention.positions(record, which).to_numpy()
        null = attention.null(record, which)
        assert dict(null["received"].sizes) == {"prompt": prompts, "step": steps, "layer": 1, "head": 1, "key": keys}
        for row, (prompt, step) in enumerate(np.ndindex(prompts, steps)):
            real = [j for j in range(keys) if record["masked"].values[prompt, step, j] >= 0]
            for j in range(keys):
                value = float(null["received"][prompt, step, 0, 0, j])
                assert bool(sight.valid[row, j]) == (j in real)
                if j not in real:
                    assert np.isnan(value)
                    continue
                able = [i for i in real if counts[prompt, step, i] and (i >= j or not causal)]
                expected = sum(1 / len([k for k in real if k <= i or not causal]) for i in able)
                assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("twin", ["tiny-dlm", "tiny-arm"])
def test_the_null_of_every_layer_is_what_the_rule_counts_on_it(measured: Any, twin: str, name: str) -> None:
    record, rule = measured[twin], RULES[name]
    even = rates.sinks(attention.null(record, "all"), rule).sum("key").where(attention.existing(record).any("key"))
    assert rates.per_layer(record, rule)["null"].tolist() == pytest.approx([float(even.mean())] * 2)


def test_a_bidirectional_null_has_no_sinks_and_a_causal_one_its_first_key() -> None:
    even, causal = planted("none", keys=64).record, planted("none", keys=64, causal=True).record
    assert not rates.sinks(attention.null(even)).any()
    assert rates.sinks(attention.null(causal)).sum("key").to_numpy().tolist() == [[[[1]]] * 16]
    np.testing.assert_allclose(attention.null(even)["received"], 1)


# Heads, layers and steps that a probe left out are no heads without sinks.


def test_what_was_not_measured_does_not_count(measured: Any) -> None:
    """As merging a probe of head 1 and layer 1 with one of all heads leaves it."""
    whole = measured["tiny-dlm"]
    part = whole.sel(head=[1], layer=[1])
    padded = part.reindex(head=whole["head"], layer=whole["layer"], fill_value=np.nan)
    for name in ("masked", "given", "text", "token"):
        padded[name] = whole[name]
    rule = SinkRule(0.3, per="mean")
    for function in (rates.per_layer, rates.movement, dynamics.sink_rate, dynamics.jumps, norms.kind):
        same(function(padded, rule), function(part, rule))
    flags = rates.sinks(padded, rule)
    assert flags.dtype == bool
    assert flags.sizes["head"] == 4
    assert not flags.sel(head=0).any()
    np.testing.assert_array_equal(flags.sel(head=[1], layer=[1]), rates.sinks(part, rule))


def test_norms_belong_to_the_heads_that_were_measured(tiny_model: Any) -> None:
    """Query heads 2 and 3 alone: the second of two key heads is theirs."""
    dlm, plan = tiny_model("LLaDA", heads=4, kv_heads=2), Plan(new_tokens=5)
    few, every = (
        denoise(dlm, [[5, 17, 9]], plan, probes=[ReceivedAttention(where), KeyNorm()], progress=False).record
        for where in (Scope(heads=[2, 3]), Scope())
    )
    values, lengths = norms.beside(few, "key_norm", "all")
    assert values["head"].to_numpy().tolist() == [2, 3]
    for head in (0, 1):
        np.testing.assert_array_equal(lengths.isel(head=head), every["key_norm"].isel(kv_head=1))
    values, lengths = norms.beside(every, "key_norm", "all")
    for head in range(4):
        np.testing.assert_array_equal(lengths.isel(head=head), every["key_norm"].isel(kv_head=head // 2))
