"""Attention in blocks of queries, over random sizes, masks, dtypes, edits and hooks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sinklens import Canvas, HookedDLM, Plan, PreviousStep, SameStep, Scope, SinkRule, denoise, probes
from sinklens.errors import ScopeError
from sinklens.hooks import Hook, Memory, block_of, by_query, watching
from sinklens.interventions import (
    BiasSinks,
    Fixed,
    InOrder,
    MaskSinks,
    NoOp,
    NullKey,
    Redistribute,
    ScaleSinks,
    SinkToken,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.interventions.controls import CONTROLS
from sinklens.models import blocks as attention_blocks
from sinklens.sinks import Sight

FAMILIES = ["LLaDA", "Dream", "Llama", "Qwen3", "DiffuGPT"]
BOTH = ["LLaDA", "Llama"]  # one that looks everywhere, one that looks back
HEADS = 4
NEW = 4  # tokens that a run here adds
SCORES, PATTERN, MIXED = "attn.hook_attn_scores", "attn.hook_pattern", "attn.o.hook_in"
MASK = 62  # the mask token of conftest's models
CLOSE: Any = {"atol": 1e-4, "rtol": 1e-4}  # float32 through two layers; attention received from up to 11 queries

Model = Any


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """Random models of a family, one per family."""
    return lru_cache(tiny_model)


@contextmanager
def blocks(size: int, dlm: HookedDLM | None = None, path: str = "auto") -> Iterator[None]:
    """So many queries at a time, and one way to compute attention."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_blocks, "rows_at_once", lambda *_: size)
        if dlm is not None:
            dlm.attention = path
        try:
            yield
        finally:
            if dlm is not None:
                dlm.attention = "auto"


def cut(rows: int, size: int) -> list[tuple[int, int]]:
    """The blocks of some rows, by their ends."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def canvas_of(lengths: Sequence[int], seed: int) -> Canvas:
    """A left-padded canvas of random tokens, some of them still masked."""
    width, generator = max(lengths), torch.Generator().manual_seed(seed)
    valid = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    tokens = torch.randint(2, 60, valid.shape, generator=generator)
    masked = valid & (torch.rand(valid.shape, generator=generator) < 0.4)
    masked[:, -1] = True
    tokens = tokens.masked_fill(masked, MASK).masked_fill(~valid, 1)
    return Canvas(tokens, valid, masked, valid & ~masked, seeds=tuple(range(len(lengths))))


lengths = st.lists(st.integers(3, 9), min_size=1, max_size=3)
sizes = st.integers(1, 8)
seeds = st.integers(0, 1000)


# ------------------------------------------------------------------------------------------------ attention by itself


class Problem(NamedTuple):
    """One attention to compute, and who may look where.

    Attributes:
        lengths: Real positions of each row, the rest is padding on the left.
        groups: Key heads.
        each: Query heads of each key head.
        width: Numbers of a head.
        causal: Whether only what came before is seen.
        form: How the mask comes: None (no padding), "bool", "float", or "keys" (one row for all queries).
        size: Queries of a block.
        path: The way.
        edited: Whether hooks change scores and weights.
        seed: Of all numbers.
    """

    lengths: list[int]
    groups: int
    each: int
    width: int
    causal: bool
    form: str | None
    size: int
    path: str
    edited: bool
    seed: int

    @property
    def positions(self) -> int:
        """Queries, and keys."""
        return max(self.lengths)

    def real(self) -> Tensor:
        """Real positions [batch, position]."""
        return torch.arange(self.positions) >= self.positions - torch.tensor(self.lengths)[:, None]

    def allowed(self) -> Tensor:
        """Who may look where [batch, query, key]."""
        allowed = self.real()[:, None].repeat(1, self.positions, 1)
        return allowed.tril() if self.causal else allowed

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """The same as transformers says it."""
        if self.form is None:
            return None
        allowed = self.allowed()[:, None]
        allowed = allowed[:, :, :1] if self.form == "keys" else allowed
        if self.form != "float":
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any small problem."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    causal = draw(st.booleans())
    forms = ["bool", "float"] + ([] if causal else ["keys"]) + ([None] if len(set(sizes)) == 1 else [])
    heads, each, width = (draw(st.integers(*bounds)) for bounds in ((1, 3), (1, 3), (2, 8)))
    path = draw(st.sampled_from(["blocks", "auto", "pattern"]))
    form, size = draw(st.sampled_from(forms)), draw(st.integers(1, max(sizes)))
    return Problem(sizes, heads, each, width, causal, form, size, path, draw(st.booleans()), draw(seeds))


class Answer(NamedTuple):
    """What attention gave: mixed values, weights as used, and received attention by query set."""

    mixed: Tensor
    weights: Tensor
    received: list[Tensor]


class Numbers(NamedTuple):
    """Random tensors of a problem: queries, keys, values; what is added to scores and multiplied into weights."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    factor: Tensor


def numbers(p: Problem, dtype: torch.dtype) -> Numbers:
    """Large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(p.seed)
    batch, heads = len(p.lengths), p.groups * p.each

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q = 1.5 * draw(batch, heads, p.positions, p.width)
    k, v = 1.5 * draw(batch, p.groups, p.positions, p.width), draw(batch, p.groups, p.positions, p.width)
    shape = (batch, heads, p.positions, p.positions)
    bias, factor = draw(*shape), draw(*shape).abs()
    if not p.edited:
        bias, factor = torch.zeros(shape), torch.ones(shape)
    wide = torch.promote_types(dtype, torch.float32)
    return Numbers(q.to(dtype), k.to(dtype), v.to(dtype), bias.to(wide), factor.to(wide))


def query_sets(p: Problem) -> list[Tensor | None]:
    """All queries, real ones, the last one, and any."""
    some = torch.rand(len(p.lengths), 1, p.positions, generator=torch.Generator().manual_seed(p.seed)) < 0.5
    last = torch.arange(p.positions) == p.positions - 1
    return [None, p.real()[:, None], last[None, None], some]


def by_hand(p: Problem, n: Numbers) -> Answer:
    """One query after the other, in float64."""
    q, k, v, bias, factor = (tensor.double() for tensor in n)
    allowed, weights, mixed = p.allowed(), torch.zeros_like(bias), torch.zeros_like(q)
    for b in range(len(p.lengths)):
        for h in range(q.shape[1]):
            keys, values = k[b, h // p.each], v[b, h // p.each]
            for i in range(p.positions):
                seen = allowed[b, i].nonzero()[:, 0]
                if len(seen):
                    odds = (keys[seen] @ q[b, h, i] / math.sqrt(p.width) + bias[b, h, i, seen]).exp()
                    weights[b, h, i, seen] = odds / odds.sum() * factor[b, h, i, seen]
                    mixed[b, h, i] = weights[b, h, i] @ values
    received = []
    for which in query_sets(p):
        counted = torch.ones(1, 1, p.positions) if which is None else which
        received.append((weights * counted[..., None]).sum(2))
    return Answer(mixed, weights, received)


def attended(p: Problem, n: Numbers) -> Answer:
    """By `blocks.attend`."""
    scores, pattern = HookPoint(), HookPoint()
    got: list[Tensor] = []
    rows: list[tuple[int, int]] = []

    def add(tensor: Tensor, *, hook: Any) -> Tensor:
        return tensor + n.bias[:, :, hook.ctx["queries"]]

    def multiply(tensor: Tensor, *, hook: Any) -> Tensor:
        return tensor * n.factor[:, :, hook.ctx["queries"]]

    def keep(tensor: Tensor, *, hook: Any) -> None:
        rows.append((hook.ctx["queries"].start, hook.ctx["queries"].stop))
        got.append(tensor.clone())

    def keep_received(tensor: Tensor, *, hook: Any) -> None:
        received.append(tensor)

    if p.edited:
        scores.add_hook(by_query(add))
        pattern.add_hook(by_query(multiply))
    pattern.add_hook(by_query(keep))
    received: list[Tensor] = []
    shown = [(HookPoint(), which) for which in query_sets(p)]
    for point, _ in shown:
        point.add_hook(keep_received)
    with blocks(p.size), torch.no_grad():
        sight = Sight.from_mask(
            p.mask(n.q.dtype),
            batch=len(p.lengths),
            queries=p.positions,
            keys=p.positions,
            direction="causal" if p.causal else "bidirectional",
            device=n.q.device,
        )
        mixed, whole = attention_blocks.attend((scores, pattern), shown, *n[:3], sight, p.width**-0.5, path=p.path)
    expected = cut(p.positions, p.positions if p.path == "pattern" else p.size)
    assert rows == expected
    weights = torch.cat(got, 2)
    assert (whole is None) == (len(expected) > 1)
    assert whole is None or torch.equal(whole, weights)
    assert (mixed.dtype, weights.dtype) == (n.v.dtype, n.bias.dtype)
    return Answer(mixed, weights, received)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(p=problems())
def test_attend_is_attention_one_query_at_a_time(dtype: torch.dtype, p: Problem) -> None:
    """Mixed values, weights and received attention against loops in float64, edited by hooks or not.

    Tolerances: scores and weights are at least float32, with roundings of `wide`. A score is a sum of products, scaled
    and biased, so it is off by at most `off`, and a weight by the factor exp(2 off) and by roundings of the softmax and
    of the hook's product. Received attention is added up in float32. Weights are rounded to the dtype of the values
    before they mix them, and so is what they mix.
    """
    n = numbers(p, dtype)
    ours, theirs = attended(p, n), by_hand(p, n)
    wide, narrow, single = (torch.finfo(each).eps for each in (n.bias.dtype, dtype, torch.float32))
    largest = n.q.double().abs().max() * n.k.double().abs().max() * p.width**0.5 + n.bias.double().abs().max()
    off = (p.width + 3) * wide * float(largest)
    weight = math.expm1(2 * off) + (p.positions + 5) * wide
    torch.testing.assert_close(ours.weights.double(), theirs.weights, rtol=weight, atol=1e-30)
    whole = theirs.weights.sum(-1).max() * n.v.double().abs().max()  # no sum of products is larger
    least = float(n.v.double().abs().sum() * torch.finfo(dtype).smallest_normal)  # of weights that vanish in a half
    close = float(whole) * (weight + narrow + p.positions * max(wide, single * (dtype != torch.float64))) + least
    torch.testing.assert_close(ours.mixed.double(), theirs.mixed, rtol=narrow, atol=close)
    for got, expected in zip(ours.received, theirs.received, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=weight + (p.positions + 1) * single, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(p=problems())
def test_rows_sum_to_one_or_are_blind(dtype: torch.dtype, p: Problem) -> None:
    """So received attention averages (queries that see something) / keys: 1 where all are real.

    Tolerances: roundings of the softmax and of the sums, whatever the dtype is; received attention is float32.
    """
    p = p._replace(edited=False)
    ours = attended(p, numbers(p, dtype))
    close = 2 * (p.positions + 4) * torch.finfo(ours.weights.dtype).eps
    single = 2 * (p.positions + 4) * torch.finfo(torch.float32).eps
    seeing = p.allowed().any(-1).double()
    assert torch.equal(seeing == 1, p.real() if p.causal else torch.ones_like(p.real()))
    sums = ours.weights.double().sum(-1)
    torch.testing.assert_close(sums, seeing[:, None].expand(sums.shape), rtol=0, atol=close)
    for got, which in zip(ours.received, query_sets(p), strict=True):
        queries = (seeing if which is None else seeing * which[:, 0]).sum(-1)
        averages = got.double().mean(-1)
        expected = (queries / p.positions)[:, None].expand(averages.shape)
        torch.testing.assert_close(averages, expected, rtol=single, atol=0)
        hidden = ~p.real()[:, None].expand(got.shape)
        assert not got[hidden].any()  # padding receives nothing, exactly


# ------------------------------------------------------------------------------------------------------- compositions


def ranking(k: int, queries: Any = "all") -> SinkRule:
    """The k keys that receive most from some queries, in any model."""
    return SinkRule(None, top_k=k, queries=queries)


selectors = st.one_of(
    st.builds(
        PreviousStep,
        top_k=st.integers(1, 3),
        first=st.sampled_from(["none", "same"]),
        loop=st.sampled_from(["closed", "closed", "open"]),
    ),
    st.builds(SameStep, st.builds(ranking, st.integers(1, 3), st.sampled_from(["auto", "all", "masked"]))),
    st.builds(SameStep, st.just(SinkRule(epsilon=0.3))),
    st.builds(Fixed, st.lists(st.integers(0, 2), min_size=1, max_size=2)),
)
scopes = st.builds(
    Scope,
    heads=st.sampled_from([None, None, [1], [0, -1]]),
    steps=st.sampled_from([None, None, [1], slice(1, None)]),
)
queries = st.sampled_from(["all", "all", "masked", "last"])
reach: dict[str, Any] = {"where": scopes, "queries": queries, "diagonal": st.booleans()}
sink_edits = st.one_of(
    st.builds(MaskSinks, selectors, **reach),
    st.builds(ZeroSinks, selectors, **reach),
    st.builds(Redistribute, st.sampled_from(["proportional", "uniform"]), selectors, share=st.just(0.7), **reach),
    st.builds(ScaleSinks, st.sampled_from([0.3, 1.5]), selectors, renormalise=st.booleans(), **reach),
    st.builds(BiasSinks, st.sampled_from([-1.5, 2.0]), selectors, **reach),
    st.builds(Swap, selectors, seed=seeds, **reach),
    st.builds(ZeroValue, selectors, **reach),
)
controlled = st.builds(control, sink_edits, st.sampled_from([*CONTROLS, "noop"]), seeds)
added = st.one_of(
    st.builds(NullKey, st.sampled_from([-1.0, 0.5]), where=scopes, queries=queries),
    st.builds(SinkToken, st.sampled_from([None, 3]), where=scopes, queries=queries),
)
edits = st.one_of(sink_edits, sink_edits, controlled, added)
prompts = st.lists(st.lists(st.integers(2, 60), min_size=3, max_size=7), min_size=1, max_size=3)


def run(dlm: HookedDLM, edit: Any, path: str, texts: Sequence[Sequence[int]], size: int, steps: int) -> Any:
    """One run by one path."""
    plan = Plan(new_tokens=NEW, temperature=1.0, steps=None if dlm.is_causal else steps)
    with blocks(size, dlm, path):
        return denoise(
            dlm,
            texts,
            plan,
            interventions=[] if edit is None else [edit],
            probes=[probes.ReceivedAttention()],
            seed=list(range(len(texts))),
            progress=False,
        )


def pass_over(refused: ScopeError) -> NoReturn:
    """InOrder refuses two edits of values that meet; DiffuGPT has no place before the first token, Llama no masks."""
    known = ("both edit values in one scope", "no position before the first", "sees no masks")
    if not any(each in str(refused) for each in known):
        raise refused
    reject()


def same_run(one: Any, other: Any) -> None:
    """Same tokens, same firing counts, same measurements."""
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.commit_step, other.commit_step)
    assert one.fired == other.fired
    for variable in ("received", "confidence"):
        np.testing.assert_allclose(one.record[variable], other.record[variable], err_msg=variable, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@given(made=st.lists(edits, min_size=1, max_size=3), texts=prompts, size=sizes, steps=st.integers(2, 4))
def test_any_edits_in_order_by_both_paths(
    model: Model, family: str, made: list[Any], texts: list[list[int]], size: int, steps: int
) -> None:
    """Same tokens, same keys edited, same attention; refused combinations (two edits of values) are passed over."""
    dlm, edit = model(family), InOrder(*made)
    runs, counts = [], []
    for path in ("pattern", "blocks"):
        try:
            runs.append(run(dlm, edit, path, texts, size, steps))
        except ScopeError as refused:
            pass_over(refused)
        counts.append(runs[-1].memories[0].counts())
    same_run(*runs)
    assert counts[0].keys() == counts[1].keys()
    for name, amount in counts[0].items():
        if name.endswith("mass"):
            assert counts[1][name] == pytest.approx(amount, rel=1e-5, abs=1e-5), name
        else:
            assert counts[1][name] == amount, name


@given(size=st.integers(1, 6))
def test_sinks_without_a_partner_count_once_per_layer(model: Model, size: int) -> None:
    dlm, canvas = model("LLaDA"), canvas_of([3], 0)
    edit = Swap(Fixed([0, 1, 2]), where=Scope(layers=0, heads=0))  # every key a sink: nobody to exchange with
    memory = edit.memory()
    with blocks(size, dlm), torch.no_grad(), dlm.hooks(fwd_hooks=edit.fwd_hooks(dlm, canvas, memory)):
        dlm(canvas.tokens, attention_mask=canvas.valid)
    assert memory.counts()["keys_without_partner"] == 3


# ------------------------------------------------------------------------------------------------- hooks of one's own


class Spec(NamedTuple):
    """A user's hook: where it hangs, how often it must see everything, and whether it changes what it sees."""

    layer: int
    point: str
    rounds: int
    changes: bool


specs = st.lists(
    st.builds(Spec, st.integers(0, 1), st.sampled_from([SCORES, PATTERN]), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=4,
)


class Log:
    """Hooks that note every call: (hook, "preview" or "call", queries), with what they were shown."""

    def __init__(self, made: Sequence[Spec], *, ask: bool = True) -> None:
        self.calls: list[tuple[int, str, tuple[int, int]]] = []
        self.shown: dict[tuple[int, str, tuple[int, int]], Tensor] = {}
        self.hooks = [
            (
                f"blocks.{spec.layer}.{spec.point}",
                by_query(
                    partial(self._note, index, spec, "call"),
                    preview=partial(self._note, index, spec, "preview") if ask else None,
                    rounds=spec.rounds,
                ),
            )
            for index, spec in enumerate(made)
        ]

    def _note(self, index: int, spec: Spec, kind: str, tensor: Tensor, *, hook: Any) -> Tensor | None:
        block = block_of(hook, tensor)
        entry = (index, kind, (block.start, block.stop))
        self.calls.append(entry)
        self.shown[entry] = tensor.clone()  # of several previews, the last
        if not spec.changes:
            return None
        place = torch.arange(block.start, block.stop, dtype=tensor.dtype)[:, None]
        return tensor * (1 + 0.1 * place / tensor.shape[-1])


@pytest.mark.parametrize("family", BOTH)
@given(made=specs, shape=lengths, size=sizes, seed=seeds)
def test_a_hook_previews_as_often_as_asked_and_is_called_once_per_block(
    model: Model, family: str, made: list[Spec], shape: list[int], size: int, seed: int
) -> None:
    """In order of queries, all previews of a layer before its first call; one block alone needs none."""
    dlm, canvas, log = model(family), canvas_of(shape, seed), Log(made)
    with blocks(size, dlm), torch.no_grad(), dlm.hooks(fwd_hooks=log.hooks):
        dlm(canvas.tokens, attention_mask=canvas.valid)
    spans = cut(max(shape), size)
    for index, spec in enumerate(made):
        assert [rows for which, kind, rows in log.calls if (which, kind) == (index, "call")] == spans
        here = [each for each in made if each.layer == spec.layer]
        rounds = sum(each.rounds for each in here) if len(spans) > 1 else 0
        if spec.point == PATTERN and not any(each.rounds for each in here if each.point == PATTERN):
            rounds = 0  # nobody asks about weights
        assert [rows for which, kind, rows in log.calls if (which, kind) == (index, "preview")] == spans * rounds
    for layer in range(dlm.n_layers):
        kinds = [kind for index, kind, _ in log.calls if made[index].layer == layer]
        assert "preview" not in kinds[kinds.index("call") :] if kinds else True


@pytest.mark.parametrize("family", BOTH)
@given(made=specs, shape=lengths, size=sizes, seed=seeds)
def test_a_preview_shows_what_the_hook_will_be_shown(
    model: Model, family: str, made: list[Spec], shape: list[int], size: int, seed: int
) -> None:
    """Bit for bit: with what the hooks before it at its point, and at the scores, will have changed."""
    dlm, canvas, log = model(family), canvas_of(shape, seed), Log(made)
    with blocks(size, dlm), torch.no_grad(), dlm.hooks(fwd_hooks=log.hooks):
        dlm(canvas.tokens, attention_mask=canvas.valid)
    previews = [entry for entry in log.shown if entry[1] == "preview"]
    assume(previews)
    for index, _, rows in previews:
        ours, theirs = log.shown[index, "preview", rows], log.shown[index, "call", rows]
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("family", BOTH)
@given(made=specs, shape=lengths, size=sizes, seed=seeds, top_k=st.integers(1, 3), first=st.booleans())
def test_beside_an_edit_that_previews_a_hook_that_cannot_gets_the_whole(
    model: Model, family: str, made: list[Spec], shape: list[int], size: int, seed: int, top_k: int, first: bool
) -> None:
    """In the edit's layer; in the other one blocks, unless the hooks there preview themselves."""
    dlm, canvas = model(family), canvas_of(shape, seed)
    log = Log([spec._replace(rounds=0) for spec in made], ask=False)
    edit: list[Any] = MaskSinks(SameStep(top_k=top_k), where=Scope(layers=0)).fwd_hooks(dlm, canvas)
    hooks = [*edit, *log.hooks] if first else [*log.hooks, *edit]
    with blocks(size, dlm), torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        dlm(canvas.tokens, attention_mask=canvas.valid)
    width = max(shape)
    for index, spec in enumerate(made):
        expected = cut(width, size if spec.layer else width)
        assert [rows for which, _, rows in log.calls if which == index] == expected
    if any(spec.layer == 0 for spec in made):
        with (
            blocks(size, dlm, "blocks"),
            torch.no_grad(),
            dlm.hooks(fwd_hooks=hooks),
            pytest.raises(ScopeError, match="a hook needs the whole pattern"),
        ):
            dlm(canvas.tokens, attention_mask=canvas.valid)


# ------------------------------------------------------------------------------------------------------------- errors


class BlownError(Exception):
    """What a fuse raises."""


class Fuse:
    """Counts how often it is passed, and blows at the asked time."""

    def __init__(self) -> None:
        self.passed, self.blows = 0, -1

    def burn(self) -> None:
        self.passed += 1
        if self.passed - 1 == self.blows:
            raise BlownError


@dataclass(frozen=True, repr=False)
class BreakingMask(MaskSinks):
    """Passes the fuse whenever it is applied, for real or in a preview."""

    fuse: Fuse = field(default_factory=Fuse, compare=False)
    identity = "with a fuse"

    def apply(self, tensor: Tensor, at: Any) -> Tensor:
        self.fuse.burn()
        return super().apply(tensor, at)


@dataclass(frozen=True, repr=False)
class BreakingZero(ZeroSinks):
    """Likewise, where it reads the pattern."""

    fuse: Fuse = field(default_factory=Fuse, compare=False)
    identity = "with a fuse"

    def pattern(self, tensor: Tensor) -> Tensor:
        self.fuse.burn()
        return super().pattern(tensor)


@dataclass(frozen=True, repr=False)
class BreakingValue(ZeroValue):
    """Likewise."""

    fuse: Fuse = field(default_factory=Fuse, compare=False)
    identity = "with a fuse"

    def apply(self, tensor: Tensor, at: Any) -> Tensor:
        self.fuse.burn()
        return super().apply(tensor, at)


@dataclass(frozen=True, repr=False)
class BreakingNull(NullKey):
    """Likewise, at the pattern."""

    fuse: Fuse = field(default_factory=Fuse, compare=False)
    identity = "with a fuse"

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return [(name, self._fused(function)) for name, function in super().acting(model, canvas, memory)]

    def _fused(self, function: Any) -> Any:
        def passing(inner: Any, tensor: Tensor, *, hook: Any) -> Any:
            if hook.name.endswith(PATTERN):
                self.fuse.burn()
            return inner(tensor, hook=hook)

        return by_query(partial(passing, function.function), preview=partial(passing, function.preview))


def breaking(name: str, fuse: Fuse) -> InOrder:
    """Edits of which one breaks, and others preview before and after it."""
    same = SameStep(top_k=1)
    here: Any = {
        "mask": lambda: BreakingMask(same, fuse=fuse),
        "zero": lambda: BreakingZero(same, fuse=fuse),
        "value": lambda: BreakingValue(same, fuse=fuse),
        "null": lambda: BreakingNull(0.5, fuse=fuse),
    }[name]()
    return InOrder(ScaleSinks(0.5, same), here, MaskSinks(SameStep(top_k=2)), ZeroSinks(same))


def same_bits(one: Any, other: Any) -> None:
    """Two runs are one."""
    assert torch.equal(one.tokens, other.tokens)
    assert one.fired == other.fired
    for variable in ("received", "confidence"):
        assert one.record[variable].identical(other.record[variable]), variable


@pytest.mark.parametrize("name", ["mask", "zero", "value", "null"])
@pytest.mark.parametrize("family", BOTH)
@settings(max_examples=6)
@given(texts=prompts, size=st.integers(1, 4), when=st.floats(0, 1, exclude_max=True))
def test_an_error_inside_a_hook_leaves_nothing_behind(
    model: Model, family: str, name: str, texts: list[list[int]], size: int, when: float
) -> None:
    """Wherever it is raised, in a preview or for real, in whatever block, layer and step."""
    dlm, fuse = model(family), Fuse()
    edit = breaking(name, fuse)
    fresh = run(dlm, edit, "blocks", texts, size, 2)
    fuse.blows, fuse.passed = int(when * fuse.passed), 0
    with pytest.raises(BlownError):
        run(dlm, edit, "blocks", texts, size, 2)
    assert not dlm.hooked
    points = {id(point): point for point in dlm.hook_dict.values()}.values()
    assert not [point.name for point in points if "queries" in point.ctx or point.fwd_hooks]
    fuse.blows = -1
    for again in (edit, breaking(name, Fuse())):
        repeated = run(dlm, again, "blocks", texts, size, 2)
        same_bits(repeated, fresh)
        assert repeated.memories[0].counts() == fresh.memories[0].counts()


@pytest.mark.parametrize("kind", ["preview", "call"])
@given(made=specs, shape=lengths, size=st.integers(1, 4), seed=seeds, when=st.floats(0, 1, exclude_max=True))
def test_an_error_in_a_users_hook_leaves_nothing_behind(
    model: Model, kind: str, made: list[Spec], shape: list[int], size: int, seed: int, when: float
) -> None:
    dlm, canvas, calls = model("LLaDA"), canvas_of(shape, seed), []

    def forward(log: Log, blow: int | None) -> Tensor:
        calls.clear()

        def passing(tensor: Tensor, inner: Any, *, hook: Any) -> Any:
            calls.append(hook.ctx["queries"])
            if len(calls) - 1 == blow:
                raise BlownError
            return inner(tensor, hook=hook)

        hooks = []
        for point, function in log.hooks:
            preview, call = function.preview, function.function
            if kind == "preview":
                preview = partial(passing, inner=preview)
            else:
                call = partial(passing, inner=call)
            hooks.append((point, by_query(call, preview=preview, rounds=function.rounds)))
        with blocks(size, dlm, "blocks"), torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
            return dlm(canvas.tokens, attention_mask=canvas.valid)

    fresh, total = forward(Log(made), None), len(calls)
    assume(total)
    with pytest.raises(BlownError):
        forward(Log(made), int(when * total))
    points = {id(point): point for point in dlm.hook_dict.values()}.values()
    assert not dlm.hooked
    assert not [point.name for point in points if "queries" in point.ctx or point.fwd_hooks]
    assert torch.equal(forward(Log(made), None), fresh)


# --------------------------------------------------------------------------------------------------- exact invariants


def around(
    dlm: HookedDLM, edit: Any, canvas: Canvas, size: int, memory: Memory, point: str = PATTERN
) -> tuple[Tensor, Tensor]:
    """Layer 0's weights (or scores) before an edit and its weights after it, put together from blocks."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def note(kept: list[Tensor], tensor: Tensor, *, hook: Any) -> None:
        kept.append(tensor.clone())

    hooks = [
        (f"blocks.0.{point}", watching(partial(note, before))),
        *edit.fwd_hooks(dlm, canvas, memory),
        (f"blocks.0.{PATTERN}", watching(partial(note, after))),
    ]
    with blocks(size, dlm, "blocks"), torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        dlm(canvas.tokens, attention_mask=canvas.valid)
    assert [part.shape[2] for part in after] == [end - start for start, end in cut(canvas.tokens.shape[1], size)]
    return torch.cat(before, 2), torch.cat(after, 2)


def strongest(pattern: Tensor, canvas: Canvas, k: int) -> list[list[list[int]]]:
    """Per row and head the k real keys that receive most from real queries, by loops."""
    found = []
    for b in range(len(pattern)):
        real = canvas.valid[b].nonzero()[:, 0].tolist()
        sums = [{j: float(pattern[b, h, real, j].double().sum()) for j in real} for h in range(pattern.shape[1])]
        found.append([sorted(real, key=lambda j, head=head: -head[j])[:k] for head in sums])
    return found


FIRST = Scope(layers=0)
SUMS: Any = {"rtol": 0, "atol": 2e-6}  # float32: a row of at most 9 weights, each rounded once or twice


@pytest.mark.parametrize("family", BOTH)
@given(shape=lengths, size=sizes, seed=seeds, k=st.integers(1, 3))
def test_zeroing_in_blocks_takes_exactly_the_sinks_mass(
    model: Model, family: str, shape: list[int], size: int, seed: int, k: int
) -> None:
    """Row by row; all other weights stay bit for bit, and the mass that is counted is the mass that is gone."""
    dlm, canvas = model(family), canvas_of(shape, seed)
    edit, memory = ZeroSinks(SameStep(ranking(k)), where=FIRST), Memory()
    before, after = around(dlm, edit, canvas, size, memory)
    expected, gone = before.clone(), 0.0
    for b, row in enumerate(strongest(before, canvas, k)):
        real = canvas.valid[b]
        for h, keys in enumerate(row):
            mass = before[b, h][:, keys].double().sum(-1)
            left = before[b, h].double().sum(-1) - mass
            torch.testing.assert_close(after[b, h].double().sum(-1)[real], left[real], rtol=0, atol=1e-12)
            expected[b, h][:, keys] = 0
            gone += float(mass[real].sum())
    real = canvas.valid[:, None, :, None].expand(before.shape)
    assert torch.equal(after[real], expected[real])
    assert memory.counts()["mass"] == pytest.approx(gone, rel=1e-5)
    assert memory.counts()["keys"] == k * HEADS * len(shape)


@pytest.mark.parametrize("name", ["mask", "proportional", "uniform", "scale", "swap"])
@given(
    family=st.sampled_from(BOTH),
    shape=lengths,
    size=sizes,
    seed=seeds,
    k=st.integers(1, 3),
    heads=st.sampled_from([None, None, [1], [0, -1]]),
    queries=queries,
    diagonal=st.booleans(),
)
def test_row_sums_stay_in_blocks(
    model: Model,
    name: str,
    family: str,
    shape: list[int],
    size: int,
    seed: int,
    k: int,
    heads: list[int] | None,
    queries: Any,
    diagonal: bool,
) -> None:
    dlm, canvas, same, memory = model(family), canvas_of(shape, seed), SameStep(ranking(k)), Memory()
    edit: Any = {
        "mask": MaskSinks(same),
        "proportional": Redistribute("proportional", same),
        "uniform": Redistribute("uniform", same, share=0.6),
        "scale": ScaleSinks(0.2, same, renormalise=True),
        "swap": Swap(same, seed=seed),
    }[name]
    edit = dataclasses.replace(edit, where=Scope(layers=0, heads=heads), queries=queries, diagonal=diagonal)
    before, after = around(dlm, edit, canvas, size, memory, SCORES if name == "mask" else PATTERN)
    before = before.softmax(-1).nan_to_num(0.0) if name == "mask" else before
    real = canvas.valid[:, None].expand(before.shape[:3])
    torch.testing.assert_close(after.sum(-1)[real], torch.ones(int(real.sum())), **SUMS)
    torch.testing.assert_close(after.sum(-1), before.sum(-1), **SUMS)
    touched = {h: h in ([1] if heads == [1] else [0, 3] if heads else range(HEADS)) for h in range(HEADS)}
    for head, there in touched.items():
        if not there:
            torch.testing.assert_close(after[:, head], before[:, head], rtol=0, atol=1e-6)
    assert memory.counts()["keys"] > 0


def used(dlm: HookedDLM, edit: Any, canvas: Canvas, size: int, memory: Memory | None = None) -> dict[str, Tensor]:
    """What layer 0 makes of an edit, and the logits."""
    kept: dict[str, list[Tensor]] = {PATTERN: [], MIXED: []}

    def note(name: str, tensor: Tensor, *, hook: Any) -> None:
        kept[name].append(tensor.clone())

    noting = [(f"blocks.0.{name}", watching(partial(note, name))) for name in kept]
    hooks = [*edit.fwd_hooks(dlm, canvas, memory), *noting]
    with blocks(size, dlm, "blocks"), torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        logits = dlm(canvas.tokens, attention_mask=canvas.valid)
    return {"logits": logits, PATTERN: torch.cat(kept[PATTERN], 2), MIXED: kept[MIXED][0]}


OPERATORS: dict[str, Any] = {
    "mask": MaskSinks,
    "zero": ZeroSinks,
    "bias": partial(BiasSinks, 2.0),
    "scale": partial(ScaleSinks, 0.5),
    "scale, renormalised": partial(ScaleSinks, 0.5, renormalise=True),
    "proportional": partial(Redistribute, "proportional"),
    "uniform": partial(Redistribute, "uniform"),
    "swap": Swap,
    "value": ZeroValue,
}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=12)
@given(
    family=st.sampled_from(FAMILIES),
    shape=lengths,
    size=sizes,
    seed=seeds,
    heads=st.sampled_from([None, None, [1], [0, -1]]),
    queries=queries,
    diagonal=st.booleans(),
    how=st.sampled_from("kqs"),
)
def test_an_edit_of_nobody_is_the_identity_bit_for_bit(
    model: Model,
    name: str,
    family: str,
    shape: list[int],
    size: int,
    seed: int,
    heads: list[int] | None,
    queries: Any,
    diagonal: bool,
    how: str,
) -> None:
    """Keys that no row has, no key in scope, rows that are done: as with NoOp on the same path."""
    dlm, canvas, memory = model(family), canvas_of(shape, seed), Memory()
    if how == "k":
        selector: Any = Fixed([max(shape) + 2])
    elif how == "q":
        selector = SameStep(SinkRule(None, top_k=2, queries="auto", keys="prompt"))
        canvas = Canvas(canvas.tokens, canvas.valid, canvas.masked, canvas.prompt & False, seeds=canvas.seeds)
    else:
        selector = SameStep(top_k=2)
        done = torch.zeros(len(shape), dtype=torch.bool)
        canvas = Canvas(canvas.tokens, canvas.valid, canvas.masked, canvas.prompt, seeds=canvas.seeds, active=done)
    scope: dict[str, Any] = {"where": Scope(heads=heads), "queries": queries, "diagonal": diagonal}
    ours = used(dlm, OPERATORS[name](selector, **scope), canvas, size, memory)
    theirs = used(dlm, NoOp(selector, **scope), canvas, size)
    for what, tensor in theirs.items():
        assert torch.equal(ours[what], tensor), what
    assert memory.counts()["keys"] == 0
    assert memory.counts()["mass"] == 0


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=12)
@given(family=st.sampled_from(FAMILIES), shape=lengths, size=sizes, seed=seeds, head=st.integers(0, HEADS - 1))
def test_other_heads_stay_bit_for_bit_in_blocks(
    model: Model, name: str, family: str, shape: list[int], size: int, seed: int, head: int
) -> None:
    """Of the weights and of what they mix."""
    dlm, canvas, where = model(family), canvas_of(shape, seed), Scope(layers=0, heads=head)
    selector, memory = SameStep(ranking(1)), Memory()
    ours = used(dlm, OPERATORS[name](selector, where=where), canvas, size, memory)
    theirs = used(dlm, NoOp(selector, where=where), canvas, size)
    others = [index for index in range(HEADS) if index != head]
    assert torch.equal(ours[PATTERN][:, others], theirs[PATTERN][:, others])
    mixed, plain = (each[MIXED].unflatten(-1, (HEADS, -1)) for each in (ours, theirs))
    assert torch.equal(mixed[:, :, others], plain[:, :, others])
    assert memory.counts()["keys"] == len(shape)


# ------------------------------------------------------------------------------------------------ padding and batches


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12)
@given(made=st.lists(edits, min_size=0, max_size=2), texts=prompts, size=sizes, steps=st.integers(2, 4), other=sizes)
def test_a_row_is_the_same_alone_and_padded(
    model: Model, family: str, made: list[Any], texts: list[list[int]], size: int, steps: int, other: int
) -> None:
    """Tokens, and the attention that its keys receive, whatever stands beside it and however it is cut into blocks."""
    dlm, edit = model(family), InOrder(*made) if made else None
    try:
        together = run(dlm, edit, "blocks", texts, size, steps)
    except ScopeError as refused:
        pass_over(refused)
    for row, text in enumerate(texts):
        with blocks(other, dlm, "blocks"):
            alone = denoise(
                dlm,
                [text],
                together.plan,
                interventions=[] if edit is None else [edit],
                probes=[probes.ReceivedAttention()],
                seed=[row],
                progress=False,
            )
        length = len(text) + NEW
        assert torch.equal(alone.tokens[0], together.tokens[row, -length:])
        assert torch.equal(alone.commit_step[0], together.commit_step[row, -length:])
        ours, theirs = alone.record["received"].to_numpy()[0], together.record["received"].to_numpy()[row]
        np.testing.assert_allclose(ours, theirs[: len(ours), ..., :length], **CLOSE)
        assert np.isnan(theirs[len(ours) :]).all()  # a row that was done earlier
