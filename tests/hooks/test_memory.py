"""What one edit remembers and counts in one run."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.hooks import Memory


def test_counts_add_up_by_row_and_by_name() -> None:
    memory = Memory(4, names=("keys", "heads"))
    assert memory.counts() == {"keys": 0.0, "heads": 0.0}
    assert memory.per_row("keys") == []
    memory.count("keys", torch.tensor([1, 0, 2]))
    memory.count("keys", torch.tensor([1, 1, 1]))
    memory.count("mass", torch.tensor([0.5, 0.25, 0.0]))
    assert memory.counts() == {"keys": 6, "heads": 0, "mass": 0.75}
    assert memory.per_row("keys") == [2, 1, 3]
    assert memory.per_row("mass") == [0.5, 0.25, 0.0]
    assert memory.per_row("heads") == []


def test_what_is_counted_belongs_to_the_memory() -> None:
    """The tensor that was handed over may change afterwards; the count does not."""
    memory, amount = Memory(), torch.tensor([1.0, 2.0])
    memory.count("keys", amount)
    memory.count("keys", amount)
    assert amount.tolist() == [1, 2]
    assert memory.per_row("keys") == [2, 4]


def composed() -> Memory:
    """A memory of two parts, of which the second is composed of one."""
    parts = (Memory(), Memory(parts=(Memory(),)))
    parts[0].count("keys", torch.tensor([1, 2]))
    parts[1].parts[0].count("keys", torch.tensor([10, 20]))
    parts[1].parts[0].count("mass", torch.tensor([0.5, 0.5]))
    return Memory(parts=parts)


def test_counts_of_parts_are_told_by_number_and_summed_by_row() -> None:
    memory = composed()
    memory.count("keys", torch.tensor([100, 200]))
    assert memory.counts() == {"keys": 300, "0: keys": 3, "1: 0: keys": 30, "1: 0: mass": 1.0}
    assert memory.per_row("keys") == [111, 222]
    assert memory.per_row("mass") == [0.5, 0.5]


def test_notes_and_counts_of_two_memories_are_apart() -> None:
    one, other = Memory(3), Memory(5)
    one.notes["received"] = 1
    one.count("keys", torch.ones(2))
    assert (one.steps, other.steps) == (3, 5)
    assert other.notes == {}
    assert other.counts() == {}


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=5))
def test_memories_of_several_forwards_add_up(amounts: list[list[int]]) -> None:
    total, straight = composed(), composed()
    for amount in amounts:
        own = Memory(parts=(Memory(), Memory(parts=(Memory(),))))
        for memory in (own, straight):
            memory.count("keys", torch.tensor(amount))
            memory.parts[1].parts[0].count("mass", torch.tensor(amount))
        own.notes["seen"] = amount
        total.add(own)
    assert total.counts() == straight.counts()
    assert total.per_row("mass") == straight.per_row("mass")
    assert total.notes == {}
