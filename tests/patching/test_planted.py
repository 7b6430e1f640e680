"""Patches of a model of which it is known where the answer comes from: 1 there, 0 elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

import sinklens as sl
from sinklens.ground_truth.facts import PlantedFact, PlantedPair, planted_fact

make: Callable[..., PlantedFact] = lru_cache(planted_fact)
SITES = ["residual", "attention", "mlp", "values", "mixed", "pattern"]
NEW = 4


def expected(
    fact: PlantedFact, pair: PlantedPair, site: str, step: int, places: list[int], shape: tuple[int, ...]
) -> np.ndarray:
    """The effect [layer, (head,) position] by what was planted: of `pair`'s one place, and of each asked position."""
    effect = np.zeros(shape)
    back = int(fact.dlm.is_causal)  # a baseline answers for a position at the one before it
    own = [place - back for place in places]
    spots = {
        "residual": [(layer, (), [*pair.places] if layer <= 1 else own) for layer in range(fact.layers + 1)],
        "attention": [(1, (), own)],
        "mlp": [(0, (), [*pair.places])],
        "values": [(1, (fact.kv_head,), [*pair.places])],
        "mixed": [(1, (fact.head,), own)],
        "pattern": [],
    }[site]
    for layer, head, positions in spots:
        for position in positions:
            effect[(layer, *head, position)] = 1 / len(places) if positions is own else 1
    return effect


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_the_effect_is_1_where_the_information_is_and_0_elsewhere(site: str, causal: bool) -> None:
    fact = make(causal=causal, layers=3, heads=4, kv_heads=2)
    pair = fact.pair(seed=3)
    by = "both" if site in ("values", "mixed", "pattern") else "position"
    # A baseline's last position holds a word that it has written, which its MLP knows, too: let both write the same.
    patches = sl.Patches(site, by, commits="clean" if causal else "own")
    record = sl.patch(fact.dlm, pair.clean, pair.corrupt, sl.Plan(new_tokens=NEW), patches, progress=False)
    effect = record["effect"].isel(prompt=0)
    assert record.sizes["step"] == NEW
    for step in range(NEW):
        seen = int((record["canvas_clean"].isel(prompt=0, step=step) >= 0).sum())
        masked = record["masked_clean"].isel(prompt=0, step=step).to_numpy() == 1
        places = [seen] if causal else np.flatnonzero(masked).tolist()
        assert int(record["places"][0, step]) == len(places) == (1 if causal else NEW - step)
        found = effect.isel(step=step).to_numpy()[..., :seen]
        np.testing.assert_allclose(found, expected(fact, pair, site, step, places, found.shape), atol=2e-6)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_moved_cue_is_in_the_pattern_alone(direction: str) -> None:
    fact = make(layers=2, heads=2)
    pair = fact.pair(seed=1, moved=True)

    def effect(site: str, by: str) -> np.ndarray:
        patches = sl.Patches(site, by, steps=[0], direction=direction)
        record = sl.patch(fact.dlm, pair.clean, pair.corrupt, sl.Plan(new_tokens=NEW), patches, progress=False)
        return record["effect"].isel(prompt=0, step=0).to_numpy()

    found = effect("pattern", "head")
    np.testing.assert_allclose(found, [[0, 0], [0, 1]], atol=2e-6)
    for site in ("mlp", "values"):
        np.testing.assert_allclose(effect(site, "position"), 0, atol=2e-6)
    stream = effect("residual", "position")[:2, : len(pair.clean)]  # before the answer is fetched
    half = np.zeros(len(pair.clean))
    half[[*pair.places]] = 0.5  # two cues, or none: both words weigh the same
    np.testing.assert_allclose(stream, [half, half], atol=2e-6)


def test_what_is_patched_at_one_step_is_gone_at_the_next_unless_it_was_committed() -> None:
    """At the end, the answer of a step's own commit is the clean word, and all others are the corrupt one."""
    fact = make()
    pair = fact.pair(seed=2)
    patches = sl.Patches("mlp", outcome="end")
    record = sl.patch(fact.dlm, pair.clean, pair.corrupt, sl.Plan(new_tokens=NEW), patches, progress=False)
    assert record["places"][0].to_numpy().tolist() == [4] * 4  # the mean is over all, those decided before among them
    wanted = np.zeros(record["effect"].shape[1:])
    wanted[:, 0, pair.places[0]] = 1 / NEW  # each step decides one of the places, by its own forward
    np.testing.assert_allclose(record["effect"][0], wanted, atol=2e-6)


def test_the_metrics_are_those_of_the_logits_by_definition() -> None:
    """Logits are 40 for the answer, 20 for REST at a mask, and 0: so by hand, at every step and place."""
    fact = make()
    pair = fact.pair(seed=3)
    others = fact.dlm.cfg.d_vocab - 2
    log_total = 40 + np.log1p(np.exp(-20) + others * np.exp(-40))
    by_hand = {
        "logit_difference": (40, -40),
        "log_probability": (40 - log_total, -log_total),
        "probability": (np.exp(40 - log_total), np.exp(-log_total)),
    }
    for metric, (clean, corrupt) in by_hand.items():
        patches = sl.Patches("mlp", metric=metric, layers=[0], positions=[*pair.places])
        record = sl.patch(fact.dlm, pair.clean, pair.corrupt, sl.Plan(new_tokens=NEW), patches, progress=False)
        np.testing.assert_allclose(record["clean"], clean, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(record["corrupt"], corrupt, rtol=1e-5, atol=1e-9)
        assert record["patched"].attrs["units"] == {"log_probability": "nats", "probability": "1"}.get(metric, "logits")
