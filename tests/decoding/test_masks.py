"""Probes and edits of masked positions are refused for a baseline, which has none, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_autoencoders import by_chance

import sinklens as sl
from sinklens import probes
from sinklens.errors import ScopeError
from sinklens.interventions import ByKeyNorm, ByToken, Fixed, InOrder, KeepKeys, MaskSinks, NullKey, SameStep, control
from sinklens.sinks import SinkRule


@pytest.fixture(scope="module")
def twins() -> dict[str, sl.HookedDLM]:
    """Both bundled twins."""
    return {name: sl.HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


PROBES: dict[str, Callable[[Any], Any]] = {
    "features": lambda dlm: probes.Features(by_chance(dlm), top_k=3, positions="masked"),
    "received": lambda _: probes.ReceivedAttention(queries="masked"),
    "entropy": lambda _: probes.AttentionEntropy(queries="masked"),
    "mass": lambda _: probes.MassOn([0], queries="masked"),
    "rule's queries": lambda _: probes.SinkMask(SinkRule(queries="masked")),
    "rule's keys": lambda _: probes.SinkMask(SinkRule(keys="masked")),
    "confidence": lambda _: probes.Confidence(positions="masked"),
    "lens": lambda _: probes.LogitLens(positions="masked"),
    "overlap": lambda _: probes.MaskedVsCommitted(),
}
EDITS: dict[str, Callable[[Any], Any]] = {
    "queries": lambda _: MaskSinks(SameStep(top_k=1), queries="masked"),
    "selector's rule": lambda _: MaskSinks(SameStep(SinkRule(None, top_k=1, queries="masked"))),
    "selector's keys": lambda _: MaskSinks(ByKeyNorm(2, keys="masked")),
    "a control's selector": lambda _: control(MaskSinks(SameStep(SinkRule(None, top_k=1, keys="masked")))),
    "tokens": lambda _: MaskSinks(ByToken([5], keys="masked")),
    "budget": lambda _: KeepKeys(0.5, "key_norm", keys="masked"),
    "added key": lambda _: NullKey(0.5, queries="masked"),
    "autoencoder": lambda dlm: sl.Splice(by_chance(dlm), queries="masked"),
    "one of two": lambda _: InOrder(MaskSinks(Fixed(0)), NullKey(0.5, queries="masked")),
}


@pytest.mark.usefixtures("twins", "no_forward")
@pytest.mark.parametrize("make", PROBES.values(), ids=PROBES.keys())
def test_probes_of_masked_positions_are_refused(twins: Any, make: Callable[[Any], Any]) -> None:
    """They would be recorded as nan, or as 0, and look as if they were measured."""
    arm = twins["tiny-arm"]
    with pytest.raises(ScopeError, match=r"autoregressive .*no masks"):
        sl.denoise(arm, "dolko", sl.Plan(new_tokens=2), probes=[make(arm)], progress=False)


@pytest.mark.usefixtures("twins", "no_forward")
@pytest.mark.parametrize("make", EDITS.values(), ids=EDITS.keys())
def test_edits_of_masked_positions_are_refused(twins: Any, make: Callable[[Any], Any]) -> None:
    """They would edit nothing, and the run would look as if the edit had no effect."""
    arm = twins["tiny-arm"]
    with pytest.raises(ScopeError, match="autoregressive and sees no masks"):
        sl.denoise(arm, "dolko", sl.Plan(new_tokens=2), interventions=[make(arm)], progress=False)
    with pytest.raises(ScopeError, match="autoregressive and sees no masks"):
        sl.log_likelihood(arm, "dolko", "xe", interventions=[make(arm)])


def test_a_diffusion_model_takes_them_all_and_a_baseline_those_of_a_diffusion_models_record(twins: Any) -> None:
    dlm, arm = twins["tiny-dlm"], twins["tiny-arm"]
    for name, make in EDITS.items():
        sl.denoise(dlm, "dolko", sl.Plan(new_tokens=2), interventions=[make(dlm)], progress=False)
        assert name
    every = [probes.ReceivedAttention(queries=("all", "masked"))]
    run = sl.denoise(dlm, "dolko", sl.Plan(new_tokens=2), probes=every, progress=False)
    recorded = sl.interventions.FromRecord(run.record, SinkRule(None, top_k=1, queries="masked"))
    sl.denoise(arm, "dolko", sl.Plan(new_tokens=2), interventions=[MaskSinks(recorded)], progress=False)
