"""The rules that pick positions and tokens, against naive loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from sinklens.decoding import remasking as rm
from sinklens.decoding.draws import Draws


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    """Confidence and eligibility [batch, pos], and a count per row (also 0, and more than there are)."""
    width, batch = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    # Few different values, so that ties are common.
    values = st.sampled_from([-2.5, -1.0, 0.0, 0.1, 0.5, 0.9, 1.0])
    confidence = [[draw(values) for _ in range(width)] for _ in range(batch)]
    eligible = [[draw(st.booleans()) for _ in range(width)] for _ in range(batch)]
    counts = [draw(st.integers(0, width + 2)) for _ in range(batch)]
    return torch.tensor(confidence), torch.tensor(eligible), counts


def best(confidence: Tensor, eligible: Tensor, count: int) -> set[int]:
    """The `count` most confident eligible positions of one row, the leftmost among equals."""
    candidates = [index for index in range(len(confidence)) if eligible[index]]
    return set(sorted(candidates, key=lambda index: (-float(confidence[index]), index))[:count])


def positions(mask: Tensor) -> set[int]:
    """Where a row of a mask is set."""
    return set(mask.nonzero().flatten().tolist())


@given(rows())
def test_most_confident_takes_the_k_best_eligible(case: tuple[Tensor, Tensor, list[int]]) -> None:
    confidence, eligible, counts = case
    chosen = rm.most_confident(confidence, eligible, torch.tensor(counts))
    for row, count in enumerate(counts):
        assert int(chosen[row].sum()) == min(count, int(eligible[row].sum()))
        assert not (chosen[row] & ~eligible[row]).any()
        assert positions(chosen[row]) == best(confidence[row], eligible[row], count)


@given(rows())
def test_least_confident_takes_the_k_worst_and_the_cutoff_those_below_it(
    case: tuple[Tensor, Tensor, list[int]],
) -> None:
    confidence, among, counts = case
    chosen = rm.least_confident(confidence, among, torch.tensor(counts))
    below = rm.below_cutoff(confidence, among, torch.tensor(counts))
    for row, count in enumerate(counts):
        assert positions(chosen[row]) == best(-confidence[row], among[row], count)
        values = sorted(float(confidence[row, index]) for index in positions(among[row]))
        least = [value for value in values if count >= len(values) or value < values[count]]
        if count < len(confidence[row]):  # an official count is less than there are
            assert sorted(confidence[row, below[row]].tolist()) == least
        assert not (below[row] & ~among[row]).any()


@pytest.mark.parametrize("steps", [1, 3, 7, 16, 500])
@pytest.mark.parametrize("masks", [1, 5, 16, 333])
def test_the_share_that_is_left_falls_to_nothing(masks: int, steps: int) -> None:
    left = [rm.share_left(masks, step, steps) for step in range(steps + 2)]
    assert left == sorted(left, reverse=True)
    assert left[-3:] == [0] * 3
    for step, count in enumerate(left[:steps]):
        assert abs(count - masks * (1 - (step + 1) / steps)) < 1.001


@given(rows(), st.sampled_from([0.1, 0.5, 0.95]))
def test_above_threshold_takes_all_that_reach_it_and_at_least_one(
    case: tuple[Tensor, Tensor, list[int]], threshold: float
) -> None:
    confidence, eligible, _ = case
    chosen = rm.above_threshold(confidence, eligible, threshold)
    for row in range(len(confidence)):
        # as float32, in which confidences live: 0.1 reaches a threshold of 0.1
        reach = {i for i in positions(eligible[row]) if confidence[row, i] >= threshold}
        assert positions(chosen[row]) == (reach or best(confidence[row], eligible[row], 1))


@given(st.integers(0, 100), st.integers(1, 40))
def test_even_split_is_even_and_non_increasing(masks: int, steps: int) -> None:
    counts = rm.even_split(masks, steps)
    assert len(counts) == steps
    assert sum(counts) == masks
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1e-3, 1e-2, 0.1]))
def test_timestep_count_is_the_share_of_the_timestep(masks: int, steps: int, eps: float) -> None:
    left = masks
    for step in range(steps):
        count = rm.timestep_count(left, step, steps, eps)
        t, s = (1 + (eps - 1) * k / steps for k in (step, step + 1))
        share = left if step == steps - 1 else left * (1 - s / t)
        assert count in {int(share - 1e-4), int(share + 1e-4)}  # float32 decides at whole numbers
        left -= count
    assert left == 0


def test_timestep_count_rounds_down_in_float32() -> None:
    """The trap of the official code: 16 masks in 16 steps give 0.999 at the first step."""
    assert rm.timestep_count(16, 0, 16, 1e-3) == 0
    assert rm.timestep_count(16, 0, 8, 1e-3) == 1
    assert rm.timestep_count(7, 7, 8, 1e-3) == 7


@given(st.integers(1, 40), st.sampled_from([1e-3, 0.1]))
def test_reveal_probability_rises_to_one(steps: int, eps: float) -> None:
    probabilities = [float(rm.reveal_probability(step, steps, eps)) for step in range(steps)]
    assert probabilities == sorted(probabilities)
    assert probabilities[-1] == 1
    assert all(0 < p <= 1 for p in probabilities)


# Tokens.


def naive_distribution(logits: list[float], temperature: float, top_p: float | None, top_k: int | None) -> list[float]:
    """One position: temper, keep the nucleus (the token that crosses top_p stays), keep the top_k, normalise."""
    scaled = [x / temperature if temperature > 0 else x for x in logits]
    weights = [math.exp(x - max(scaled)) for x in scaled]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept, mass = [], 0.0
    for token in order:
        kept.append(token)
        mass += weights[token] / sum(weights)
        if top_p is not None and mass > top_p:
            break
        assume(top_p is None or abs(mass - top_p) > 1e-5)  # float32 decides there
    kept = kept[:top_k]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([None, 0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([None, 1, 3, 8, 50]),
)
def test_tempered_against_a_naive_loop(seed: int, temperature: float, top_p: float | None, top_k: int | None) -> None:
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) * 3
    ours = rm.tempered(logits, temperature, top_p, top_k)
    naive = [[naive_distribution(row.tolist(), temperature, top_p, top_k) for row in batch] for batch in logits]
    torch.testing.assert_close(ours, torch.tensor(naive), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_gumbel_argmax_draws_from_the_tempered_softmax(temperature: float) -> None:
    """At temperature T LLaDA's noise enters as T * Gumbel: the draw follows softmax(logits / T)."""
    draws, logits = 40_000, torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    tokens = rm.gumbel_argmax(logits.expand(1, draws, 5), temperature, Draws([0], [0]))
    frequency = torch.bincount(tokens.flatten(), minlength=5) / draws
    expected = (logits / temperature).softmax(-1)
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() < 4 * error).all()


def test_gumbel_argmax_at_temperature_zero_is_the_argmax_and_draws_nothing() -> None:
    draws = Draws([0], [0])
    logits = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rm.gumbel_argmax(logits, 0.0, draws), logits.argmax(-1))
    assert torch.equal(
        draws.uniform(torch.zeros(1, 3), torch.float32), Draws([0], [0]).uniform(torch.zeros(1, 3), torch.float32)
    )


def test_gumbel_argmax_never_draws_a_forbidden_token() -> None:
    logits = torch.zeros(1, 2000, 3).index_fill(-1, torch.tensor([1]), float("-inf"))
    tokens = rm.gumbel_argmax(logits, 1.0, Draws([3], [0]))
    assert set(tokens.flatten().tolist()) == {0, 2}


def test_categorical_draws_from_the_distribution() -> None:
    draws, weights = 40_000, torch.tensor([0.5, 0.3, 0.0, 0.2])
    mask = torch.ones(1, draws, dtype=torch.bool)
    tokens = Draws([0], [0]).categorical(weights.expand(1, draws, 4), mask)
    frequency = torch.bincount(tokens.flatten(), minlength=4) / draws
    error = (weights * (1 - weights) / draws).sqrt()
    assert ((frequency - weights).abs() <= 4 * error).all()


# Confidence.


def test_confidences_have_their_definitions() -> None:
    probabilities = torch.tensor([[[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]])
    assert rm.probability_of(torch.tensor([[1, 0]]), probabilities).tolist() == [[pytest.approx(0.3), 1.0]]
    assert rm.margin(probabilities).tolist() == [[pytest.approx(0.2), 1.0]]
    entropy = 0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)
    # the official guard adds 1e-10 inside the logarithm
    assert rm.negative_entropy(probabilities).tolist() == [
        [pytest.approx(entropy, abs=1e-6), pytest.approx(0, abs=1e-6)]
    ]
