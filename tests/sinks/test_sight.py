"""Who sees whom, against loops: directions, windows, masks of any shape, padding, queries that are not all keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinklens.sinks import Sight, received_attention, sight, uniform_null

CPU = torch.device("cpu")


@dataclass
class Case:
    """A sight, and who sees whom in it as lists of lists [batch][query][key]; `real` [batch][query]."""

    sight: Sight
    allowed: list[list[list[bool]]]
    real: list[list[bool]]


@st.composite
def cases(draw: st.DrawFn, form: str | None = None) -> Case:
    """Any small sight: by direction, by window, or by a mask that may be anything."""
    form = form or draw(st.sampled_from(["bidirectional", "causal", "window", "causal window", "levels", "mask"]))
    batch, keys = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    queries = draw(st.integers(1, keys))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    padding = torch.randint(0, keys, (batch, 1), generator=generator)
    valid = torch.arange(keys) >= padding
    window = draw(st.integers(1, keys + 1)) if "window" in form else None
    given_queries = None if queries == keys and draw(st.booleans()) else queries
    offset = keys - queries
    if form == "mask":
        mask = torch.rand(batch, queries, keys, generator=generator) < 0.5
        allowed = mask.tolist()
        made = Sight(valid, mask=mask, queries=given_queries)
    elif form == "levels":
        levels = torch.randint(0, 4, (batch, keys), generator=generator)
        above = levels.tolist()
        made = Sight(valid, queries=given_queries, levels=levels)
        allowed = [
            [[bool(valid[b, j]) and above[b][j] <= above[b][i + offset] for j in range(keys)] for i in range(queries)]
            for b in range(batch)
        ]
    else:
        made = Sight(valid, "causal" if "causal" in form else "bidirectional", window, queries=given_queries)
        allowed = [
            [
                [
                    bool(valid[b, j])
                    and not ("causal" in form and j > i + offset)
                    and (window is None or abs(j - i - offset) < window)
                    for j in range(keys)
                ]
                for i in range(queries)
            ]
            for b in range(batch)
        ]
    return Case(made, allowed, valid[:, offset:].tolist())


def loops(case: Case, counts: list[list[bool]]) -> tuple[list[list[int]], list[list[float]]]:
    """How many of the counting queries see each key, and received attention if each spreads its own evenly."""
    seen: list[list[int]] = []
    even: list[list[float]] = []
    for rows, real, counted in zip(case.allowed, case.real, counts, strict=True):
        keys = range(len(rows[0]))
        seen.append([sum(row[j] for row, r, c in zip(rows, real, counted, strict=True) if r and c) for j in keys])
        able = [row for row, r, c in zip(rows, real, counted, strict=True) if r and c]
        even.append([math.fsum(1 / sum(row) for row in able if row[j]) for j in keys])
    return seen, even


def counting(case: Case, seed: int) -> Tensor:
    return torch.rand(len(case.real), len(case.real[0]), generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.mark.parametrize("block", [1, 7, 2**22])
@given(case=cases(), seed=st.integers(0, 1000))
def test_every_question_equals_loops(block: int, case: Case, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sight, "BLOCK", block)
        some = counting(case, seed)
        for queries in (None, some):
            counts = torch.ones_like(some) if queries is None else queries
            seen, even = loops(case, counts.tolist())
            assert case.sight.seen_by(queries).tolist() == seen
            torch.testing.assert_close(case.sight.null(queries), torch.tensor(even), atol=1e-6, rtol=1e-6)
        assert case.sight.sees().tolist() == [[sum(row) for row in rows] for rows in case.allowed]
        queries, keys = len(case.allowed[0]), len(case.allowed[0][0])
        assert (case.sight.count, case.sight.keys) == (queries, keys)
        assert case.sight.real.tolist() == case.real
        for part in (slice(0, queries), slice(queries // 2, queries)):
            expected = torch.tensor(case.allowed)[:, part]
            assert torch.equal(case.sight.rows(part).expand(expected.shape), expected)
        if case.sight.open:
            assert torch.tensor(case.allowed).all()


@given(case=cases(), seed=st.integers(0, 1000))
def test_sums_are_products_with_the_mask(case: Case, seed: int) -> None:
    """Vectors instead of counts, of which several belong to a query."""
    allowed = torch.tensor(case.allowed)
    values = torch.randn(len(allowed), 2, 3, allowed.shape[1], generator=torch.Generator().manual_seed(seed))
    expected = torch.einsum("bxyq,bqk->bxyk", values, allowed.float())
    torch.testing.assert_close(case.sight.sums(values), expected, atol=1e-5, rtol=1e-5)


@given(case=cases(), seed=st.integers(0, 1000))
def test_the_null_sums_to_the_queries_that_see_anything(case: Case, seed: int) -> None:
    some = counting(case, seed)
    able = torch.tensor(case.allowed).any(-1) & torch.tensor(case.real) & some
    torch.testing.assert_close(case.sight.null(some).sum(-1), able.sum(-1).float(), atol=1e-5, rtol=1e-5)


@given(case=cases(), seed=st.integers(0, 1000))
def test_the_null_is_the_received_attention_of_an_even_pattern(case: Case, seed: int) -> None:
    allowed, some = torch.tensor(case.allowed).float(), counting(case, seed) & torch.tensor(case.real)
    pattern = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(case.sight.null(some), received_attention(pattern, some), atol=1e-5, rtol=1e-5)


@given(st.sampled_from(["bidirectional", "causal"]), st.integers(1, 40))
def test_all_queries_see_the_columns_of_the_mask(direction: str, keys: int) -> None:
    square = torch.ones(keys, keys) if direction == "bidirectional" else torch.ones(keys, keys).tril()
    assert torch.equal(Sight.of(keys, direction).seen_by()[0], square.sum(0))  # type: ignore[arg-type]
    assert float(uniform_null(keys, direction).sum()) == pytest.approx(keys)  # type: ignore[arg-type]


# What an attention function is told.


def told(allowed: Tensor, form: str) -> Tensor:
    """[batch, query, key] as transformers says it."""
    mask = allowed[:, None]
    if form == "bool":
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, -math.inf if form == "inf" else torch.finfo(torch.float32).min)


@pytest.mark.parametrize("form", ["bool", "float", "inf"])
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_a_local_mask_with_padding_keeps_every_real_query(form: str, direction: str, window: int | None) -> None:
    """The last query of a sliding window sees a few keys only; all others are as real as these."""
    padding, keys = [0, 2, 5], 8
    valid = torch.arange(keys) >= torch.tensor(padding)[:, None]
    same = Sight(valid, direction, window)  # type: ignore[arg-type]
    allowed = same.rows(slice(0, keys)).expand(3, keys, keys) & valid[..., None]
    made = Sight.from_mask(
        told(allowed, form),
        batch=3,
        queries=keys,
        keys=keys,
        direction=direction,
        device=CPU,  # type: ignore[arg-type]
    )
    assert torch.equal(made.valid, valid)
    assert made.real.sum(-1).tolist() == [8, 6, 3]
    assert torch.equal(made.rows(slice(0, keys)), allowed)
    assert torch.equal(made.seen_by(), same.seen_by())
    torch.testing.assert_close(made.null(), same.null())


@pytest.mark.parametrize("form", ["bool", "float"])
def test_one_row_of_a_mask_stands_for_all_queries(form: str) -> None:
    valid = torch.arange(5) >= torch.tensor([[0], [3]])
    made = Sight.from_mask(
        told(valid[:, None], form), batch=2, queries=5, keys=5, direction="bidirectional", device=CPU
    )
    assert torch.equal(made.valid, valid)
    assert made.seen_by().tolist() == [[5] * 5, [0, 0, 0, 2, 2]]


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_no_mask_means_the_direction(direction: str) -> None:
    made = Sight.from_mask(None, batch=2, queries=2, keys=6, direction=direction, device=CPU)  # type: ignore[arg-type]
    assert made.open == (direction == "bidirectional")
    assert made.sees().tolist() == [[6, 6] if direction == "bidirectional" else [5, 6]]


def test_with_a_cache_the_queries_are_the_last_keys() -> None:
    """Two queries behind four cached keys, of which the first is padding."""
    allowed = torch.tensor([[[False, True, True, True, True, False], [False, True, True, True, True, True]]])
    made = Sight.from_mask(told(allowed, "bool"), batch=1, queries=2, keys=6, direction="causal", device=CPU)
    assert made.count == 2
    assert made.real.tolist() == [[True, True]]
    assert made.seen_by().tolist() == [[0, 2, 2, 2, 2, 1]]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="direction='sideways' is unknown; choose from bidirectional, causal"):
        Sight.of(3, "sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        Sight.of(3, window=0)


def test_in_blocks_the_null_is_a_sum_over_blocks() -> None:
    """By hand: 3 blocks of 2, uniform: a key of block b gets 1 / (c + 1) of each block c from b on."""
    expected = [1 + 1 / 2 + 1 / 3] * 2 + [1 / 2 + 1 / 3] * 2 + [1 / 3] * 2
    assert Sight.of(6, blocks=2).null()[0].tolist() == pytest.approx(expected)


def test_in_blocks_the_last_block_alone_gives_every_key_the_same() -> None:
    last = torch.arange(11)[None] >= 8
    assert Sight.of(11, blocks=4).null(last)[0].tolist() == pytest.approx([3 / 11] * 11)


@pytest.mark.parametrize("more", [{"direction": "causal"}, {"window": 3}])
def test_levels_say_all(more: dict) -> None:
    with pytest.raises(ValueError, match="levels say by themselves who sees whom"):
        Sight(torch.ones(1, 4, dtype=torch.bool), levels=torch.zeros(1, 4, dtype=torch.long), **more)
