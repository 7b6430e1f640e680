"""Edits under masks of every kind: local windows, blocks one after the other, caches; each against naive loops."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens import Canvas, SinkRule
from sinklens.hooks import Memory
from sinklens.interventions import (
    Fixed,
    KeepKeys,
    MaskSinks,
    NoOp,
    NullKey,
    PreviousStep,
    Redistribute,
    SameStep,
    ScaleSinks,
    SideBySide,
    Swap,
    ZeroSinks,
)
from sinklens.sinks import Sight

INF = float("inf")
HEADS, LAYER = 2, 0
MODEL: Any = SimpleNamespace(cfg=SimpleNamespace(n_layers=1, n_heads=HEADS, d_vocab=64), is_causal=False)
PREFIX = "blocks.0.attn."


def canvas_of(lengths: list[int], seed: int) -> Canvas:
    width, generator = max(lengths), torch.Generator().manual_seed(seed)
    valid = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    tokens = torch.randint(0, 60, valid.shape, generator=generator)
    masked = valid & (torch.rand(valid.shape, generator=generator) < 0.5)
    return Canvas(tokens, valid, masked, valid & ~masked, 0, tuple(range(len(lengths))))


def sights(canvas: Canvas, size: int) -> dict[str, Sight]:
    """Kinds of masks over one canvas."""
    place, valid = torch.arange(canvas.valid.shape[1]), canvas.valid
    ends = (place // size + 1) * size
    own = torch.eye(len(place), dtype=torch.bool) & valid[:, None]
    chance = torch.rand(valid.shape[0], len(place), len(place), generator=torch.Generator().manual_seed(size)) < 0.6
    return {
        "everyone": Sight(valid),
        "causal": Sight(valid, "causal"),
        "window": Sight(valid, window=size),
        "causal window": Sight(valid, "causal", window=size),
        "blocks": Sight(valid, mask=(place < ends[:, None]) & valid[:, None]),
        "by row": Sight(valid, mask=(chance | own) & valid[:, None]),
    }


KINDS = ["everyone", "causal", "window", "causal window", "blocks", "by row"]
kinds = pytest.mark.parametrize("kind", KINDS)
shapes = {
    "lengths": st.lists(st.integers(3, 8), min_size=1, max_size=3),
    "size": st.integers(1, 5),
    "seed": st.integers(0, 10_000),
}


def looks(sight: Sight, b: int, i: int, j: int) -> bool:
    """Whether query i of row b may look at key j, from what the sight says of itself."""
    if sight.mask is not None:
        return bool(sight.mask[b, i, j])
    near = sight.window is None or abs(i - j) < sight.window
    return bool(sight.valid[b, j]) and near and (sight.direction == "bidirectional" or j <= i)


def scores_for(sight: Sight, seed: int) -> Tensor:
    """Random scores, -inf where the model does not look."""
    batch, keys = sight.valid.shape
    scores = 3 * torch.randn(batch, HEADS, keys, keys, generator=torch.Generator().manual_seed(seed + 1))
    for b in range(batch):
        for i in range(keys):
            for j in range(keys):
                if not looks(sight, b, i, j):
                    scores[b, :, i, j] = -INF
    return scores


def point(name: str, sight: Sight, block: slice | None = None) -> Any:
    """A hook point as the attention function leaves it for hooks."""
    keys = sight.valid.shape[1]
    return SimpleNamespace(name=PREFIX + name, ctx={"sight": sight, "queries": block or slice(0, keys)})


def after(edit: Any, canvas: Canvas, sight: Sight, scores: Tensor, memory: Memory | None = None) -> Tensor:
    """The weights after an edit of scores or weights."""
    hooks = edit.fwd_hooks(MODEL, canvas, memory)
    for name, function in hooks:
        if name.endswith("hook_attn_scores"):
            out = function(scores, hook=point("hook_attn_scores", sight))
            scores = scores if out is None else out
    pattern = scores.softmax(-1).nan_to_num(0.0)
    for name, function in hooks:
        if name.endswith("hook_pattern"):
            out = function(pattern, hook=point("hook_pattern", sight))
            pattern = pattern if out is None else out
    return pattern


def by_hand(pattern: Tensor, canvas: Canvas, row: Callable[[list[float], list[int], int], list[float]]) -> Tensor:
    """Weights with each real query's row changed by `row(weights, seen keys, query)`."""
    out = pattern.clone().double()
    for b in range(len(pattern)):
        for h in range(pattern.shape[1]):
            for i in canvas.valid[b].nonzero()[:, 0].tolist():
                weights = pattern[b, h, i].double().tolist()
                out[b, h, i] = torch.tensor(row(weights, [b], i), dtype=torch.float64)
    return out


@kinds
@pytest.mark.parametrize("to", ["proportional", "uniform", "self", 2])
@settings(max_examples=8)
@given(**shapes)
def test_weight_goes_to_keys_that_the_query_may_see(
    kind: str, to: Any, lengths: list[int], size: int, seed: int
) -> None:
    """And nowhere else, whatever the mask is."""
    canvas = canvas_of(lengths, seed)
    sight = sights(canvas, size)[kind]
    scores, memory = scores_for(sight, seed), Memory()
    plain = scores.softmax(-1).nan_to_num(0.0)
    out = after(Redistribute(to, Fixed([0, 1]), share=0.7), canvas, sight, scores, memory)
    left = 0

    def row(weights: list[float], where: list[int], i: int) -> list[float]:
        nonlocal left
        (b,) = where
        start = int(canvas.valid[b].int().argmax())
        sinks = [start, start + 1]
        others = [j for j in range(len(weights)) if looks(sight, b, i, j) and j not in sinks]
        gets = {
            "proportional": lambda j: weights[j],
            "uniform": lambda j: 1.0,
            "self": lambda j: float(j == i),
            2: lambda j: float(j == start + 2),
        }[to]
        total = sum(gets(j) for j in others)
        moved = 0.7 * sum(weights[j] for j in sinks)
        if total == 0:
            left += moved > 0
            return weights
        return [
            weight * (0.3 if j in sinks else 1) + (moved * gets(j) / total if j in others else 0)
            for j, weight in enumerate(weights)
        ]

    torch.testing.assert_close(out.double(), by_hand(plain, canvas, row), atol=1e-5, rtol=1e-4)
    assert memory.counts()["rows_left"] == left


@kinds
@settings(max_examples=8)
@given(**shapes)
def test_weights_are_exchanged_where_both_keys_are_seen(kind: str, lengths: list[int], size: int, seed: int) -> None:
    canvas = canvas_of(lengths, seed)
    sight = sights(canvas, size)[kind]
    scores = scores_for(sight, seed)
    plain = scores.softmax(-1).nan_to_num(0.0)
    out = after(Swap(Fixed([0]), seed=seed), canvas, sight, scores)
    partners = after(
        Swap(Fixed([0]), seed=seed), canvas, Sight(canvas.valid), torch.arange(plain.numel()).view(plain.shape).float()
    )
    all_seen = torch.arange(plain.numel()).view(plain.shape).float().softmax(-1)
    for b in range(len(plain)):
        real = canvas.valid[b].nonzero()[:, 0].tolist()
        for h in range(HEADS):
            changed = (partners[b, h, real[0]] != all_seen[b, h, real[0]]).nonzero()[:, 0].tolist()
            partner = next(j for j in changed if j != real[0]) if changed else None
            for i in real:
                expected = plain[b, h, i].clone()
                if partner is not None and looks(sight, b, i, real[0]) and looks(sight, b, i, partner):
                    expected[[real[0], partner]] = expected[[partner, real[0]]]
                assert torch.equal(out[b, h, i], expected)
    assert (out[scores == -INF] == 0).all()


@kinds
@pytest.mark.parametrize("queries", ["all", "masked", "last"])
@settings(max_examples=8)
@given(**shapes)
def test_a_share_is_of_the_queries_that_see_the_key(
    kind: str, queries: Any, lengths: list[int], size: int, seed: int
) -> None:
    """Of those that count; of the same step, and of the step before."""
    canvas = canvas_of(lengths, seed)
    sight = sights(canvas, size)[kind]
    scores = scores_for(sight, seed)
    plain = scores.softmax(-1).nan_to_num(0.0)
    rule = SinkRule(0.3, "share", queries=queries)
    out, memory = after(ZeroSinks(SameStep(rule)), canvas, sight, scores), Memory()
    previous = ZeroSinks(PreviousStep(rule))
    after(previous, canvas, sight, scores, memory)
    before = after(previous, canvas, sight, scores, memory)  # shown the same forward before
    for b in range(len(plain)):
        counted = canvas.positions(queries)[b].nonzero()[:, 0].tolist()
        real = canvas.valid[b].nonzero()[:, 0].tolist()
        for h in range(HEADS):
            expected = plain[b, h].clone()
            for j in real:
                seeing = [i for i in counted if looks(sight, b, i, j)]
                mass = sum(float(plain[b, h, i, j]) for i in seeing)
                if seeing and abs(mass / len(seeing) - 0.3) < 1e-5:
                    return  # rounding decides
                if seeing and mass / len(seeing) > 0.3:
                    expected[real, j] = 0
            assert torch.equal(out[b, h][real], expected[real])
            assert torch.equal(before[b, h][real], expected[real])


EDITS = {
    "redistribute": Redistribute("uniform", SameStep(SinkRule(None, top_k=1))),
    "swap": Swap(SameStep(SinkRule(None, top_k=1)), seed=3),
    "share": ZeroSinks(SameStep(SinkRule(0.3, "share"))),
    "mask": MaskSinks(SameStep(SinkRule(None, top_k=2)), diagonal=False),
    "self": Redistribute("self", Fixed([0, 1]), queries="masked"),
    "scale": ScaleSinks(0.2, Fixed([1]), renormalise=True),
    "keep": KeepKeys(0.5),
    "null": NullKey(1.0, queries="masked"),
    "nobody left": Redistribute("uniform", SameStep(SinkRule(None, top_k=50))),  # counts where it is applied
}


@kinds
@pytest.mark.parametrize("name", EDITS)
@settings(max_examples=8)
@given(**shapes, block=st.integers(1, 4))
def test_blocks_of_queries_give_the_same_under_every_mask(
    kind: str, name: str, lengths: list[int], size: int, seed: int, block: int
) -> None:
    """Previews first, as often as asked and once more (for another's sake), and then block by block."""
    canvas, edit = canvas_of(lengths, seed), EDITS[name]
    sight = sights(canvas, size)[kind]
    scores, keys = scores_for(sight, seed), max(lengths)
    whole, apart = Memory(), Memory()
    expected = after(edit, canvas, sight, scores, whole)
    spans = [slice(start, min(start + block, keys)) for start in range(0, keys, block)]
    hooks = dict(edit.fwd_hooks(MODEL, canvas, apart))
    on_scores, on_pattern = (hooks.get(PREFIX + end) for end in ("hook_attn_scores", "hook_pattern"))

    def through(function: Any, tensor: Tensor, end: str, span: slice, preview: bool) -> Tensor:
        if function is None:
            return tensor
        out = (function.preview if preview else function)(tensor, hook=point(end, sight, span))
        return tensor if out is None else out

    def forward(span: slice, preview: bool) -> Tensor:
        edited = through(on_scores, scores[:, :, span], "hook_attn_scores", span, preview)
        return through(on_pattern, edited.softmax(-1).nan_to_num(0.0), "hook_pattern", span, preview)

    for _ in range(1 + sum(function.rounds for function in hooks.values())):
        for span in spans:
            forward(span, preview=True)
    assert not any(apart.counts().values())
    out = torch.cat([forward(span, preview=False) for span in spans], 2)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    ours, theirs = apart.counts(), whole.counts()
    assert ours == pytest.approx(theirs, rel=1e-5)


@kinds
@pytest.mark.parametrize("name", EDITS)
@settings(max_examples=8)
@given(**shapes)
def test_side_by_side_each_edit_sees_the_mask_of_its_own_rows(
    kind: str, name: str, lengths: list[int], size: int, seed: int
) -> None:
    canvas, edit = canvas_of(lengths, seed), EDITS[name]
    sight = sights(canvas, size)[kind]
    scores = scores_for(sight, seed)
    side = SideBySide([edit, *[None] * (len(lengths) - 2), edit][: len(lengths)], 1)
    out = after(side, canvas, sight, scores)
    plain = scores.softmax(-1).nan_to_num(0.0)
    for b in range(len(lengths)):
        rows = slice(b, b + 1)
        alone = plain[rows]
        if side.edits[b] is not None:
            alone = after(edit, canvas.of_rows(rows), sight.of_rows(rows), scores[rows])
        torch.testing.assert_close(out[rows], alone, atol=1e-6, rtol=1e-5)


@settings(max_examples=8)
@given(**shapes, queries=st.integers(1, 3))
def test_with_a_cache_the_queries_are_the_last_of_the_keys(
    lengths: list[int], size: int, seed: int, queries: int
) -> None:
    """Queries, their own keys and those that they may see are found at the end of the keys."""
    canvas = canvas_of(lengths, seed)
    keys = max(lengths)
    whole = Sight(canvas.valid, "causal")
    cut = Sight(canvas.valid, "causal", queries=queries)
    scores = scores_for(whole, seed)
    for edit in (
        Redistribute("self", Fixed([0])),
        Redistribute("uniform", Fixed([0]), queries="masked"),
        MaskSinks(Fixed([0, 1]), diagonal=False),
        ZeroSinks(SameStep(SinkRule(0.3, "share", queries="last"))),
        NullKey(1.0, queries="masked"),
    ):
        ours, theirs = Memory(), Memory()
        expected = after(edit, canvas, whole, scores, theirs)[:, :, keys - queries :]
        hooks = edit.fwd_hooks(MODEL, canvas, ours)
        part = scores[:, :, keys - queries :]
        for end in ("hook_attn_scores", "hook_pattern"):
            part = part if end == "hook_attn_scores" else part.softmax(-1).nan_to_num(0.0)
            for name, function in hooks:
                if name.endswith(end):
                    out = function(part, hook=point(end, cut, slice(0, queries)))
                    part = part if out is None else out
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-5)


@kinds
def test_finding_nothing_changes_nothing(kind: str) -> None:
    canvas = canvas_of([6, 4], 1)
    sight = sights(canvas, 2)[kind]
    scores = scores_for(sight, 1)
    assert torch.equal(after(NoOp(SameStep(top_k=2)), canvas, sight, scores), scores.softmax(-1).nan_to_num(0.0))
