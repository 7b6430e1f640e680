"""SinkMask, MaskedVsCommitted, QKDecomposition, MassOn by token class and nan patterns, against naive loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from sinklens import HookedDLM, Plan, SinkRule, denoise
from sinklens.analysis import attention, norms
from sinklens.analysis import rates as metrics
from sinklens.errors import NotFinite, RecordError, ScopeError
from sinklens.ground_truth.records import planted
from sinklens.hooks import Canvas, Edit, Memory, Probe, Scope, with_hooks
from sinklens.probes import (
    AttentionEntropy,
    Contribution,
    KeyNorm,
    MaskedVsCommitted,
    MassOn,
    Pattern,
    QKCosine,
    QKDecomposition,
    QueryNorm,
    ReceivedAttention,
    SinkMask,
    estimate,
)
from sinklens.sinks import Positions

MASK = 62
PROMPTS = ["dolko xe, dolko xo. talma wi", "gake xe", "boma?"]
SETS: tuple[Positions, ...] = get_args(Positions)
BASE: list[Mapping[str, Any]] = [
    {"epsilon": 0.7313},
    {"epsilon": 0.7313, "per": "mean"},
    {"epsilon": 0.1231, "units": "share"},
    {"epsilon": 0.1231, "units": "share", "per": "mean", "top_k": 2},
    {"epsilon": 1.5317, "units": "zscore"},
    {"epsilon": 5.1391, "units": "percent"},
    {"epsilon": None, "top_k": 2},
]
# All of (rule, queries), each with all keys, masked keys and one set in turn.
RULES = [
    SinkRule(**base, queries=queries, keys=keys)
    for (i, base), (j, queries) in product(enumerate(BASE), enumerate(SETS))
    for keys in dict.fromkeys(("all", "masked", SETS[(i + j) % len(SETS)]))
]


def held(canvas: Any, row: int, step: int) -> dict[str, list[int]]:
    """The positions of each set, from a record's own variables, by lists."""
    masked, given = canvas["masked"].to_numpy()[row, step], canvas["given"].to_numpy()[row]
    real = [j for j in range(len(masked)) if masked[j] >= 0]
    length = json.loads(canvas.attrs["provenance"])["plan"]["block_length"]
    begin, block = max((j for j in real if given[j] == 1), default=-1) + 1, []
    if length is not None:
        first = min(j for j in real if masked[j] == 1)
        block = [j for j in real if j >= begin and (j - begin) // length == (first - begin) // length]
    return {
        "all": real,
        "masked": [j for j in real if masked[j] == 1],
        "committed": [j for j in real if masked[j] == 0],
        "prompt": [j for j in real if given[j] == 1],
        "response": [j for j in real if given[j] != 1],
        "last": real[-1:],
        "block": block or [j for j in real if given[j] != 1],
    }


def naive_rule(
    received: np.ndarray, seen_by: np.ndarray, queries: int, keys: list[int], rule: SinkRule
) -> set[int] | None:
    """The sinks among `keys` by the definitions in SinkRule's docstring; None where a tie leaves them open."""
    if not queries:
        return None if rule.epsilon is None else set()
    passing = []
    for j in keys:
        others = [received[i] for i in keys if i != j]
        excess = received[j] - (np.mean(others) if others else 0)
        met = rule.epsilon is None or (
            (rule.units == "sum" and excess > rule.epsilon)
            or (rule.units == "percent" and 100 * excess / queries > rule.epsilon)
            or (rule.units == "share" and seen_by[j] and received[j] / seen_by[j] > rule.epsilon)
            or (rule.units == "zscore" and received[j] > received[keys].mean() + rule.epsilon * received[keys].std())
        )
        if met:
            passing.append(j)
    if rule.epsilon is None and any(received[j] == 0 for j in passing):
        return None
    if rule.top_k is None or len(passing) <= rule.top_k:
        return set(passing)
    ordered = sorted(passing, key=lambda j: -received[j])
    if received[ordered[rule.top_k - 1]] - received[ordered[rule.top_k]] < 1e-6:
        return None
    return set(ordered[: rule.top_k])


def naive_sinks(pattern: np.ndarray, sets: dict[str, list[int]], rule: SinkRule, causal: bool) -> list[set[int] | None]:
    """The sinks of each head of one layer at one step; `pattern` is [head, query, key]."""
    queries, keys = sets[rule.queries], sets[rule.keys]
    received = np.array([[sum(head[i, j] for i in queries) for j in range(head.shape[1])] for head in pattern])
    if rule.per == "mean":
        received = np.broadcast_to(received.mean(0), received.shape)
    seen_by = np.array([sum(i >= j or not causal for i in queries) for j in range(pattern.shape[-1])])
    return [naive_rule(row, seen_by, len(queries), keys, rule) for row in received]


@pytest.fixture(scope="module")
def twins() -> dict[str, HookedDLM]:
    """Both bundled twins."""
    return {name: HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


@pytest.fixture(scope="module")
def watched(twins: dict[str, HookedDLM]) -> dict[str, xr.Dataset]:
    """A run per twin: prompts of three lengths, the pattern, every query set, and one SinkMask per rule."""
    out = {}
    for name, dlm in twins.items():
        masks = [
            SinkMask(rule, variable=f"sink_{index}")
            for index, rule in enumerate(RULES)
            if not (dlm.is_causal and "masked" in (rule.queries, rule.keys))  # which has none
        ]
        probes = [Pattern(), ReceivedAttention(queries=SETS), *masks]
        plan = Plan(new_tokens=5, suppress_eos="logits")
        out[name] = denoise(dlm, PROMPTS[:2], plan, probes=probes, progress=False).record
    return out


# SinkMask.


BY_QUERIES = [
    pytest.param(
        name,
        queries,
        base,
    )
    for name, queries, base in product(["tiny-dlm", "tiny-arm"], SETS, range(len(BASE)))
]


# Torch's once-per-process warning has its own test below; here the numbers count.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("name", "queries", "base"), BY_QUERIES)
def test_sinks_from_a_record_are_the_sinks_online(watched: Any, name: str, queries: Positions, base: int) -> None:
    record = watched[name]
    received = record["received"].sel(queries=queries).to_numpy()
    compared = 0
    for index, rule in enumerate(RULES):
        if rule != SinkRule(**BASE[base], queries=queries, keys=rule.keys) or f"sink_{index}" not in record:
            continue
        keys, online = rule.keys, record[f"sink_{index}"].to_numpy()
        offline = metrics.sinks(record, rule).to_numpy()
        np.testing.assert_array_equal(np.isnan(online), np.isnan(received))
        # A ranking is open where fewer keys than it wants receive anything.
        eligible = attention.positions(record, keys).to_numpy()[:, :, None, None] & ~np.isnan(received)
        there = (eligible & (np.nan_to_num(received) > 0)).sum(-1)
        clear = np.ones_like(there, bool) if rule.epsilon is not None else there >= min(rule.top_k or 0, 2)
        assert np.array_equal((online == 1)[clear], offline[clear]), rule
        compared += int(clear.sum())
    assert compared or (name, queries) == ("tiny-arm", "masked")


def test_a_record_view_makes_no_warning(watched: Any) -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        metrics.sinks(watched["tiny-dlm"], SinkRule(keys="masked"))
    finally:
        torch.set_warn_always(before)


@pytest.mark.parametrize("base", BASE, ids=str)
def test_without_queries_there_are_no_sinks(watched: Any, base: Any) -> None:
    """A baseline has no masked queries: nobody attends to any key."""
    assert not metrics.sinks(watched["tiny-arm"], SinkRule(**base, queries="masked")).any()


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_sink_masks_equal_a_naive_loop(watched: Any, name: str) -> None:
    record = watched[name]
    pattern = record["pattern"].to_numpy().astype(np.float64)
    found, open_ = 0, 0
    for index, rule in enumerate(RULES):
        if f"sink_{index}" not in record:
            continue
        values = record[f"sink_{index}"].to_numpy()
        for row, step in list(np.ndindex(*values.shape[:2]))[index % 3 :: 3]:  # every rule at a third of the steps
            sets = held(record, row, step)
            missing = [j for j in range(values.shape[-1]) if j not in sets["all"]]
            assert np.isnan(values[row, step][..., missing]).all()
            assert np.isfinite(values[row, step][..., sets["all"]]).all()
            for layer in range(2):
                expected = naive_sinks(pattern[row, step, layer], sets, rule, causal=name == "tiny-arm")
                for head, sinks in enumerate(expected):
                    if sinks is None:
                        open_ += 1
                        continue
                    ours = set(np.flatnonzero(values[row, step, layer, head] == 1).tolist())
                    assert ours == sinks, (rule, row, step, layer, head)
                    found += len(sinks)
    assert found > 1_000
    assert open_ < 0.1 * found


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("which", SETS)
def test_key_sets_of_a_record_are_the_canvas_sets(watched: Any, name: str, which: Positions) -> None:
    record = watched[name]
    ours = attention.positions(record, which).transpose("prompt", "step", "key").to_numpy()
    for row, step in np.ndindex(*ours.shape[:2]):
        assert np.flatnonzero(ours[row, step]).tolist() == held(record, row, step)[which]


def test_a_sink_mask_is_a_probe_with_a_readable_name(twins: dict[str, HookedDLM]) -> None:
    assert repr(SinkMask()) == "SinkMask()"
    assert repr(SinkMask(where=Scope(layers=1))) == "SinkMask(where=Scope(layers=1))"
    assert "SinkRule(epsilon=2.0" in repr(SinkMask(SinkRule(2.0)))
    probe = SinkMask(SinkRule(2.0, queries="masked"), Scope(layers=[1], steps=[1, 2]))
    run = denoise(twins["tiny-dlm"], PROMPTS[0], Plan(new_tokens=4), probes=[probe], progress=False)
    assert run.record["sink"].dims == ("prompt", "step", "layer", "head", "key")
    assert run.record["sink"].attrs["units"] == "1/0"
    assert run.record["sink"].attrs["definition"].endswith("by masked queries")
    assert run.record["sink"]["layer"].to_numpy().tolist() == [1]
    assert np.isnan(run.record["sink"].isel(step=[0, 3])).all()
    assert np.isfinite(run.record["sink"].isel(step=[1, 2])).all()


# MaskedVsCommitted.

OVERLAPS = [
    SinkRule(0.4),
    SinkRule(0.4, per="mean"),
    SinkRule(0.13, "share"),
    SinkRule(1.2, "zscore"),
    SinkRule(4.1, "percent", keys="committed"),
    SinkRule(None, top_k=2),
]


def naive_overlap(pattern: np.ndarray, sets: dict[str, list[int]], rule: SinkRule) -> list[float]:
    """Jaccard overlap per head, each query set's column sums scaled to average 1; `pattern` is [head, query, key]."""
    if not sets["masked"] or not sets["committed"]:
        return [math.nan] * len(pattern)
    size, found = len(sets["all"]), []
    for which in ("masked", "committed"):
        received = pattern[:, sets[which]].sum(1) * size / len(sets[which])
        if rule.per == "mean":
            received = np.broadcast_to(received.mean(0), received.shape)
        seen_by = np.full(pattern.shape[-1], size)
        found.append([naive_rule(row, seen_by, size, sets[rule.keys], rule) for row in received])
    return [len(a & b) / len(a | b) if a | b else math.nan for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize("rule", OVERLAPS, ids=repr)
def test_masked_vs_committed_equals_a_naive_loop(twins: Any, rule: SinkRule) -> None:
    probes = [Pattern(), MaskedVsCommitted(rule)]
    record = denoise(twins["tiny-dlm"], PROMPTS, Plan(new_tokens=6), probes=probes, progress=False).record
    values, pattern = record["masked_vs_committed"], record["pattern"].to_numpy().astype(np.float64)
    assert values.dims == ("prompt", "step", "layer", "head")
    for row, step, layer in np.ndindex(*values.shape[:3]):
        expected = naive_overlap(pattern[row, step, layer], held(record, row, step), rule)
        np.testing.assert_allclose(values[row, step, layer], expected, atol=1e-6)
    assert len(np.unique(values.to_numpy()[values.notnull()])) > 2


def fed(probe: Any, dlm: HookedDLM, pattern: Tensor, masked: Tensor) -> Tensor:
    """What a pattern probe makes of this pattern [head, query, key] in layer 0."""
    canvas = replace(Canvas.plain(torch.ones_like(masked)[None]), masked=masked[None], prompt=~masked[None])
    seen: dict[Any, Any] = {}
    hooks = dict(probe.hooks(dlm, canvas, seen))
    hooks["blocks.0.attn.hook_pattern"](pattern[None].clone(), hook=None)
    return probe.values(seen)


@pytest.mark.parametrize(("kind", "answer"), [("split", 0.0), ("static", 1.0), ("none", math.nan)])
def test_planted_overlaps(twins: Any, kind: Any, answer: float) -> None:
    made = planted(kind, seed=3)
    masked = torch.from_numpy(made.record["masked"].to_numpy()[0] == 1)
    for step in range(16):
        overlap = fed(MaskedVsCommitted(where=Scope(layers=0)), twins["tiny-dlm"], made.patterns[step, 0], masked[step])
        np.testing.assert_array_equal(overlap, np.full((1, 1, 2), answer, np.float32))


def test_planted_split_sinks_are_told_apart_by_the_rules_queries(twins: Any) -> None:
    made = planted("split", seed=5)
    masked = torch.from_numpy(made.record["masked"].to_numpy()[0] == 1)
    for which, other in (("masked", "committed"), ("committed", "masked")):
        rule = SinkRule(epsilon=3.0, queries=which)
        assert metrics.sinks(made.record, rule).any(("prompt", "step", "layer", "head")).to_numpy().nonzero()[0] == [
            made.truth[f"{which}_sink"]
        ]
        for step in (0, 7, 15):
            flags = fed(SinkMask(rule, Scope(layers=0)), twins["tiny-dlm"], made.patterns[step, 0], masked[step])
            assert flags[0, 0, 0].nonzero()[:, 0].tolist() == [made.truth[f"{which}_sink"]]
            spared = replace(rule, keys=other)  # only keys of the other kind may be sinks
            flags = fed(SinkMask(spared, Scope(layers=0)), twins["tiny-dlm"], made.patterns[step, 0], masked[step])
            at = made.truth[f"{which}_sink"]
            assert bool(flags[0, 0, 0, at]) == (bool(masked[step][at]) == (other == "masked"))


def test_an_empty_set_has_no_overlap(twins: Any) -> None:
    pattern = planted("static").patterns[0, 0]
    for masked in (torch.zeros(32, dtype=torch.bool), torch.ones(32, dtype=torch.bool)):
        assert fed(MaskedVsCommitted(where=Scope(layers=0)), twins["tiny-dlm"], pattern, masked).isnan().all()


# QKDecomposition.


def ids(batch: int, positions: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 60, (batch, positions), generator=torch.Generator().manual_seed(seed))


def canvas_of(batch: int, positions: int, left: int = 0) -> Canvas:
    """Three given positions, the rest masked; the last row has `left` positions of padding."""
    tokens = ids(batch, positions)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[-1, :left] = False
    prompt = (torch.arange(positions) < 3 + left).expand_as(valid) & valid
    masked = valid & ~prompt
    return Canvas(tokens.masked_fill(masked, MASK), valid, masked, prompt, seeds=(0,) * batch)


@torch.no_grad()
def measured(dlm: HookedDLM, probes: list[Any], canvas: Canvas) -> list[Tensor]:
    """What several probes see of one forward."""
    seen: list[dict[Any, Any]] = [{} for _ in probes]
    parts = [(repr(probe), probe.hooks(dlm, canvas, own)) for probe, own in zip(probes, seen, strict=True)]
    with_hooks(dlm, parts, {}, lambda: dlm(canvas.tokens, attention_mask=canvas.valid))
    return [probe.values(own) for probe, own in zip(probes, seen, strict=True)]


@pytest.mark.parametrize("family", ["LLaDA", "A2D-Qwen3", "Llama", "GPT-2", "DiffuGPT"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_decomposition_is_its_two_probes(tiny_model: Any, family: str, kv_heads: int) -> None:
    dlm, canvas = tiny_model(family, heads=4, kv_heads=kv_heads), canvas_of(2, 7, left=2)
    kv_heads = kv_heads if dlm.family.layout != "GPT2" else 4  # which has no grouped queries
    for where, queries in ((Scope(), "all"), (Scope(layers=[-1]), "masked"), (Scope(), "last")):
        parts: list[Any] = [QKDecomposition(where, queries), QKCosine(where, queries), KeyNorm(where)]
        qk, cosine, key = measured(dlm, parts, canvas)
        layers = [1] if where.layers else [0, 1]
        assert qk.shape == (2, len(layers), 4, 2, 7)
        assert key.shape == (2, len(layers), kv_heads, 7)
        lengths = torch.stack([key[:, :, head // (4 // kv_heads)] for head in range(4)], 2)
        for part, expected in enumerate((cosine, lengths)):
            torch.testing.assert_close(qk[:, :, :, part], expected, equal_nan=True, rtol=0, atol=0)
    assert parts[0].coords({"values": {1: qk[:, 0]}, "heads": [0, 3]}) == {
        "layer": [1],
        "head": [0, 3],
        "part": ["cosine", "key_norm"],
    }


def test_the_decomposition_gives_the_scores(tiny_model: Any) -> None:
    """For one query: score = |q| |k| cos / sqrt(d), from the hook before the softmax, in a grouped-query model."""
    dlm, canvas = tiny_model("LLaDA", heads=4, kv_heads=2), canvas_of(1, 7)
    qk, query = measured(dlm, [QKDecomposition(queries="last"), QueryNorm(queries="last")], canvas)
    with torch.no_grad():
        _, cache = dlm.run_with_cache(canvas.tokens)
    (cosine, key), query = qk[0].unbind(2), query[0]
    for layer, head, j in product(range(2), range(4), range(7)):
        product_ = float(cosine[layer, head, j] * key[layer, head, j] * query[layer, head, -1]) / math.sqrt(8)
        score = float(cache[f"blocks.{layer}.attn.hook_attn_scores"][0, head, -1, j])
        assert product_ == pytest.approx(score, rel=1e-3, abs=1e-4)


def test_new_probes_are_estimated_as_recorded(tiny_model: Any) -> None:
    dlm, plan = tiny_model("LLaDA"), Plan(new_tokens=4)
    probes: list[Any] = [SinkMask(), MaskedVsCommitted()]
    guess = estimate(dlm, plan, probes, prompts=2, prompt_tokens=5)
    prompts = [ids(1, 5)[0].tolist(), ids(1, 3)[0].tolist()]
    run = denoise(dlm, prompts, plan, probes=probes, progress=False)
    assert dict(guess.by_probe) == {probe.name: run.record[probe.name].nbytes for probe in probes}


def test_the_decomposition_is_estimated_as_recorded(tiny_model: Any) -> None:
    dlm, plan, probe = tiny_model("LLaDA"), Plan(new_tokens=4), QKDecomposition()
    guess = estimate(dlm, plan, [probe], prompt_tokens=5)
    run = denoise(dlm, ids(1, 5)[0].tolist(), plan, probes=[probe], progress=False)
    assert guess.by_probe["qk"] == run.record["qk"].nbytes


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("rule", [SinkRule(0.7), SinkRule(0.7, queries="prompt", keys="prompt"), SinkRule(50.0)])
def test_factors_at_sinks_equal_a_naive_mean(twins: Any, name: str, rule: SinkRule) -> None:
    probes = [ReceivedAttention(queries=("all", "prompt")), QKDecomposition()]
    plan = Plan(new_tokens=4, suppress_eos="logits")
    record = denoise(twins[name], PROMPTS, plan, probes=probes, progress=False).record
    received = record["received"].sel(queries=rule.queries).to_numpy().astype(np.float64)
    qk = record["qk"].transpose("prompt", "step", "layer", "head", "part", "key").to_numpy()
    table = norms.qk_at_sinks(record, rule).set_index(["layer", "part"])
    assert list(table.index) == list(product(range(2), ("cosine", "key_norm")))
    for layer, (index, part) in product(range(2), enumerate(("cosine", "key_norm"))):
        groups: dict[bool, list[float]] = {True: [], False: []}
        for row, step, head in product(*map(range, (3, 4, 4))):
            sets = held(record, row, step)
            values = received[row, step, layer, head]
            sinks = naive_rule(values, np.ones(len(values)), 1, sets[rule.keys], rule)
            assert sinks is not None
            for j in sets["all"]:
                value = qk[row, step, layer, head, index, j]
                if not np.isnan(value):
                    groups[j in sinks].append(value)
        for column, flag in (("at_sinks", True), ("elsewhere", False)):
            expected = np.mean(groups[flag]) if groups[flag] else math.nan
            assert table.loc[(layer, part), column] == pytest.approx(expected, rel=1e-4, nan_ok=True)
        assert bool(groups[True]) == (rule.epsilon != 50.0)


def test_factors_need_their_probe(twins: Any) -> None:
    record = denoise(twins["tiny-dlm"], "boma", Plan(new_tokens=2), probes=[ReceivedAttention()], progress=False).record
    with pytest.raises(RecordError, match=r"QKDecomposition\(\)"):
        norms.qk_at_sinks(record)


def test_keys_whose_attention_was_not_measured_are_not_elsewhere(twins: Any) -> None:
    """At steps without received attention nobody knows which keys are sinks."""
    rule, where = SinkRule(0.7), Scope(steps=[0])
    plan = Plan(new_tokens=4)
    probes = [ReceivedAttention(where), QKDecomposition()]
    partly = denoise(twins["tiny-dlm"], PROMPTS, plan, probes=probes, progress=False).record
    only = denoise(
        twins["tiny-dlm"], PROMPTS, plan, probes=[ReceivedAttention(where), QKDecomposition(where)], progress=False
    ).record
    first, second = norms.qk_at_sinks(only, rule), norms.qk_at_sinks(partly, rule)
    np.testing.assert_allclose(second[["at_sinks", "elsewhere"]], first[["at_sinks", "elsewhere"]], rtol=1e-6)


# Mass on token classes. The twins' vocabulary, read by eye.

OF_CLASS = {"bos": [0], "eos": [1], "mask": [2], "white space": [3], "punctuation": [4, 5, 6], "word": range(7, 67)}


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("queries", ["all", "committed", "last"])
def test_mass_on_a_class_is_a_naive_sum_over_the_canvas(twins: Any, name: str, queries: Positions) -> None:
    probes: list[Any] = [Pattern(), *(MassOn(kind, queries=queries) for kind in OF_CLASS)]
    record = denoise(twins[name], PROMPTS, Plan(new_tokens=6), probes=probes, progress=False).record
    pattern, canvas = record["pattern"].to_numpy().astype(np.float64), record["canvas"].to_numpy()
    total = np.zeros(pattern.shape[:4])
    for kind, tokens in OF_CLASS.items():
        suffix = "" if queries == "all" else f"_from_{queries}"
        values = record[f"mass_on_{kind.replace(' ', '_')}{suffix}"].to_numpy()
        hits = 0
        for row, step in np.ndindex(*values.shape[:2]):
            sets = held(record, row, step)
            keys = [j for j in sets["all"] if canvas[row, step, j] in tokens]
            hits += len(keys)
            for layer, head in product(range(2), range(4)):
                cells = [pattern[row, step, layer, head, i, j] for i in sets[queries] for j in keys]
                expected = sum(cells) / len(sets[queries]) if sets[queries] else math.nan
                assert values[row, step, layer, head] == pytest.approx(expected, abs=1e-5, nan_ok=True), kind
        total += values
        assert (
            hits
            or (name, kind) in [("tiny-arm", "mask"), ("tiny-dlm", "eos"), ("tiny-arm", "eos")]
            or (kind == "white space")
        ), kind
    np.testing.assert_allclose(total[~np.isnan(total)], 1, atol=1e-5)


def test_mass_on_masks_falls_to_zero_as_tokens_are_committed(twins: Any) -> None:
    probes = [MassOn("mask"), MassOn("masked")]
    record = denoise(twins["tiny-dlm"], PROMPTS, Plan(new_tokens=6), probes=probes, progress=False).record
    np.testing.assert_allclose(record["mass_on_mask"], record["mass_on_masked"], atol=1e-6)
    assert float(record["mass_on_mask"].isel(step=0).mean()) > float(record["mass_on_mask"].isel(step=-1).mean()) > 0


def test_a_class_probe_serves_one_model_after_another(twins: Any, tiny_model: Any) -> None:
    """The mask token has another id in another model."""
    probe, other = MassOn("mask"), tiny_model("LLaDA")
    plan = Plan(new_tokens=2)
    first = denoise(twins["tiny-dlm"], PROMPTS[0], plan, probes=[probe], progress=False).record
    second = denoise(other, [4, 2, 6], plan, probes=[probe, MassOn("masked")], progress=False).record
    np.testing.assert_allclose(second["mass_on_mask"], second["mass_on_masked"], atol=1e-6)
    again = denoise(twins["tiny-dlm"], PROMPTS[0], plan, probes=[probe], progress=False).record
    np.testing.assert_array_equal(first["mass_on_mask"], again["mass_on_mask"])


def test_class_names_and_errors() -> None:
    probe = MassOn("white space")
    assert probe.name == "mass_on_white_space"
    assert repr(probe) == "MassOn(what='white space')"
    assert "white space tokens" in probe.definition
    with pytest.raises(
        ScopeError, match=r"what='comma' is unknown.*'eos', 'mask', 'white space', 'punctuation', 'digit'"
    ):
        MassOn("comma")


@pytest.fixture(scope="module")
def wordless(tiny_model: Any) -> HookedDLM:
    """A model without a tokenizer, made before any test forbids forwards."""
    return tiny_model("LLaDA")


@pytest.mark.usefixtures("wordless", "no_forward")
def test_a_model_without_tokenizer_has_only_the_class_mask(wordless: HookedDLM) -> None:
    dlm = wordless
    with pytest.raises(ValueError, match=r"'punctuation' needs a tokenizer.*give token ids"):
        denoise(dlm, [5, 6], Plan(new_tokens=2), probes=[MassOn("punctuation")], progress=False)
    assert MassOn("mask").fwd_hooks(dlm, canvas_of(1, 5))


def test_a_class_without_tokens_is_refused(twins: Any) -> None:
    with pytest.raises(ValueError, match="of class 'digit'"):
        denoise(twins["tiny-dlm"], "boma", Plan(new_tokens=2), probes=[MassOn("digit")], progress=False)


# A nan in a pattern.

READERS: dict[str, Callable[[], Probe]] = {
    "ReceivedAttention": ReceivedAttention,
    "ReceivedAttention sets": lambda: ReceivedAttention(queries=("masked", "committed")),
    "SinkMask": SinkMask,
    "SinkMask top": lambda: SinkMask(SinkRule(None, top_k=1)),
    "AttentionEntropy": AttentionEntropy,
    "AttentionEntropy masked": lambda: AttentionEntropy(queries="masked"),
    "MassOn": lambda: MassOn("masked"),
    "MassOn class": lambda: MassOn("punctuation"),
    "Contribution": Contribution,
    "Pattern": Pattern,
    "MaskedVsCommitted": lambda: MaskedVsCommitted(SinkRule(None, top_k=1)),
}


@dataclass(frozen=True, repr=False)
class Breaks(Edit):
    """An edit that writes one nan: at one layer and step, for one row, head and query."""

    layer: int = 0
    where: Scope = Scope()

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Any]:
        def act(pattern: Tensor, *, hook: Any) -> Tensor:
            pattern = pattern.clone()
            pattern[1, 2, -1, -1] = float("nan")
            return pattern

        return [(f"blocks.{self.layer}.attn.hook_pattern", act)]


def breaks(layer: int, step: int) -> Breaks:
    return Breaks(layer, Scope(layers=[layer], steps=[step]))


@pytest.mark.parametrize("make", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize(("layer", "step"), [(0, 2), (1, 3)])
def test_a_nan_stops_the_run_and_keeps_the_steps_before(
    twins: Any, make: Callable[[], Probe], layer: int, step: int
) -> None:
    dlm, plan, prompts = twins["tiny-dlm"], Plan(new_tokens=6), PROMPTS[:2]
    whole, probe = denoise(dlm, prompts, plan, probes=[KeyNorm(), make()], progress=False), make()
    with pytest.raises(NotFinite, match=rf"step {step}: .*since layer {layer}") as caught:
        denoise(dlm, prompts, plan, probes=[KeyNorm(), probe], interventions=[breaks(layer, step)], progress=False)
    part = caught.value.run  # type: ignore[attr-defined]
    assert not part.finished
    assert part.record.sizes["step"] == step
    assert any("attribute `run`" in note for note in caught.value.__notes__)
    for name in ("canvas", "masked", "key_norm", probe.name):
        np.testing.assert_array_equal(part.record[name], whole.record[name].isel(step=slice(0, step)))
    early = whole.commit_step < step
    assert torch.equal(part.commit_step, torch.where(early, whole.commit_step, -1))
    left = whole.filled & ~early
    assert torch.equal(part.tokens, torch.where(left, dlm.ids.mask, whole.tokens))
    assert torch.equal(part.predicted, torch.where(early, whole.predicted, -1))
    assert not dlm.hooked


OF_BASELINES = {
    name: make for name, make in READERS.items() if name not in ("AttentionEntropy masked", "MaskedVsCommitted")
}


@pytest.mark.parametrize("make", OF_BASELINES.values(), ids=OF_BASELINES.keys())
def test_a_nan_in_a_baselines_pattern_stops_it_too(twins: Any, make: Callable[[], Probe]) -> None:
    plan, interventions = Plan(new_tokens=4, suppress_eos="logits"), [breaks(1, 1)]
    with pytest.raises(NotFinite, match=r"step 1: .*since layer 1") as caught:
        denoise(twins["tiny-arm"], PROMPTS[:2], plan, probes=[make()], interventions=interventions, progress=False)
    assert caught.value.run.record.sizes["step"] == 1  # type: ignore[attr-defined]


def test_a_probe_that_was_stopped_can_be_used_again(twins: Any) -> None:
    probe, plan = ReceivedAttention(), Plan(new_tokens=4)
    with pytest.raises(NotFinite):
        denoise(twins["tiny-dlm"], PROMPTS, plan, probes=[probe], interventions=[breaks(0, 1)], progress=False)
    again = denoise(twins["tiny-dlm"], PROMPTS, plan, probes=[probe], progress=False).record
    fresh = denoise(twins["tiny-dlm"], PROMPTS, plan, probes=[ReceivedAttention()], progress=False).record
    np.testing.assert_array_equal(again["received"], fresh["received"])
