"""Named sink rules against the formulas of their papers, written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from sinklens import SinkRule, rule
from sinklens.sinks import Sight, uniform_null
from sinklens.sinks.named import RULES, ActRule, StreamingRule

RECEIVED = torch.tensor([[5.5, 0.1, 0.4, 0.6, 1.0, 0.4], [0.5, 0.5, 3.5, 0.5, 0.5, 0.5]])  # [head, key], S = 6


def flags(name: str, **options: object) -> list[list[bool]]:
    return rule(name)(RECEIVED, **options).tolist()


def test_gu_divides_by_the_queries_that_see_the_key() -> None:
    bidirectional = [[value / row.sum().item() > 0.3 for value in row.tolist()] for row in RECEIVED]
    assert flags("gu") == bidirectional
    causal = [[value / (6 - key) > 0.3 for key, value in enumerate(row.tolist())] for row in RECEIVED]
    assert flags("gu", visible=Sight.of(6, "causal").seen_by()[0]) == causal
    assert causal != bidirectional


def test_no_key_of_uniform_causal_attention_is_a_sink_by_share() -> None:
    """Each visible query gives a key 1/(i+1); the mean over queries is far below 0.3 at every key but the last ones."""
    keys = 64
    null = uniform_null(keys, "causal")
    found = rule("gu")(null, visible=Sight.of(keys, "causal").seen_by()[0])
    mean = [sum(1 / (i + 1) for i in range(key, keys)) / (keys - key) for key in range(keys)]
    assert found.tolist() == [value > 0.3 for value in mean]
    assert not found.any()
    assert SinkRule()(null)[0]  # the raw column sum passes at BOS: the causal null


def test_act_compares_with_alpha_over_n() -> None:
    received = torch.tensor([5.2, 0.3, 0.5, 0.0, 0.0, 0.0])
    assert rule("act")(received).tolist() == [value / 6 > 5 / 6 for value in received.tolist()]
    keys = torch.tensor([True, True, True, False, False, False])  # three keys: the cut is 5/3 of the attention
    assert not rule("act")(received, keys, queries=6).any()


def test_floating_averages_the_heads_and_uses_population_deviations() -> None:
    received = torch.zeros(2, 32) + 0.5
    received[:, 7] = torch.tensor([10.0, 20.0])
    mean = [sum(column) / 2 for column in zip(*received.tolist(), strict=True)]
    centre = sum(mean) / 32
    deviation = math.sqrt(sum((value - centre) ** 2 for value in mean) / 32)
    expected = [value > centre + 3 * deviation for value in mean]
    assert rule("floating")(received).tolist() == [expected, expected]
    assert sum(expected) == 1


def test_streaming_takes_the_first_real_keys() -> None:
    keys = torch.tensor([False, True, True, True, True, True])
    assert rule("streaming")(RECEIVED, keys).tolist() == [[False, True, True, True, True, False]] * 2


def test_cuts_in_every_unit_agree_with_the_rule_itself() -> None:
    for each in (SinkRule(), SinkRule(0.2, "mean"), SinkRule(3.0, "percent"), SinkRule(0.3, "share")):
        for keys in (8, 64, 192):
            cut = each.cut(keys)
            assert cut is not None
            for column, sink in ((cut * 0.999, False), (cut * 1.001, True)):
                if column >= keys:
                    continue
                received = torch.full((keys,), (keys - column) / (keys - 1))
                received[3] = column
                assert bool(each(received)[3]) == sink, (each, keys, column)


def test_explain_says_the_cut_and_what_can_never_fire() -> None:
    assert "C_j > 3.953" in SinkRule().explain(64)
    assert "can never fire" in SinkRule(epsilon=3.0).explain(3)
    assert "can never fire" in SinkRule(epsilon=3.0, units="zscore").explain(9)
    assert "can never fire" not in SinkRule(epsilon=3.0, units="zscore").explain(64)


def test_names_are_listed_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match="'sinky' is unknown; the named rules are rulli, gu"):
        rule("sinky")
    assert all(each.words() for each in RULES.values())


@pytest.mark.parametrize("given", [{"epsilon": 3.0}, {"top_k": 0}, {"top_k": -1}, {"top_k": None}, {"units": "share"}])
def test_the_first_keys_are_no_matter_of_an_epsilon_or_a_unit(given: dict) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=f"{name}="):
        StreamingRule(**given)


def test_acts_alpha_has_no_other_unit() -> None:
    with pytest.raises(ValueError, match="units='percent' is unknown; choose from 'sum'"):
        ActRule(units="percent")  # pyright: ignore[reportArgumentType]
