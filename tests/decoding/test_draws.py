"""Seeded draws: those of the official code, whatever the batch and the padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinklens.decoding.draws import Draws

LENGTH, VOCAB = 5, 7


def drawn(method: str, seeds: list[int], starts: list[int], row: int, times: int = 2) -> list[Tensor]:
    """What one row draws, twice in a row, counted from its first real position."""
    source, length = Draws(seeds, starts), LENGTH + max(starts)
    valid = torch.arange(length) >= torch.tensor(starts)[:, None]
    weights = torch.zeros(len(seeds), length)
    distribution = torch.zeros(len(seeds), length, VOCAB)
    for index, start in enumerate(starts):  # every row has the same content, wherever it starts
        content = torch.arange(1, length - start + 1).float()
        weights[index, start:] = content / content.sum()
        distribution[index, start:] = (content[:, None] * torch.arange(VOCAB) % 5 + 0.1).softmax(-1)
    results = []
    for _ in range(times):
        out = {
            "uniform": lambda: source.uniform(weights, torch.float32),
            "uniform64": lambda: source.uniform(distribution, torch.float64),
            "where": lambda: source.where(valid),
            "categorical": lambda: source.categorical(distribution, valid),
            "subset": lambda: source.subset(weights, [2] * len(seeds)),
        }[method]()
        results.append(out[row, starts[row] :])
    return results


METHODS = ["uniform", "uniform64", "where", "categorical", "subset"]


@pytest.mark.parametrize("method", METHODS)
@given(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 3))
def test_a_rows_draws_do_not_depend_on_batch_or_padding(method: str, seed: int, other: int, extra: int) -> None:
    """Alone; and as the second of two rows, left-padded because the first one is longer."""
    alone = drawn(method, [seed], [0], row=0)
    batched = drawn(method, [other, seed], [0, extra], row=1)
    assert len(alone[0]) == len(batched[0]) == LENGTH
    assert all(torch.equal(a, b) for a, b in zip(alone, batched, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_other_seeds_draw_other_numbers(method: str) -> None:
    many = [torch.cat(drawn(method, [seed], [0], row=0, times=8)).tolist() for seed in range(5)]
    assert all(many[0] != other for other in many[1:])


def test_draws_are_those_of_torch_with_the_same_seed() -> None:
    """One prompt under torch.manual_seed(s) in the official code draws these numbers."""
    torch.manual_seed(5)
    expected = torch.rand(1, 4, 3, dtype=torch.float64), torch.rand(1, 4), torch.rand(2)
    draws = Draws([5], [0])
    assert torch.equal(draws.uniform(torch.zeros(1, 4, 3), torch.float64), expected[0])
    assert torch.equal(draws.uniform(torch.zeros(1, 4), torch.float32), expected[1])
    mask = torch.tensor([[False, True, True, False]])
    assert torch.equal(draws.where(mask)[mask], expected[2])
    assert (draws.where(mask)[~mask] == 1).all()


def test_subset_takes_so_many_positions_in_proportion_to_the_weights() -> None:
    weights = torch.tensor([[0.0, 0.6, 0.3, 0.1]])
    counted, draws, times = torch.zeros(4), Draws([0], [0]), 4000
    for _ in range(times):
        chosen = draws.subset(weights, [1])
        assert int(chosen.sum()) == 1
        counted += chosen[0]
    error = (weights[0] * (1 - weights[0]) / times).sqrt()
    assert ((counted / times - weights[0]).abs() <= 4 * error).all()
    assert not draws.subset(weights, [0]).any()
