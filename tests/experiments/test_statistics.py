"""Paired statistics against enumeration, hand computation and repeated sampling."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from sinklens.experiments.statistics import (
    difference_and_interval,
    equivalent,
    holm,
    mean_and_interval,
    permutation_p,
    rate_and_interval,
)

nan = math.nan


def normal(n: int, seed: int, mean: float = 0.0) -> Tensor:
    """A normal sample."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


# Holm.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, then 2 x 0.03, then 0.04 must not fall below it
        ([0.03, 0.01, 0.04], [0.06, 0.03, 0.06]),
        ([0.01, 0.02, 0.03, 0.2], [0.04, 0.06, 0.06, 0.2]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.5, 0.02, 0.02], [0.5, 0.06, 0.06]),
        ([0.4, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.2], [0.2]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([nan, 0.01, nan, 0.04], [nan, 0.02, nan, 0.04]),
        ([nan, nan], [nan, nan]),
        ([], []),
    ],
)
def test_holm_by_hand(given: list[float], expected: list[float]) -> None:
    assert holm(given) == pytest.approx(expected, nan_ok=True)


def test_holm_against_its_definition_and_in_any_order() -> None:
    """Adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j))."""
    draw = random.Random(0)
    for size in range(1, 12):
        given = [draw.choice([0.001, 0.01, 0.02, 0.05, draw.random()]) for _ in range(size)]
        ranked = sorted(given)
        expected = [
            max(min(1.0, (size - j) * ranked[j]) for j in range(size) if ranked[j] <= p and j <= ranked.index(p))
            for p in given
        ]
        found = holm(given)
        assert found == pytest.approx(expected)
        assert all(after >= before for before, after in zip(given, found, strict=True))
        shuffled = list(range(size))
        draw.shuffle(shuffled)
        assert holm([given[i] for i in shuffled]) == pytest.approx([found[i] for i in shuffled])


def test_holm_keeps_the_family_wise_error() -> None:
    """Under the null of all of 10 tests, in 5 % of cases at most anything is significant."""
    draw = random.Random(2)
    wrong = sum(min(holm([draw.random() for _ in range(10)])) <= 0.05 for _ in range(4000))
    assert 0.035 < wrong / 4000 < 0.06


# Permutation.


def enumerated(values: list[float]) -> float:
    """The share of all sign patterns whose mean is at least as far from 0."""
    observed, hits = abs(sum(values)), 0
    for signs in itertools.product((1, -1), repeat=len(values)):
        hits += abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= observed - 1e-12
    return hits / 2 ** len(values)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0],
        [1.0, -2.0, 3.0, 0.5],
        [0.5] * 6,
        [0.25, -0.25, 0.25, -0.25],
        [0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 1.0, 1.0],
        [-0.1, -0.2, -0.7, 0.3, -0.5, -0.9, -0.01, 0.2],
        [1.0],
    ],
)
def test_permutation_equals_full_enumeration(values: list[float]) -> None:
    found = permutation_p(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx(enumerated(values))
    assert permutation_p(-torch.tensor(values, dtype=torch.float64)) == pytest.approx(found)
    assert 0 < found <= 1


def test_permutation_by_hand() -> None:
    assert permutation_p(torch.ones(5)) == pytest.approx(2 / 32)
    assert permutation_p(torch.zeros(5)) == 1
    assert permutation_p(torch.ones(10)) == pytest.approx(2 / 1024)


def test_permutation_of_many_is_near_the_enumeration_and_the_same_at_every_call() -> None:
    values = normal(14, 3, mean=0.5)
    state = torch.random.get_rng_state()
    found = permutation_p(values)
    assert found == permutation_p(values)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found == pytest.approx(enumerated(values.tolist()), abs=0.01)
    assert permutation_p(normal(200, 0, mean=1.0)) == pytest.approx(1 / 10_001)


def test_permutation_p_values_are_even_under_the_null() -> None:
    found = [permutation_p(normal(8, seed)) for seed in range(400)]
    for level in (0.1, 0.25, 0.5):
        share = sum(p <= level for p in found) / len(found)
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 400)


# Intervals.


def test_an_interval_is_the_same_at_every_call_and_touches_no_other_random_numbers() -> None:
    values = normal(30, 0)
    state = torch.random.get_rng_state()
    first = mean_and_interval(values)
    assert first == mean_and_interval(values.clone())
    assert torch.equal(state, torch.random.get_rng_state())
    assert first[0] == pytest.approx(float(values.mean()))
    assert first[1][0] < first[0] < first[1][1]


def test_an_interval_is_about_the_normal_one() -> None:
    values = normal(400, 1, mean=3.0)
    mean, (low, high) = mean_and_interval(values)
    error = float(values.std()) / 20
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)
    _, (near, far) = mean_and_interval(values, confidence=0.9)
    assert low < near < far < high
    assert (near, far) == pytest.approx((mean - 1.645 * error, mean + 1.645 * error), abs=0.2 * error)


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.88, 0.985), (0.5, 0.4, 0.58)])
def test_coverage(confidence: float, least: float, most: float) -> None:
    """Of 200 samples of 30; a percentile bootstrap covers a little less than it says."""
    inside = 0
    for seed in range(200):
        _, (low, high) = mean_and_interval(normal(30, seed, mean=2.0), confidence)
        inside += low <= 2.0 <= high
    assert least < inside / 200 < most


def test_constants_collapse() -> None:
    assert mean_and_interval(torch.full((7,), 0.25)) == (0.25, (0.25, 0.25))
    assert mean_and_interval(torch.tensor([0.5])) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize("n", [1, 2, 6, 50])
def test_rates_of_all_or_none_are_exact(n: int) -> None:
    """Clopper-Pearson: the other end is (alpha / 2) ** (1 / n)."""
    bound = 0.025 ** (1 / n)
    rate, interval = rate_and_interval(torch.zeros(n))
    assert (rate, *interval) == pytest.approx((0.0, 0.0, 1 - bound), abs=1e-9)
    rate, interval = rate_and_interval(torch.ones(n))
    assert (rate, *interval) == pytest.approx((1.0, bound, 1.0), abs=1e-9)


@pytest.mark.parametrize(("n", "level"), [(12, 0.0), (40, 0.0), (12, 1.0), (5, -0.25)])
def test_shares_that_all_differ_alike_leave_room_for_those_that_do_not(n: int, level: float) -> None:
    """The part of all prompts that may differ by something else: none of n did, which 2.5 % of such samples show."""
    differences = torch.full((n,), level, dtype=torch.float64)
    mean, (low, high) = difference_and_interval(differences, True)
    assert mean == level
    for part, end in (
        ((level - low) / (level + 1) if level > -1 else 0, low),
        ((high - level) / (1 - level or 1), high),
    ):
        assert -1 <= end <= 1
        if end != level:
            assert (1 - part) ** n == pytest.approx(0.025)
    assert difference_and_interval(differences, False)[1] == pytest.approx((level, level))
    mixed = torch.tensor([0.0, 1.0, 0.0, -1.0, 1.0])
    assert difference_and_interval(mixed, True) == mean_and_interval(mixed)


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(12, True, False), (28, True, False), (29, True, True), (12, False, True)]
)
def test_no_difference_in_few_prompts_is_no_equivalence_of_shares(n: int, share: bool, expected: bool) -> None:
    """0.95 ** (1 / n) above 0.9 from 29 prompts on: fewer show a part of 10 % or more too seldom."""
    assert (0.9**n < 0.05) is (n >= 29)
    assert equivalent(torch.zeros(n, dtype=torch.float64), 0.1, share) is expected


def test_other_rates_are_bootstrapped() -> None:
    for values in (torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.999])):
        assert rate_and_interval(values) == mean_and_interval(values)


def test_equal_shares_between_none_and_all_are_not_certain() -> None:
    """By hand: .025 ** (1 / 5) = .478, and .5 times that is .239."""
    rate, interval = rate_and_interval(torch.full((5,), 0.5))
    assert (rate, *interval) == pytest.approx((0.5, 0.239, 0.761), abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("level", [0.0, 0.25, 0.5, 1.0])
def test_a_mean_outside_the_interval_of_equal_shares_shows_them_too_seldom(n: int, level: float) -> None:
    """The populations that show n times the level most often at a given mean: of the level and of 0, or of 1."""
    _, (low, high) = rate_and_interval(torch.full((n,), level, dtype=torch.float64))
    assert 0 <= low <= level <= high <= 1
    for end, rest in ((low, 0.0), (high, 1.0)):
        if level != rest:
            assert ((end - rest) / (level - rest)) ** n == pytest.approx(0.025)
        else:
            assert end == level


# Equivalence.


def test_small_differences_of_many_are_equivalent() -> None:
    small = 0.01 * normal(60, 0)
    assert equivalent(small, margin=0.02)
    assert equivalent(-small, margin=0.02)
    assert not equivalent(small + 0.02, margin=0.02)
    assert not equivalent(small - 0.03, margin=0.02)
    assert not equivalent(small, margin=1e-4)


def test_an_interval_that_contains_zero_is_no_equivalence() -> None:
    wide = normal(40, 2)
    _, (low, high) = mean_and_interval(wide)
    assert low < 0 < high
    assert not equivalent(wide, margin=0.05)
    assert equivalent(wide, margin=1.0)


def test_a_difference_that_is_there_can_be_equivalent() -> None:
    """Significant, and too small to matter."""
    small = 0.01 + 0.001 * normal(40, 0)
    assert permutation_p(small) < 0.001
    assert equivalent(small, margin=0.05)


@pytest.mark.parametrize(("n", "expected"), [(1, False), (4, False), (5, True), (30, True), (100, True)])
def test_few_constant_differences_show_nothing(n: int, expected: bool) -> None:
    for value in (0.0, 0.01, -0.01):
        assert equivalent(torch.full((n,), value, dtype=torch.float64), margin=0.02) is expected
    assert not equivalent(torch.full((n,), 0.02, dtype=torch.float64), margin=0.02)
    assert not equivalent(torch.full((n,), -0.02, dtype=torch.float64), margin=0.02)


def test_the_test_agrees_with_the_ninety_percent_interval() -> None:
    values = normal(50, 5) * 0.1
    _, (low, high) = mean_and_interval(values, confidence=0.90)
    widest = max(abs(low), abs(high))
    assert equivalent(values, margin=widest * 1.1)
    assert not equivalent(values, margin=widest * 0.9)


@pytest.mark.parametrize("margin", [0.0, -0.1])
def test_a_margin_must_be_above_zero(margin: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        equivalent(normal(40, 0), margin)


def false_equivalence(n: int, samples: int = 400) -> float:
    """How often differences whose true mean is the margin itself are called equivalent."""
    return sum(equivalent(normal(n, seed, mean=10.0), margin=10.0) for seed in range(samples)) / samples


def test_the_level_is_five_percent_where_there_are_enough() -> None:
    assert false_equivalence(40) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_level_is_five_percent_for_few(n: int) -> None:
    assert false_equivalence(n) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_two_almost_constant_differences_show_nothing() -> None:
    assert not equivalent(torch.tensor([0.0, 1e-9], dtype=torch.float64), margin=0.01)
