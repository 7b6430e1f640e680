"""Hypothesis strategies for everything that can be built in `interventions` (records aside)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sinklens.hooks import Scope
from sinklens.interventions import (
    CONTROLS,
    BiasSinks,
    ByKeyNorm,
    ByToken,
    Feature,
    Fixed,
    InOrder,
    KeepKeys,
    LastQuery,
    LearnedSelection,
    MaskSinks,
    MeanValue,
    NoiseValue,
    NoOp,
    NullKey,
    PreviousStep,
    Redistribute,
    SameStep,
    ScaleSinks,
    SideBySide,
    SinkToken,
    Splice,
    Steer,
    Swap,
    ZeroSinks,
    ZeroValue,
)
from sinklens.sinks import SinkRule
from sinklens.sinks.named import RULES

AUTOENCODER = str(Path(__file__).parent / "data" / "autoencoders" / "topk")  # of 20 features
DIRECTION = str(Path(__file__).parent / "data" / "direction")  # some model's, of layers 0 to 2
finite = st.floats(allow_nan=False, allow_infinity=False)
positions = st.sampled_from(["all", "masked", "committed", "prompt", "response", "last"])
seeds = st.integers(0, 10**6)
whole = st.integers(0, 40)
ranges = st.one_of(
    st.none(),
    whole,
    st.integers(-3, -1),
    st.lists(whole, min_size=1, max_size=3).map(tuple),
    st.builds(slice, st.one_of(st.none(), whole), st.one_of(st.none(), st.integers(41, 60))),
)
scopes = st.builds(Scope, ranges, ranges, ranges)
rules = st.one_of(
    st.builds(
        SinkRule,
        st.just(None),
        top_k=st.integers(1, 9),
        queries=st.sampled_from(["auto", "all", "masked"]),
        keys=positions,
    ),
    st.builds(SinkRule, finite, queries=st.sampled_from(["auto", "all", "masked"]), keys=positions),
    st.builds(SinkRule, st.floats(0, 0.5), st.sampled_from(["share", "mean"]), top_k=st.sampled_from([None, 3])),
    st.sampled_from(list(RULES.values())),
)
fewer, loop, first = (st.sampled_from(pair) for pair in (("take", "none"), ("closed", "open"), ("none", "same")))
selectors = st.one_of(
    st.builds(SameStep, rules, fewer=fewer, loop=loop),
    st.builds(PreviousStep, rules, fewer=fewer, loop=loop, first=first),
    st.builds(LastQuery, st.builds(SinkRule, st.just(None), top_k=st.integers(1, 9)), fewer=fewer, loop=loop),
    st.builds(Fixed, st.lists(whole, min_size=1, max_size=3), keys=positions),
    st.builds(ByToken, st.sampled_from(["mask", "white space", "digit"]), top_k=st.sampled_from([None, 2])),
    st.builds(ByToken, st.lists(whole, min_size=1, max_size=3), fewer=fewer, keys=positions),
    st.builds(ByKeyNorm, st.integers(1, 9), largest=st.booleans(), keys=positions),
)
base: dict[str, Any] = {"where": scopes, "queries": positions}
common: dict[str, Any] = {**base, "diagonal": st.booleans()}
edits = st.one_of(
    st.builds(MaskSinks, selectors, **common),
    st.builds(BiasSinks, finite, selectors, **common),
    st.builds(ZeroSinks, selectors, **common),
    st.builds(ScaleSinks, st.floats(0, 1e9), selectors, renormalise=st.booleans(), **common),
    st.builds(
        Redistribute,
        st.one_of(st.sampled_from(["proportional", "uniform", "self"]), whole),
        selectors,
        share=st.floats(0, 1),
        **common,
    ),
    st.builds(Swap, selectors, seed=seeds, **common),
    st.builds(NoOp, selectors, **common),
    st.builds(ZeroValue, selectors, **common),
    st.builds(MeanValue, selectors, **common),
    st.builds(NoiseValue, st.one_of(st.none(), st.floats(0, 1e9)), selectors, seed=seeds, **common),
    st.builds(NullKey, st.one_of(finite, st.just(-math.inf)), **base),
    st.builds(SinkToken, st.one_of(st.none(), whole), **base),
    st.builds(
        KeepKeys,
        st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 50)),
        st.sampled_from(["received", "key_norm", "hidden_norm", "random", "random_tokens", "recency"]),
        seed=seeds,
        keys=positions,
        **common,
    ),
    st.builds(Splice, st.just(AUTOENCODER), st.booleans(), where=st.builds(Scope, steps=ranges), queries=positions),
    st.builds(
        Feature,
        st.just(AUTOENCODER),
        st.lists(st.integers(0, 19), min_size=1, max_size=3, unique=True),
        finite,
        boost=finite,
        where=st.builds(Scope, steps=ranges),
        queries=positions,
    ),
    st.builds(LearnedSelection, st.just("auto"), rate=st.floats(0, 1, exclude_min=True), keys=positions, **common),
    st.builds(
        Steer,
        st.just(DIRECTION),
        finite,
        st.sampled_from(["direction", "random", "orthogonal"]),
        positions=positions,
        schedule=st.one_of(st.sampled_from(["constant", "linear"]), st.lists(finite, min_size=1, max_size=3)),
        units=st.sampled_from(["difference", "residual"]),
        seed=seeds,
        where=st.builds(Scope, ranges, st.none(), ranges),
    ),
)
matched = st.builds(lambda kind, of, seed: kind(of, seed), st.sampled_from(list(CONTROLS.values())), selectors, seeds)
every_selector = st.one_of(selectors, matched, st.builds(CONTROLS["random"], matched))
every_edit = st.recursive(
    st.one_of(edits, st.builds(lambda kind, selector: kind(selector), st.sampled_from([MaskSinks, Swap]), matched)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda several: InOrder(*several)),
        st.builds(SideBySide, st.lists(st.one_of(st.none(), inner), min_size=1, max_size=3), st.integers(1, 4)),
    ),
    max_leaves=4,
)
