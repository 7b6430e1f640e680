"""Selectors: who is edited, against received attention, norms and records that are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import Canvas, HookedDLM, Plan, Scope, SinkRule, denoise, denoising_steps
from sinklens.analysis import rates as metrics
from sinklens.errors import ContentError, RecordError, ScopeError
from sinklens.hooks import Hook, Memory
from sinklens.interventions import (
    ByKeyNorm,
    ByToken,
    Evidence,
    Fixed,
    FromRecord,
    KeepKeys,
    LastQuery,
    MaskSinks,
    NoOp,
    PreviousStep,
    RandomKeys,
    SameStep,
    Selector,
    ZeroSinks,
)
from sinklens.probes import ReceivedAttention
from sinklens.sinks import Positions, Sight

INF = float("inf")
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7, 13]]
Model = Callable[..., HookedDLM]
either_way = pytest.mark.parametrize("family", ["LLaDA", "Llama"])


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model, made once: 4 query heads, and 1, 2 or 4 key heads."""
    return lru_cache(lambda family, kv_heads=2: tiny_model(family, kv_heads=kv_heads))


@dataclass(frozen=True, repr=False)
class Spy(Selector):
    """Hands on another selector and keeps what it finds, by (step, layer)."""

    of: Selector
    found: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)
    loop: Any = field(init=False, compare=False)
    identity = "a spy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "loop", self.of.loop)

    @property
    def looks_back(self) -> bool:
        """As inside."""
        return self.of.looks_back

    def counting(self, auto: Positions) -> Positions:
        """As inside."""
        return self.of.counting(auto)

    def candidates(self) -> Positions:
        """As inside."""
        return self.of.candidates()

    def ahead(self, layer: int, memory: Memory) -> bool:
        """As inside."""
        return self.of.ahead(layer, memory)

    def check(self, model: Any, canvas: Canvas) -> None:
        """As inside."""
        self.of.check(model, canvas)

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """As inside."""
        return self.of.hooks(model, layer, canvas, memory)

    def observe(self, evidence: Evidence) -> None:
        """As inside."""
        self.of.observe(evidence)

    def select(self, evidence: Evidence) -> Tensor:
        """As inside."""
        return self.of.select(evidence)

    def find(self, evidence: Evidence) -> Any:
        """As inside, and kept."""
        found = self.of.find(evidence)
        self.found[evidence.canvas.step, evidence.layer] = found[0].clone()
        return found


def ranking(k: int, queries: Any = "all", keys: Any = "all") -> SinkRule:
    """The k keys that receive most from some queries."""
    return SinkRule(None, top_k=k, queries=queries, keys=keys)


def plan_for(dlm: HookedDLM, new_tokens: int = 4) -> Plan:
    return Plan(new_tokens=new_tokens, suppress_eos="logits" if dlm.is_causal else None)


def run(dlm: HookedDLM, edit: Any, prompts: Any = None, **options: Any) -> Any:
    """All of a run of four tokens."""
    given = PROMPTS if prompts is None else prompts
    return denoise(dlm, given, plan_for(dlm), interventions=[edit], progress=False, **options)


@torch.no_grad()
def patterns(dlm: HookedDLM, canvas: Canvas) -> list[Tensor]:
    """The pattern of each layer of a forward without edits."""
    seen: list[Tensor] = []

    def keep(tensor: Tensor, *, hook: Any) -> None:
        seen.append(tensor.clone())

    with dlm.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", keep) for layer in range(2)]):
        dlm(canvas.tokens, attention_mask=canvas.valid)
    return seen


def real(canvas: Canvas, row: int) -> list[int]:
    return [i for i in range(canvas.tokens.shape[1]) if canvas.valid[row, i]]


def flags(canvas: Canvas, heads: int, choose: Callable[[int, int], list[int]]) -> Tensor:
    """[batch, head, key], true at what `choose(row, head)` lists."""
    out = torch.zeros(len(canvas.tokens), heads, canvas.tokens.shape[1], dtype=torch.bool)
    for b in range(len(out)):
        for h in range(heads):
            out[b, h, choose(b, h)] = True
    return out


def top(canvas: Canvas, pattern: Tensor, k: int, *, last: bool) -> Tensor:
    """The k keys with the largest sums over all real queries, or at the last."""

    def choose(b: int, h: int) -> list[int]:
        keys = real(canvas, b)
        queries = keys[-1:] if last else keys
        return sorted(keys, key=lambda j: -sum(float(pattern[b, h, i, j]) for i in queries))[:k]

    return flags(canvas, pattern.shape[1], choose)


def widened(found: Tensor, width: int) -> Tensor:
    """A baseline's earlier selection, on the longer sequence of now."""
    return torch.nn.functional.pad(found, (0, width - found.shape[-1]))


# Loops.


@pytest.mark.parametrize("selector", [SameStep, PreviousStep])
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_an_open_loop_reads_a_clean_forward_on_the_same_canvas(model: Model, family: str, selector: Any) -> None:
    """At each step of the edited run a forward without edits is run by hand on the canvas that the run saw."""
    dlm, shift = model(family), int(selector is PreviousStep)
    open_, closed = (Spy(selector(top_k=2, loop=loop)) for loop in ("open", "closed"))
    steps = list(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[ZeroSinks(open_)]))
    clean = [patterns(dlm, step.canvas) for step in steps]
    own = list(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[ZeroSinks(closed)]))
    clean_of_closed = [patterns(dlm, step.canvas) for step in own]
    compared = differs = 0
    for s in range(shift, 4):
        for layer in range(2):
            at = steps[s - shift].canvas
            width = steps[s].canvas.tokens.shape[1]
            expected = widened(top(at, clean[s - shift][layer], 2, last=dlm.is_causal), width)
            assert torch.equal(open_.found[s, layer], expected), (s, layer)
            at = own[s - shift].canvas
            other = widened(top(at, clean_of_closed[s - shift][layer], 2, last=dlm.is_causal), width)
            same = torch.equal(closed.found[s, layer], other)
            # Layer 0 reads what no edit has touched; above it the closed loop reads the edited run.
            assert same or layer == 1
            differs += not same
            compared += 1
    assert compared == 2 * (4 - shift)
    assert differs
    if shift:
        assert not open_.found[0, 0].any()


def test_a_closed_loop_reads_before_its_own_edit(model: Model) -> None:
    """Layer 0 of each step of the edited run, where a masked key would have no mass if read after the edit."""
    dlm, spy = model("LLaDA"), Spy(SameStep(top_k=1))
    for step in denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[MaskSinks(spy)]):
        assert torch.equal(spy.found[step.index, 0], top(step.canvas, patterns(dlm, step.canvas)[0], 1, last=False))


@either_way
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_the_first_step_edits_nothing_or_its_own_sinks(model: Model, family: str, loop: Any) -> None:
    dlm = model(family)
    for first in ("none", "same"):
        spy = Spy(PreviousStep(top_k=2, first=first, loop=loop))
        step = next(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[ZeroSinks(spy)]))
        expected = top(step.canvas, patterns(dlm, step.canvas)[0], 2, last=dlm.is_causal)
        assert torch.equal(spy.found[0, 0], expected & (first == "same"))


def test_an_open_loop_costs_a_second_forward_at_its_steps_only(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm, calls = model("LLaDA"), []
    forward = HookedDLM.forward

    def counted(self: HookedDLM, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HookedDLM, "forward", counted)
    run(dlm, MaskSinks(PreviousStep(top_k=1, loop="open"), where=Scope(steps=[2])))
    assert len(calls) == 4 + 2  # steps 1 (looking) and 2
    calls.clear()
    run(dlm, MaskSinks(PreviousStep(top_k=1)))
    assert len(calls) == 4


def test_an_open_loop_needs_a_clean_forward_each_time(model: Model) -> None:
    """By hand, too; what the last one showed is not taken for this one's."""
    dlm, tokens = model("LLaDA"), torch.tensor(PROMPTS[1:2])
    spy = Spy(SameStep(top_k=1, loop="open"))
    edit, memory = MaskSinks(spy), Memory()
    first = ZeroSinks(Fixed([0, 2, 3]), where=Scope(layers=[0]))  # so that layer 1 is another one than in the clean run
    for _ in range(2):
        with pytest.raises(ScopeError, match="needs a clean forward at the same canvas"):
            edit.hooks(dlm, None, memory)
        with torch.no_grad(), dlm.hooks(fwd_hooks=edit.clean(dlm, None, memory)):
            dlm(tokens)
        with torch.no_grad(), dlm.hooks(fwd_hooks=[*first.fwd_hooks(dlm), *edit.hooks(dlm, None, memory)]):
            dlm(tokens)
    canvas = Canvas.plain(torch.ones_like(tokens, dtype=torch.bool))
    assert torch.equal(spy.found[0, 1], top(canvas, patterns(dlm, canvas_of(PROMPTS[1:2]))[1], 1, last=False))
    with torch.no_grad(), dlm.hooks(fwd_hooks=edit.clean(dlm, None, memory)):
        dlm(tokens)
    with torch.no_grad(), dlm.hooks(fwd_hooks=edit.hooks(dlm, None, memory)):  # and the hooks used a second time
        dlm(tokens)
        with pytest.raises(ScopeError, match="needs a clean forward at the same canvas"):
            dlm(tokens)


@pytest.mark.parametrize("loop", ["open", "closed"])
@pytest.mark.parametrize("first", ["none", "same"])
@pytest.mark.parametrize("family", ["LLaDA", "Qwen3"])
def test_the_last_query_is_a_set_of_queries(model: Model, family: str, first: Any, loop: Any) -> None:
    dlm = model(family)
    one = Spy(LastQuery(top_k=2, first=first, loop=loop))
    other = Spy(PreviousStep(ranking(2, "last"), first=first, loop=loop))
    tokens = [run(dlm, MaskSinks(spy), seed=1).tokens for spy in (one, other)]
    assert torch.equal(*tokens)
    assert one.found.keys() == other.found.keys()
    for place, found in one.found.items():
        assert torch.equal(found, other.found[place])
    if family == "LLaDA" and first == "same":
        every = Spy(PreviousStep(top_k=2, first=first, loop=loop))
        run(dlm, MaskSinks(every))
        assert not torch.equal(every.found[0, 0], one.found[0, 0])


@pytest.mark.parametrize("which", ["masked", "prompt", "response", "committed", "last"])
def test_the_queries_of_the_rule_count_and_its_keys_are_eligible(model: Model, which: Any) -> None:
    """Nothing else says whose attention counts: the edit's own queries only limit what is touched."""
    dlm = model("LLaDA")
    canvas = next(denoising_steps(dlm, PROMPTS, plan_for(dlm))).canvas
    pattern = patterns(dlm, canvas)[0]
    chosen_queries = {
        "masked": lambda b, i: bool(canvas.masked[b, i]),
        "prompt": lambda b, i: bool(canvas.prompt[b, i]),
        "response": lambda b, i: not canvas.prompt[b, i],
        "committed": lambda b, i: not canvas.masked[b, i],
        "last": lambda b, i: i == canvas.tokens.shape[1] - 1,
    }[which]

    def choose(b: int, h: int) -> list[int]:
        queries = [i for i in real(canvas, b) if chosen_queries(b, i)]
        keys = [j for j in real(canvas, b) if canvas.prompt[b, j]]
        return sorted(keys, key=lambda j: -sum(float(pattern[b, h, i, j]) for i in queries))[:1]

    expected = flags(canvas, 4, choose)
    for touched in ("all", "masked"):
        spy = Spy(SameStep(ranking(1, which, "prompt")))
        run(dlm, NoOp(spy, queries=touched))
        assert torch.equal(spy.found[0, 0], expected)


def test_top_k_counts_all_queries_or_the_last_one_and_a_rule_what_it_says(model: Model) -> None:
    """Shorthand and "auto": the paper's protocol for each kind of model. A rule's own "all" stays all."""
    for family in ("LLaDA", "Llama"):
        dlm = model(family)
        step = next(denoising_steps(dlm, PROMPTS, plan_for(dlm)))
        pattern, canvas = patterns(dlm, step.canvas)[0], step.canvas
        for selector, last in (
            (SameStep(top_k=1), dlm.is_causal),
            (SameStep(ranking(1, "auto")), dlm.is_causal),
            (SameStep(ranking(1)), False),
            (SameStep(ranking(1, "last")), True),
        ):
            spy = Spy(selector)
            run(dlm, NoOp(spy))
            assert torch.equal(spy.found[0, 0], top(canvas, pattern, 1, last=last)), (family, selector)


def test_a_selector_that_two_edits_share_works_for_both(model: Model) -> None:
    """One object, two edits of other heads: the second must see the step before as the first does."""
    dlm, shared = model("LLaDA"), PreviousStep(top_k=1)
    edits = [ZeroSinks(shared, where=Scope(heads=[head])) for head in (0, 1)]
    one, other = denoise(dlm, PROMPTS, plan_for(dlm), interventions=edits, progress=False).memories

    assert one.counts()["keys"] == other.counts()["keys"] == 3 * 3 * 2


# Places, tokens, norms.


def selected(selector: Selector, canvas: Canvas, received: Tensor) -> Tensor:
    eligible = canvas.valid[:, None].expand(received.shape)
    evidence = Evidence(None, 0, canvas, Sight(canvas.valid), "all", received, eligible, Memory())
    return selector.find(evidence)[0]


def canvas_of(rows: list[list[int]], step: int = 0) -> Canvas:
    width = max(map(len, rows))
    tokens = torch.tensor([[1] * (width - len(row)) + row for row in rows])
    valid = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Canvas(tokens, valid, valid & (tokens == 62), valid & (tokens != 62), step, tuple(range(len(rows))))


def test_fixed_counts_from_the_first_real_token() -> None:
    canvas = canvas_of([[5, 6, 7, 8, 9], [5, 6, 7]])
    received = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for positions, expected in [(0, [[0], [2]]), ([0, 2], [[0, 2], [2, 4]]), ((2, 2, 1), [[1, 2], [3, 4]])]:
        assert torch.equal(
            selected(Fixed(positions), canvas, received), flags(canvas, 3, lambda b, h, e=expected: e[b])
        )


@pytest.mark.usefixtures("no_forward")
def test_what_no_row_can_have_is_refused_before_any_forward(model: Model) -> None:
    dlm = model("LLaDA")
    for selector, match in [
        (Fixed([0, 6]), r"Fixed\(\(0, 6\)\): the shortest row has positions 0 to 5"),
        (SameStep(top_k=7), r"SameStep\(top_k=7\) asks for 7 keys, and the shortest row has 6"),
        (PreviousStep(SinkRule(1.0, top_k=7)), "asks for 7 keys, and the shortest row has 6"),
        (LastQuery(top_k=9), "asks for 9 keys"),
        (ByKeyNorm(8), r"ByKeyNorm\(8\) asks for 8 keys"),
        (ByToken([62], top_k=7), "asks for 7 keys"),
        (RandomKeys(SameStep(top_k=7)), "asks for 7 keys"),
        (RandomKeys(Fixed(9)), "the shortest row has positions 0 to 5"),
    ]:
        with pytest.raises(ScopeError, match=match):
            run(dlm, MaskSinks(selector))


def test_tokens_are_found_where_they_stand_now(model: Model) -> None:
    """The mask token, from a class or as an id: exactly the positions that are still masked, at each step."""
    dlm = model("LLaDA")
    for what in ("mask", [62]):
        spy = Spy(ByToken(what))
        for step in denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[ZeroSinks(spy)]):
            assert torch.equal(spy.found[step.index, 1], step.canvas.masked[:, None].expand(-1, 4, -1))
    ids = Spy(ByToken([5, 40, 7]))
    step = next(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[ZeroSinks(ids)]))
    assert torch.equal(ids.found[0, 0], flags(step.canvas, 4, lambda b, h: [[3], [5], [4]][b]))


def test_tokens_are_ranked_by_all_queries(model: Model) -> None:
    """Also in a causal model, whose other selectors read the last query."""
    for family in ("LLaDA", "Llama"):
        dlm, spy = model(family), Spy(ByToken([5, 17, 33, 21, 50, 7, 13], top_k=1))
        step = next(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[NoOp(spy)]))
        pattern, canvas = patterns(dlm, step.canvas)[0], step.canvas

        def choose(b: int, h: int, canvas: Canvas = canvas, pattern: Tensor = pattern) -> list[int]:
            keys = [j for j in real(canvas, b) if int(canvas.tokens[b, j]) in (5, 17, 33, 21, 50, 7, 13)]
            return [max(keys, key=lambda j: float(pattern[b, h, real(canvas, b), j].sum()))]

        assert torch.equal(spy.found[0, 0], flags(canvas, 4, choose))


def test_classes_of_tokens_come_from_the_vocabulary() -> None:
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    canvas = next(denoising_steps(dlm, "dolko xe dolko xo", Plan(new_tokens=2))).canvas
    texts = dlm.token_strings(canvas.tokens[0].tolist())
    spy = Spy(ByToken("word"))
    next(denoising_steps(dlm, "dolko xe dolko xo", Plan(new_tokens=2), interventions=[NoOp(spy)]))
    words = [j for j, text in enumerate(texts) if text.strip().isalpha()]
    assert words
    assert torch.equal(spy.found[0, 0], flags(canvas, dlm.n_heads, lambda b, h: words))


def test_without_a_tokenizer_a_class_is_refused_before_any_forward(model: Model, no_forward: None) -> None:
    with pytest.raises(ValueError, match="'punctuation' needs a tokenizer"):
        run(model("LLaDA"), MaskSinks(ByToken("punctuation")))
    with pytest.raises(ValueError, match="'verbs' is unknown"):
        run(model("LLaDA"), MaskSinks(ByToken("verbs")))
    with pytest.raises(ScopeError, match="needs to know the tokens"):
        MaskSinks(ByToken([5])).fwd_hooks(model("LLaDA"))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(
    ("family", "kv_heads"), [("LLaDA", 2), ("Dream", 1), ("A2D-Qwen3", 4), ("Llama", 2), ("GPT-2", 4), ("DiffuGPT", 4)]
)
def test_key_norms_by_hand(model: Model, family: str, kv_heads: int, largest: bool) -> None:
    dlm, spy = model(family, kv_heads), Spy(ByKeyNorm(2, largest=largest))
    keys: list[Tensor] = []

    def keep(tensor: Tensor, *, hook: Any) -> None:
        keys.append(tensor.clone())

    with dlm.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_rot_k", keep) for layer in range(2)]):
        step = next(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[NoOp(spy)]))
    for layer in range(2):

        def choose(b: int, h: int, layer: int = layer) -> list[int]:
            norms = {j: keys[layer][b, j, h // (4 // kv_heads)].square().sum() ** 0.5 for j in real(step.canvas, b)}
            return sorted(norms, key=lambda j: float(norms[j]), reverse=largest)[:2]

        found, expected = spy.found[0, layer], flags(step.canvas, 4, choose)
        if layer == 0 and not dlm.is_causal:  # equal tokens, mask tokens above all, have equal keys: any of them
            continue
        assert torch.equal(found, expected)


# Records.


def record_of(dlm: HookedDLM, prompts: Any, seed: Any = 0, **probe: Any) -> Any:
    """A run's record, with what keys receive from all queries unless said otherwise."""
    plan = replace(plan_for(dlm), temperature=1.0)
    return denoise(dlm, prompts, plan, probes=[ReceivedAttention(**probe)], seed=seed, progress=False).record


def on_canvas(record: Any, row: int, step: int, layer: int, rule: SinkRule, width: int, start: int) -> Tensor:
    """What the offline rule says of one row of a record, on the canvas."""
    found = torch.from_numpy(metrics.sinks(record, rule).isel(prompt=row, step=step, layer=layer).to_numpy())
    out = torch.zeros(len(found), width, dtype=torch.bool)
    size = min(width - start, found.shape[-1])
    out[:, start : start + size] = found[:, :size]
    return out


@pytest.mark.parametrize("shift", [0, 1, -1])
@either_way
def test_a_record_says_the_same_in_every_batch(model: Model, family: str, shift: int) -> None:
    """Other orders, other padding, and another row's sinks with a shift."""
    dlm, rule = model(family), ranking(2)
    record = record_of(dlm, PROMPTS, seed=[1, 2, 3])
    for order in ([0, 1, 2], [2, 0], [1], [2, 1, 0]):
        spy = Spy(FromRecord(record, rule, shift=shift))
        steps = list(
            denoising_steps(dlm, [PROMPTS[i] for i in order], plan_for(dlm), interventions=[ZeroSinks(spy)], seed=7)
        )
        for step in steps:
            for at, row in enumerate(order):
                start = max(len(PROMPTS[i]) for i in order) - len(PROMPTS[row])
                width = step.canvas.tokens.shape[1]
                for layer in range(2):
                    expected = on_canvas(record, (row + shift) % 3, step.index, layer, rule, width, start)
                    expected &= step.canvas.valid[at]
                    assert torch.equal(spy.found[step.index, layer][at], expected)
                    assert expected.any()


@either_way
def test_a_record_counts_the_queries_that_its_model_has(model: Model, family: str) -> None:
    """The shorthand is the protocol of the record's model; where the record lacks it, that is said, not guessed."""
    dlm = model(family)
    record = record_of(dlm, PROMPTS, queries=["all", "last"])
    spy, expected = Spy(FromRecord(record, top_k=2)), ranking(2, "last" if dlm.is_causal else "all")
    run(dlm, NoOp(spy))
    found, theirs = spy.found[0, 0][0], on_canvas(record, 0, 0, 0, expected, spy.found[0, 0].shape[-1], 3)
    assert theirs.any()
    assert torch.equal(found, theirs)
    if dlm.is_causal:
        with pytest.raises(RecordError, match="last"):
            FromRecord(record_of(dlm, PROMPTS), top_k=2)


def test_a_prompt_that_occurs_twice_is_told_by_its_seed(model: Model) -> None:
    dlm = model("LLaDA")
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[2]]
    record = record_of(dlm, prompts, seed=[4, 5, 5])
    rule, spy = ranking(1), Spy(FromRecord(record, top_k=1))
    list(denoising_steps(dlm, [PROMPTS[0]] * 2, plan_for(dlm), interventions=[NoOp(spy)], seed=[5, 4]))
    seen = [torch.stack([spy.found[s, layer][b] for s in range(4) for layer in range(2)]) for b in range(2)]
    assert not torch.equal(*seen)
    for b, row in enumerate([1, 0]):
        expected = [on_canvas(record, row, s, layer, rule, 7, 0) for s in range(4) for layer in range(2)]
        assert torch.equal(seen[b], torch.stack(expected))
    with pytest.raises(RecordError, match="is not in the record"):
        run(dlm, NoOp(FromRecord(record, top_k=1)), [PROMPTS[1]])
    with pytest.raises(RecordError, match="not in the record"):
        run(dlm, NoOp(FromRecord(record, top_k=1)), [PROMPTS[0]], seed=9)
    twice = record_of(dlm, [PROMPTS[0]] * 2, seed=3)
    with pytest.raises(RecordError, match="is 2 times in the record"):
        run(dlm, NoOp(FromRecord(twice, top_k=1)), [PROMPTS[0]], seed=3)


def test_a_record_of_fewer_steps_or_layers(model: Model) -> None:
    dlm = model("LLaDA")
    record = record_of(dlm, PROMPTS).isel(step=[0, 2])
    spy = Spy(FromRecord(record, top_k=1))
    memory = run(dlm, MaskSinks(spy)).memories[0]
    assert [bool(spy.found[s, 0].any()) for s in range(4)] == [True, False, True, False]
    assert memory.counts()["keys"] == 2 * 3 * 2 * 4
    one = record_of(dlm, PROMPTS, where=Scope(layers=[1]))
    assert run(dlm, MaskSinks(FromRecord(one, top_k=1), where=Scope(layers=[1]))).finished
    with pytest.raises(ScopeError, match=r"knows the layers \[1\] and not 0; narrow the edit's scope"):
        run(dlm, MaskSinks(FromRecord(one, top_k=1)))
    with pytest.raises(ScopeError, match="needs to know the prompts"):
        MaskSinks(FromRecord(one, top_k=1), where=Scope(layers=[1])).fwd_hooks(dlm)


def test_a_record_of_another_model_or_a_useless_shift_is_refused(model: Model) -> None:
    dlm = model("LLaDA")
    record = record_of(dlm, PROMPTS)
    for shift in (3, -3, 6):
        with pytest.raises(ValueError, match=f"shift={shift} comes back to the own row: the record has 3 prompts"):
            FromRecord(record, top_k=1, shift=shift)
    with pytest.raises(ScopeError, match="has 2 heads per layer, the model 4"):
        run(dlm, MaskSinks(FromRecord(record.isel(head=[0, 1]), top_k=1)))
    with pytest.raises(RecordError, match="no received attention"):
        FromRecord(record.drop_vars("received"), top_k=1)


@either_way
def test_a_record_works_where_gaps_are_filled(model: Model, family: str) -> None:
    """In a baseline, what stands right of the next gap is not seen yet, but the prompt is the same prompt."""
    dlm, prompts, plan = model(family), [[5, 17, 62, 33, 62, 8], [9, 62, 7, 50, 62]], Plan(new_tokens=0)
    record = denoise(dlm, prompts, plan, probes=[ReceivedAttention()], progress=False).record
    edit = NoOp(FromRecord(record, ranking(1)))
    memory = denoise(dlm, prompts, plan, interventions=[edit], progress=False).memories[0]
    assert memory.counts()["keys"] == 2 * 2 * 2 * 4
    # One that begins as another does, and differs behind the gap: told apart by the canvas that the run begins with.
    prompts = [[5, 17, 62, 33], [5, 17, 62, 34]]
    record = denoise(dlm, prompts, plan, probes=[ReceivedAttention()], progress=False).record
    spy = Spy(FromRecord(record, ranking(1)))
    denoise(dlm, prompts[::-1], plan, interventions=[NoOp(spy)], progress=False)
    for b in range(2):
        assert torch.equal(spy.found[0, 1][b], on_canvas(record, 1 - b, 0, 1, ranking(1), spy.found[0, 1].shape[-1], 0))


def test_records_that_differ_are_different_selectors(model: Model) -> None:
    """By content, by ==, and by the names that people read."""
    dlm = model("LLaDA")
    one, other = record_of(dlm, PROMPTS, seed=1), record_of(dlm, PROMPTS, seed=2)
    selectors = [FromRecord(r, top_k=k, shift=s) for r in (one, other) for k in (1, 2) for s in (0, 1)]
    for tell in (lambda each: each.digest, repr, lambda each: each):
        assert len({tell(each) for each in selectors}) == len(selectors)
    assert FromRecord(one, top_k=1) == FromRecord(one.copy(deep=True), top_k=1)
    with pytest.raises(ContentError, match="a record cannot be made from its description"):
        Selector.from_dict(selectors[0].to_dict())


# Online and offline.

RULES = [
    SinkRule(0.3, "share"),
    SinkRule(0.2, "share", top_k=1),
    SinkRule(0.3, "share", queries="last"),
    SinkRule(0.3, "share", queries="prompt"),
    SinkRule(0.25, "share", queries="response", keys="prompt"),
    SinkRule(0.8),
    SinkRule(0.1, "mean"),
    SinkRule(5.0, "percent"),
    SinkRule(1.2, "zscore"),
    SinkRule(0.5, per="mean"),
    SinkRule(0.5, keys="response"),
    SinkRule(None, top_k=3, queries="last"),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@either_way
def test_a_rule_says_the_same_online_and_of_a_record(model: Model, family: str, rule: SinkRule) -> None:
    dlm = model(family)
    spy = Spy(SameStep(rule))
    probe = ReceivedAttention(queries=rule.queries)
    steps, offline = [], run(dlm, NoOp(spy), probes=[probe]).record
    steps = list(denoising_steps(dlm, PROMPTS, plan_for(dlm)))
    found = metrics.sinks(offline, rule).transpose("prompt", "step", "layer", "head", "key").to_numpy()
    some = False
    for step in steps:
        for b, start in enumerate([3, 0, 4]):
            for layer in range(2):
                ours = spy.found[step.index, layer][b, :, start:]
                theirs = torch.from_numpy(found[b, step.index, layer])
                assert torch.equal(ours, theirs[:, : ours.shape[1]]), (step.index, layer, b)
                assert not theirs[:, ours.shape[1] :].any()
                some = some or bool(ours.any())
    empty = family == "Llama" and rule.queries == "response"
    assert some or empty


@pytest.mark.parametrize("queries", ["all", "last"])
def test_a_share_counts_the_queries_that_see_the_key(model: Model, queries: Any) -> None:
    """Causal, by hand: the column's sum over the counted queries at or right of the key."""
    dlm, spy = model("Llama"), Spy(SameStep(SinkRule(0.3, "share", queries=queries)))
    step = next(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[NoOp(spy)]))
    pattern, canvas = patterns(dlm, step.canvas)[0], step.canvas

    def choose(b: int, h: int) -> list[int]:
        counted = real(canvas, b) if queries == "all" else real(canvas, b)[-1:]
        found = []
        for j in real(canvas, b):
            see = [i for i in counted if i >= j]
            if sum(float(pattern[b, h, i, j]) for i in see) / len(see) > 0.3:
                found.append(j)
        return found

    expected = flags(canvas, 4, choose)
    assert expected.any()
    assert torch.equal(spy.found[0, 0], expected)


# Fewer than asked for.


@pytest.mark.parametrize("fewer", ["take", "none"])
@pytest.mark.parametrize("kind", [SameStep, PreviousStep, LastQuery])
def test_fewer_than_top_k_are_taken_or_left_and_counted(model: Model, kind: Any, fewer: Any) -> None:
    dlm, rule = model("LLaDA"), SinkRule(0.25, "share", top_k=2, queries="last")
    loose = Spy(kind(rule))
    run(dlm, NoOp(loose))
    canvases = [step.canvas for step in denoising_steps(dlm, PROMPTS, plan_for(dlm))]
    spy = Spy(kind(rule, fewer=fewer))
    counts = run(dlm, NoOp(spy)).memories[0].counts()
    short = without = some = 0
    for place, found in loose.found.items():
        number = found.sum(-1)
        expected = found if fewer == "take" else found & (number == 2)[..., None]
        assert torch.equal(spy.found[place], expected)
        short += int(((number < 2) & expected.any(-1)).sum())
        some += int((number == 1).sum())
        without += int((~expected.any(-1)).sum())
    assert some > 0
    assert len(canvases) == 4
    assert counts["heads_with_fewer"] == short
    assert counts["heads_without_sink"] == without
    # "Counted either way": with fewer="none" the heads are among those without a sink.
    assert (fewer == "take") == (counts["heads_with_fewer"] > 0)


def test_tokens_that_are_too_few_are_left_if_so_asked(model: Model) -> None:
    dlm = model("LLaDA")
    for fewer, per_step in (("take", [3, 3, 2, 1]), ("none", [3, 3, 0, 0])):
        memory = run(dlm, NoOp(ByToken([62], top_k=3, fewer=fewer))).memories[0]
        assert memory.counts()["keys"] == sum(per_step) * 3 * 2 * 4


@pytest.mark.parametrize("keys", ["masked", "committed", "prompt", "response", "last"])
def test_selectors_without_a_rule_keep_to_their_keys(model: Model, keys: Any) -> None:
    dlm = model("LLaDA")
    for make in (lambda **more: Fixed([0, 1, 3], **more), lambda **more: ByToken([5, 33, 7, 62], **more)):
        every, some = Spy(make()), Spy(make(keys=keys))
        for spy in (every, some):
            run(dlm, NoOp(spy))
        canvas = next(denoising_steps(dlm, PROMPTS, plan_for(dlm))).canvas
        among = canvas.positions(keys)[:, None]
        assert torch.equal(some.found[0, 1], every.found[0, 1] & among)
    spy, counts = Spy(ByKeyNorm(2, keys=keys)), canvas.positions(keys).sum(-1)
    run(dlm, NoOp(spy))
    assert not (spy.found[0, 1] & ~among).any()
    assert torch.equal(spy.found[0, 1].sum(-1), counts.clamp(max=2)[:, None].expand(-1, 4))


# What cannot be meant.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SameStep(SinkRule(), top_k=1), "give a rule or top_k, not both"),
        (lambda: SameStep(top_k=0), "top_k=0 must be a whole number of at least 1"),
        (lambda: SameStep(top_k=1, fewer="some"), "fewer='some'"),
        (lambda: SameStep(top_k=1, loop="ajar"), "loop='ajar'"),
        (lambda: PreviousStep(top_k=1, first="last"), "first='last'"),
        (lambda: LastQuery(top_k=1, first="last"), "first='last'"),
        (LastQuery, r"LastQuery\(.*epsilon=3\.0.*at most 1"),
        (lambda: SameStep(SinkRule(3.0, queries="last")), "can never fire"),
        (lambda: LastQuery(SinkRule(0.3, queries="masked")), "counts masked queries"),
        (lambda: Fixed([]), r"positions=\[\]"),
        (
            lambda: Fixed(-1),
            r"positions=-1 must be a whole number of at least 0 or a list of whole numbers of at least 0",
        ),
        (lambda: Fixed([0, -2]), r"positions=\[0, -2\]"),
        (lambda: ByToken([]), r"ByToken\(\(\)\) names no token"),
        (lambda: ByToken([5], top_k=0), "top_k=0"),
        (lambda: ByToken([5], fewer="some"), "fewer='some'"),
        (lambda: ByKeyNorm(0), "top_k=0"),
        (lambda: KeepKeys(0.5, "age"), "by='age'"),
        (lambda: Fixed(0, keys="some"), "keys='some'"),
        (lambda: ByToken([5], keys="some"), "keys='some'"),
        (lambda: ByKeyNorm(1, keys="some"), "keys='some'"),
    ],
)
def test_a_bad_argument_is_refused_and_quoted(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def every_selector() -> list[Selector]:
    """Ones that differ in one thing each."""
    return [
        *(
            kind(top_k=k, fewer=fewer, loop=loop)
            for kind in (SameStep, PreviousStep, LastQuery)
            for k in (1, 2)
            for fewer in ("take", "none")
            for loop in ("open", "closed")
        ),
        *(SameStep(rule) for rule in RULES),
        *(PreviousStep(ranking(1, queries)) for queries in ("all", "masked", "last")),
        SameStep(SinkRule(-1.000001)),
        SameStep(SinkRule(-1.0000001)),
        Fixed(0),
        Fixed([0, 1]),
        Fixed(0, keys="masked"),
        ByToken("mask"),
        ByToken("digit"),
        ByToken([5]),
        ByToken([5], top_k=1),
        ByToken([5], top_k=2, fewer="none"),
        ByKeyNorm(),
        ByKeyNorm(2),
        ByKeyNorm(largest=True),
    ]


def test_selectors_that_differ_differ_in_content_and_name() -> None:
    selectors = every_selector()
    for tell in (lambda each: each.digest, repr, lambda each: each):
        assert len({tell(each) for each in selectors}) == len(selectors)


def test_one_selector_has_one_content_however_it_is_written() -> None:
    for one, other in (
        (Fixed(0), Fixed([0])),
        (ByToken(5), ByToken((5,))),
        (SameStep(top_k=2), SameStep(ranking(2, "auto"))),
        (LastQuery(top_k=2), LastQuery(ranking(2, "last"))),
        (LastQuery(SinkRule(0.5)), LastQuery(SinkRule(0.5, queries="last"))),
    ):
        assert one == other
        assert one.digest == other.digest
        assert repr(one) == repr(other)
    assert PreviousStep(ranking(2, "last")) != LastQuery(top_k=2)
    for selector in every_selector():
        again = replace(selector)  # pyright: ignore[reportArgumentType]
        assert again == selector
        assert again.digest == selector.digest


def test_a_model_that_is_not_a_hooked_dlm_tells_its_direction_by_its_config() -> None:
    """As much of a stock bridge as a selector asks for."""
    canvas = canvas_of([[5, 6, 7, 8]])
    scores = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    pattern = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -INF).softmax(-1)
    for direction, last in (("causal", True), ("bidirectional", False)):
        bridge = SimpleNamespace(cfg=SimpleNamespace(n_layers=1, attention_dir=direction))
        spy = Spy(SameStep(top_k=1))
        ((_, function),) = NoOp(spy).fwd_hooks(bridge, canvas)
        function(pattern, hook=None)
        assert torch.equal(spy.found[0, 0], top(canvas, pattern, 1, last=last))
