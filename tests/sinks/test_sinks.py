"""What a sink is: received attention and the rule, against naive loops and the arithmetic of arXiv 2510.15731."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinklens.sinks import SinkRule, received_attention, uniform_null

UNITS = ["sum", "mean", "percent", "zscore"]


def patterns(batch: int, queries: int, keys: int, seed: int, sharpness: float = 2.0, sink: float = 0.0) -> Tensor:
    """Random row-stochastic patterns [batch, head, query, key]; the middle key's scores are raised by `sink`."""
    scores = sharpness * torch.randn(batch, 2, queries, keys, generator=torch.Generator().manual_seed(seed))
    scores[..., keys // 2] += sink
    return scores.softmax(-1)


def columns(size: int, main: float) -> Tensor:
    """Column sums of `size` queries with one key that receives `main`, the rest even."""
    received = torch.full((size,), (size - main) / (size - 1), dtype=torch.float64)
    received[size // 2] = main
    return received


# Received attention.


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_received_attention_equals_a_naive_loop(batch: int, queries: int, keys: int, seed: int) -> None:
    pattern = patterns(batch, queries, keys, seed)
    counts = torch.rand(batch, 1, queries, generator=torch.Generator().manual_seed(seed)) < 0.6
    ours = received_attention(pattern, counts)
    assert ours.shape == (batch, 2, keys)
    for b in range(batch):
        for h in range(2):
            for j in range(keys):
                total = 0.0
                for i in range(queries):
                    if counts[b, 0, i]:
                        total += float(pattern[b, h, i, j])
                assert float(ours[b, h, j]) == pytest.approx(total, abs=1e-5)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_keys_average_one_when_all_queries_count(size: int, seed: int) -> None:
    received = received_attention(patterns(2, size, size, seed))
    torch.testing.assert_close(received.mean(-1), torch.ones(2, 2), atol=1e-5, rtol=0)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_keys_average_queries_over_keys_when_some_count(size: int, seed: int) -> None:
    counts = torch.rand(2, 1, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    received = received_attention(patterns(2, size, size, seed), counts)
    expected = (counts.sum(-1) / size).expand(2, 2)
    torch.testing.assert_close(received.mean(-1), expected, atol=1e-5, rtol=0)


def test_half_precision_patterns_are_summed_in_float32() -> None:
    """4096 entries of 1/4096 sum to 1; in float16 partial sums would stall."""
    pattern = torch.full((1, 1, 4096, 2), 1 / 4096, dtype=torch.float16)
    for queries in (None, torch.ones(1, 1, 4096, dtype=torch.bool)):
        received = received_attention(pattern, queries)
        assert received.dtype == torch.float32
        torch.testing.assert_close(received, torch.ones(1, 1, 2), atol=1e-3, rtol=0)


# The uniform null.


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_the_causal_null_is_a_difference_of_harmonic_numbers(size: int) -> None:
    harmonic = [sum(1 / k for k in range(1, n + 1)) for n in range(size + 1)]
    expected = [harmonic[size] - harmonic[j] for j in range(size)]
    assert uniform_null(size, "causal").tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_null_is_what_a_uniform_pattern_gives(size: int, direction: Any) -> None:
    allowed = torch.ones(size, size).tril() if direction == "causal" else torch.ones(size, size)
    pattern = allowed / allowed.sum(-1, keepdim=True)
    torch.testing.assert_close(uniform_null(size, direction), received_attention(pattern), atol=1e-5, rtol=0)


def test_h_64_is_474_and_passes_epsilon_3() -> None:
    null = uniform_null(64, "causal")
    assert float(null[0]) == pytest.approx(4.74, abs=5e-3)
    assert SinkRule()(null).tolist() == [True] + [False] * 63
    assert not SinkRule()(uniform_null(64)).any()


# The rule, key by key.


def naive_rule(rule: SinkRule, received: list[float], valid: list[bool], queries: float) -> list[bool] | None:
    """The threshold alone, in Python floats; None where a key is too close to the cut to be decided."""
    keys = [j for j, real in enumerate(valid) if real]
    out = []
    for j in range(len(received)):
        if not valid[j]:
            out.append(False)
            continue
        if rule.units == "zscore":
            mean = sum(received[k] for k in keys) / len(keys)
            deviation = math.sqrt(sum((received[k] - mean) ** 2 for k in keys) / len(keys))  # population
            excess = received[j] - mean - rule.epsilon * deviation
        else:
            factor = {"sum": 1.0, "mean": 1 / queries, "percent": 100 / queries}[rule.units]
            others = [received[k] * factor for k in keys if k != j]
            excess = received[j] * factor - (sum(others) / len(others) if others else 0.0) - rule.epsilon
        if abs(excess) < 1e-4:
            return None
        out.append(excess > 0)
    return out


values = st.lists(st.tuples(st.floats(0, 12, width=32), st.booleans()), min_size=1, max_size=14)


@pytest.mark.parametrize("units", UNITS)
@given(row=values, epsilon=st.floats(0.0, 4.0))
def test_the_rule_equals_a_naive_double_loop(units: str, row: list[tuple[float, bool]], epsilon: float) -> None:
    received, valid = [value for value, _ in row], [real for _, real in row]
    queries = float(len(row))
    rule = SinkRule(epsilon * {"mean": 1 / 8, "percent": 12}.get(units, 1), units)
    expected = naive_rule(rule, received, valid, queries)
    if expected is None or not any(valid):
        return
    ours = rule(torch.tensor([received]), torch.tensor([valid]), torch.tensor([queries]))
    assert ours[0].tolist() == expected


@pytest.mark.parametrize("units", UNITS)
def test_the_rule_is_per_row(units: str) -> None:
    """Rows of a batch with other numbers of valid keys and queries do not mix."""
    received = received_attention(patterns(4, 16, 16, 5, sharpness=4))
    valid = torch.arange(16) < torch.tensor([16, 12, 7, 2])[:, None, None]
    queries = torch.tensor([[16.0], [12.0], [7.0], [2.0]])
    rule = SinkRule({"mean": 0.1, "percent": 10.0}.get(units, 0.9), units)
    together = rule(received, valid, queries)
    assert together.any()
    assert not together.all()
    for row in range(4):
        for head in range(2):
            expected = naive_rule(rule, received[row, head].tolist(), valid[row, 0].tolist(), float(queries[row, 0]))
            assert together[row, head].tolist() == expected


@pytest.mark.parametrize("units", ["mean", "percent"])
def test_the_number_of_queries_defaults_to_the_total(units: str) -> None:
    received = received_attention(patterns(3, 9, 9, 1, sharpness=4))
    rule = SinkRule(0.2 if units == "mean" else 20.0, units)
    assert rule(received).any()
    assert torch.equal(rule(received), rule(received, None, 9))
    assert torch.equal(rule(received), rule(received, None, torch.full((3, 1), 9.0)))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("units", UNITS)
@given(seed=st.integers(0, 1000), junk=st.floats(-50, 50, width=32))
def test_invalid_keys_do_not_count(units: str, top_k: int | None, seed: int, junk: float) -> None:
    """Whatever stands at padding, the result is that of the valid keys alone, and padding is never a sink."""
    generator = torch.Generator().manual_seed(seed)
    received = torch.rand(1, 2, 10, generator=generator) * 6
    valid = (torch.rand(1, 1, 10, generator=generator) < 0.6).index_fill(-1, torch.tensor([0]), True)
    rule = SinkRule(0.2 if units == "mean" else 1.5, units, top_k)
    plain = rule(received, valid, 10)
    other = rule(received.masked_fill(~valid, junk), valid, 10)
    assert torch.equal(plain, other)
    assert torch.equal(plain, rule(received.masked_fill(~valid, float("nan")), valid, 10))
    assert not plain[~valid.expand(1, 2, 10)].any()
    real = valid[0, 0]
    assert torch.equal(plain[..., real], rule(received[..., real], None, 10))


@pytest.mark.parametrize(("size", "cut"), [(64, 3.953), (160, 3.981), (192, 3.984)])
def test_the_cut_in_column_sums(size: int, cut: float) -> None:
    """Equation 3 with column sums and epsilon 3: C_j > 1 + 3 (S - 1) / S."""
    exact = 1 + 3 * (size - 1) / size
    assert exact == pytest.approx(cut, abs=5e-4)
    above, below = SinkRule()(columns(size, exact + 1e-4)), SinkRule()(columns(size, exact - 1e-4))
    assert above.tolist() == [j == size // 2 for j in range(size)]
    assert not below.any()


@pytest.mark.parametrize(("size", "cut"), [(64, 2.89), (160, 5.77), (192, 6.73), (288, 9.61)])
def test_the_cut_in_percent(size: int, cut: float) -> None:
    exact = size / 100 * (100 / size + 3 * (size - 1) / size)
    assert exact == pytest.approx(cut, abs=1e-2)
    rule = SinkRule(units="percent")
    assert rule(columns(size, exact + 1e-3)).sum() == 1
    assert not rule(columns(size, exact - 1e-3)).any()


def test_mean_and_sum_are_the_same_rule_scaled() -> None:
    received = received_attention(patterns(5, 20, 20, 3, sink=3.0))
    by_sum = SinkRule(2.0, "sum")(received)
    assert by_sum.any()
    assert torch.equal(by_sum, SinkRule(2.0 / 20, "mean")(received))
    assert torch.equal(by_sum, SinkRule(2.0 * 100 / 20, "percent")(received))


@given(st.integers(2, 60), st.integers(0, 1000))
def test_at_most_a_quarter_of_the_keys_are_sinks(size: int, seed: int) -> None:
    """Every sink receives more than 3.95 of the S units that there are (S >= 64); here: more than 1 + 3 (S-1)/S."""
    received = received_attention(patterns(1, size, size, seed, sharpness=8, sink=6.0))
    assert (SinkRule()(received).sum(-1) < size / (1 + 3 * (size - 1) / size)).all()


# Ranking.


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12, unique=True), st.integers(1, 15))
def test_top_k_alone_takes_the_k_largest(numbers: list[int], k: int) -> None:
    received = torch.tensor([numbers]) / 100
    largest = sorted(numbers)[::-1][:k]
    ours = SinkRule(epsilon=None, top_k=k)(received)
    assert ours[0].tolist() == [number in largest for number in numbers]


def test_top_k_keeps_only_keys_that_pass_the_threshold() -> None:
    received = torch.tensor([0.0, 9.0, 0.5, 7.0, 8.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert SinkRule()(received).nonzero()[:, 0].tolist() == [1, 3, 4]
    assert SinkRule(top_k=2)(received).nonzero()[:, 0].tolist() == [1, 4]
    assert SinkRule(top_k=5)(received).nonzero()[:, 0].tolist() == [1, 3, 4]
    assert not SinkRule(epsilon=20.0, top_k=5)(received).any()


@pytest.mark.parametrize("k", [3, 4, 50])
def test_top_k_beyond_the_number_of_keys_takes_all_valid_ones(k: int) -> None:
    valid = torch.tensor([True, False, True, True])
    assert SinkRule(epsilon=None, top_k=k)(torch.tensor([3.0, 9.0, 0.5, 1.0]), valid).tolist() == valid.tolist()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_ties_are_broken_to_exactly_k(k: int) -> None:
    received = torch.tensor([[1.0, 5.0, 5.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    ours = SinkRule(epsilon=None, top_k=k)(received)
    assert ours.sum(-1).tolist() == [k, k]
    assert received[0][ours[0]].min() >= received[0][~ours[0]].max()
    assert torch.equal(ours, SinkRule(epsilon=None, top_k=k)(received))


def test_tied_keys_all_pass_a_threshold() -> None:
    received = torch.tensor([0.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert SinkRule()(received).nonzero()[:, 0].tolist() == [1, 2]


def test_a_flat_row_has_no_sinks_in_any_unit() -> None:
    for units in UNITS:
        assert not SinkRule(0.5, units)(torch.ones(3, 8)).any()


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": "share of it"}, r"units='share of it' is unknown; choose from 'sum', 'mean', 'percent', 'zscore'"),
        ({"units": "mean"}, r"epsilon=3 in units 'mean' can never fire"),
        ({"units": "mean", "epsilon": 1.0}, r"epsilon=1 in units 'mean' can never fire"),
        ({"epsilon": None}, r"needs top_k"),
        ({"top_k": 0}, r"top_k=0 must be a whole number of at least 1"),
        ({"top_k": -3, "epsilon": None}, r"top_k=-3 must be a whole number of at least 1"),
        ({"epsilon": float("nan")}, r"epsilon=nan must be a finite number"),
        ({"epsilon": float("inf")}, r"epsilon=inf must be a finite number"),
    ],
)
def test_rules_that_cannot_work_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SinkRule(**arguments)


@pytest.mark.parametrize(("epsilon", "most"), [(3.0, 16), (0.0, 63), (-0.5, 64), (-1.0, 64)])
def test_no_more_keys_can_be_sinks_than_there_are(epsilon: float, most: int) -> None:
    assert f"at most {most} of 64 keys can be sinks at once" in SinkRule(epsilon).explain(64)


def test_mean_below_one_is_a_rule() -> None:
    assert SinkRule(0.5, "mean")(torch.tensor([5.0, 0.0, 0.0, 0.0, 0.0])).tolist() == [True, *[False] * 4]


@pytest.mark.parametrize("units", UNITS)
def test_the_units_that_an_error_lists_are_valid(units: str) -> None:
    with pytest.raises(ValueError, match=re.escape(units)):
        SinkRule(units="none of them")
    assert SinkRule(0.5, units).units == units


# Whose attention counts, and who can be a sink.

SETS = ["all", "masked", "committed", "prompt", "response", "last"]


@pytest.mark.parametrize("field", ["queries", "keys"])
@pytest.mark.parametrize("value", ["given", "", "Masked", None])
def test_unknown_sets_are_refused_and_the_known_listed(field: str, value: object) -> None:
    message = f"{field}={value!r} (is unknown; choose from|must be) 'all'.*'masked'.*'committed'.*'prompt'.*'last'"
    with pytest.raises(ValueError, match=message):
        SinkRule(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("which", SETS)
def test_the_sets_that_an_error_lists_are_valid(which: str) -> None:
    rule = SinkRule(queries=which, keys=which)  # type: ignore[arg-type]
    assert (rule.queries, rule.keys) == (which, which)
    assert (rule == SinkRule()) == (which == "all")


@pytest.mark.parametrize("rule", [SinkRule(), SinkRule(None, top_k=2), SinkRule(2.0, "zscore"), SinkRule(0.3, "share")])
def test_words_name_the_sets(rule: SinkRule) -> None:
    plain = rule.words()
    assert "queries;" not in plain
    assert replace(rule, queries="masked").words() == f"{plain}; by masked queries"
    assert replace(rule, keys="prompt").words() == f"{plain}; among prompt keys"
    assert replace(rule, queries="last", keys="response").words() == f"{plain}; by last queries; among response keys"


@given(
    st.sampled_from([("sum", 0.37), ("percent", 4.1), ("mean", 0.037), ("share", 0.11), ("zscore", 0.9)]),
    st.sampled_from([None, 1, 2]),
    st.integers(2, 9),
    st.integers(0, 1000),
)
def test_eligible_keys_are_compared_with_each_other(
    unit: tuple[str, float], top_k: int | None, size: int, seed: int
) -> None:
    """Keys left out are no sinks, and their attention is no yardstick, but their queries still count."""
    generator = torch.Generator().manual_seed(seed)
    received = patterns(2, size, size, seed, sharpness=3.0).sum(-2)
    keys = torch.rand(2, 1, size, generator=generator) < 0.6
    units, epsilon = unit
    ours = SinkRule(epsilon, units, top_k)(received, keys)  # type: ignore[arg-type]
    for b in range(2):
        chosen = [j for j in range(size) if keys[b, 0, j]]
        for h in range(2):
            values = {j: float(received[b, h, j]) for j in chosen}
            passing = []
            for j in chosen:
                others = [values[i] for i in chosen if i != j]
                excess = values[j] - (sum(others) / len(others) if others else 0)
                mean = sum(values.values()) / len(chosen)
                spread = math.sqrt(sum((value - mean) ** 2 for value in values.values()) / len(chosen))
                score = {
                    "sum": excess,
                    "mean": excess / size,
                    "percent": 100 * excess / size,
                    "share": values[j] / size,
                    "zscore": (values[j] - mean) / spread if spread > 1e-6 else 0.0,
                }[units]
                if score > epsilon:
                    passing.append(j)
            passing = sorted(passing, key=lambda j: -values[j])[: top_k or size]
            assert ours[b, h].nonzero()[:, 0].tolist() == sorted(passing)


def test_no_eligible_key_no_sink() -> None:
    received, none = torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.bool)
    for units, epsilon in (("sum", 0.1), ("mean", 0.1), ("percent", 0.1), ("share", 0.1), ("zscore", 0.1)):
        assert not SinkRule(epsilon, units)(received, none).any()  # type: ignore[arg-type]
    assert not SinkRule(None, top_k=3)(received, none).any()
