"""Composed edits: in order on the same rows, and side by side on their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import Canvas, HookedDLM, Plan, Scope, SinkRule, denoise, denoising_steps
from sinklens.errors import ScopeError
from sinklens.hooks import Memory
from sinklens.interventions import (
    BiasSinks,
    ByKeyNorm,
    Fixed,
    InOrder,
    KeepKeys,
    MaskSinks,
    NoiseValue,
    NoOp,
    NullKey,
    PreviousStep,
    Redistribute,
    SameStep,
    ScaleSinks,
    SideBySide,
    SinkToken,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.probes import Pattern, ReceivedAttention

PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40]]
Model = Callable[..., HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model of a family, made once."""
    return lru_cache(lambda family, kv_heads=2: tiny_model(family, kv_heads=kv_heads))


def plan_for(dlm: HookedDLM, new_tokens: int = 4) -> Plan:
    return Plan(new_tokens=new_tokens, temperature=0.7, suppress_eos="logits" if dlm.is_causal else None)


def run(dlm: HookedDLM, edits: Any, prompts: Any = None, seed: Any = 3, **options: Any) -> Any:
    given = PROMPTS if prompts is None else prompts
    return denoise(dlm, given, plan_for(dlm), interventions=edits, seed=seed, progress=False, **options)


def row_canvas(tokens: list[int], step: int = 0, rows: int = 1) -> Canvas:
    ids = torch.tensor([tokens] * rows)
    on = torch.ones_like(ids, dtype=torch.bool)
    return Canvas(ids, on, ids == 62, ids != 62, step, (1,) * rows)


@torch.no_grad()
def forward(dlm: HookedDLM, edit: Any, step: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Logits and the final pattern of each layer, of one forward."""
    canvas = row_canvas([5, 17, 9, 33, 62, 61], step)
    seen: list[Tensor] = []

    def look(pattern: Tensor, *, hook: Any) -> None:
        seen.append(pattern.clone())

    watch = [(f"blocks.{layer}.attn.hook_pattern", look) for layer in range(2)]
    with dlm.hooks(fwd_hooks=[*edit.fwd_hooks(dlm, canvas), *watch]):
        return dlm(canvas.tokens, attention_mask=canvas.valid), seen


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


# In order.


def test_the_second_sees_what_the_first_left(model: Model) -> None:
    """Give 0 to 1 and then 1 to 2, or the other way around: where the mass ends is known."""
    dlm = model("LLaDA")
    _, plain = forward(dlm, NoOp(Fixed(0)))
    one, two = partial(Redistribute, 1, Fixed(0)), partial(Redistribute, 2, Fixed(1))
    _, ahead = forward(dlm, InOrder(one(), two()))
    _, back = forward(dlm, InOrder(two(), one()))
    was = plain[0]
    zero = torch.zeros_like(was[..., 0])
    rest = [was[..., j] for j in (3, 4, 5)]
    same(ahead[0], torch.stack([zero, zero, was[..., 2] + was[..., 1] + was[..., 0], *rest], -1))
    same(back[0], torch.stack([zero, was[..., 0], was[..., 2] + was[..., 1], *rest], -1))


def test_the_second_selector_reads_what_the_first_left(model: Model) -> None:
    """The largest, and then the largest of what remains, which need not be the second of all."""
    dlm = model("LLaDA")
    _, plain = forward(dlm, NoOp(Fixed(0)))
    _, both = forward(dlm, InOrder(MaskSinks(SameStep(top_k=1)), MaskSinks(SameStep(top_k=1))))
    for h in range(4):
        was = plain[0][0, h].double()
        gone: list[int] = []
        for _ in range(2):
            left = was.clone()
            left[:, gone] = 0
            left = left / left.sum(-1, keepdim=True)
            gone.append(max(range(6), key=lambda j, left=left: float(left[:, j].sum())))
        expected = was.clone()
        expected[:, gone] = 0
        torch.testing.assert_close(
            both[0][0, h].double(), expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4
        )


def test_scores_come_before_the_pattern_whatever_the_order(model: Model) -> None:
    dlm = model("LLaDA")
    for pair in (
        (MaskSinks(Fixed(1)), ZeroSinks(Fixed(2))),
        (BiasSinks(1.0, Fixed(1)), Redistribute("uniform", Fixed(1))),
        (MaskSinks(Fixed(1)), Swap(Fixed(0))),
        (MaskSinks(Fixed(1)), ZeroValue(Fixed(2))),
    ):
        ahead, back = (forward(dlm, InOrder(*edits)) for edits in (pair, pair[::-1]))
        assert torch.equal(ahead[0], back[0])
        assert not torch.equal(ahead[0], forward(dlm, pair[0])[0])


@pytest.mark.parametrize("edit", [NullKey(1.0), SinkToken(44)], ids=repr)
def test_an_extra_key_competes_with_the_scores_that_are_left(model: Model, edit: Any) -> None:
    """Whatever the order: masking is an edit of the scores, and the extra key takes part in their softmax."""
    dlm, mask = model("LLaDA"), MaskSinks(Fixed(2))
    logits, after = forward(dlm, InOrder(mask, edit))
    other, before = forward(dlm, InOrder(edit, mask))
    assert float(after[0].sum(-1).min()) < 0.99

    same(before[0], after[0])
    same(logits, other)


@pytest.mark.parametrize("first", [ZeroSinks, partial(ScaleSinks, 0.3), partial(Redistribute, "uniform")])
def test_values_come_after_the_pattern_whatever_the_order(model: Model, first: Any) -> None:
    """The output of a key without value is nothing, however much attention it has in the end."""
    dlm = model("LLaDA")
    ahead, _ = forward(dlm, InOrder(first(Fixed(2)), ZeroValue(Fixed(2))))
    back, _ = forward(dlm, InOrder(ZeroValue(Fixed(2)), first(Fixed(2))))

    same(back, ahead)


@pytest.mark.parametrize("edit", [ZeroValue, partial(NoiseValue, 0.5)])
def test_two_edits_of_values_may_not_meet(model: Model, edit: Any) -> None:
    """Both would take the original value away."""
    dlm = model("LLaDA")
    with pytest.raises(ScopeError, match="both edit values"):
        forward(dlm, InOrder(edit(Fixed(2)), edit(Fixed(2))))
    apart, _ = forward(dlm, InOrder(edit(Fixed(2), where=Scope(heads=0)), edit(Fixed(2), where=Scope(heads=1))))
    same(apart, forward(dlm, edit(Fixed(2), where=Scope(heads=[0, 1])))[0])


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_each_edit_keeps_its_own_layers_heads_and_steps(model: Model, family: str) -> None:
    """Edits that do not meet: in order, the other way around and as separate interventions it is one and the same."""
    dlm = model(family)
    edits: list[Any] = [
        MaskSinks(PreviousStep(top_k=1), where=Scope(steps=[2])),
        ZeroSinks(SameStep(top_k=1), where=Scope(steps=[0, 3], heads=[0, 2])),
        NullKey(1.0, where=Scope(steps=[1], layers=[1])),
        Swap(SameStep(top_k=1), where=Scope(steps=[3], heads=[1])),
    ]
    want = run(dlm, edits, probes=[Pattern()])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        got = run(dlm, [InOrder(*(edits[i] for i in order))], probes=[Pattern()])
        assert torch.equal(want.tokens, got.tokens)
        assert want.record["pattern"].equals(got.record["pattern"])
        for part, i in zip(got.memories[0].parts, order, strict=True):
            assert part.counts() == want.memories[i].counts()
    assert want.memories[0].counts()["keys"] == 2 * 2 * 4


def test_hooks_are_made_at_the_steps_that_an_edit_wants(model: Model) -> None:
    """Step 2, and for the previous step's sinks step 1, where the edit only watches."""
    dlm = model("LLaDA")
    for make in (InOrder, lambda edit: SideBySide([None, edit], 1)):
        for selector, steps in ((SameStep(top_k=1), [2]), (PreviousStep(top_k=1), [1, 2])):
            edits = make(MaskSinks(selector, where=Scope(steps=[-2])))
            memory, found, rows = edits.memory(4), [], 1 if make is InOrder else 2
            for step in range(4):
                canvas = row_canvas([5, 62, 7], step, rows)
                hooks = edits.at_step(dlm, canvas, memory)
                found += [step] if hooks else []
                with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
                    dlm(canvas.tokens)
            assert found == steps
            assert memory.counts()["0: keys"] == 2 * 4
            assert edits.hooks(dlm, row_canvas([5, 62, 7], 1, rows), memory) == []


def test_counts_are_labelled_by_the_edits_number(model: Model) -> None:
    dlm = model("LLaDA")
    edits = InOrder(MaskSinks(SameStep(top_k=1)), NullKey(0.0), ZeroSinks(SameStep(top_k=2), where=Scope(heads=[0])))
    assert edits.memory().counts()["0: keys"] == 0
    result = run(dlm, [edits])
    memory = result.memories[0]
    counts = memory.counts()
    assert counts["0: keys"] == 4 * 2 * 2 * 4
    assert counts["2: keys"] == 4 * 2 * 2 * 2
    assert "1: mass" in counts
    assert "1: keys" not in counts
    assert memory.per_row("keys") == [4 * 2 * (4 + 2)] * 2
    assert memory.per_row("rows") == [7 * 4 * 2 * 4, 10 * 4 * 2 * 4]
    assert memory.per_row("nothing") == []
    assert repr(edits) in result.fired


def test_open_and_closed_loops_in_order(model: Model) -> None:
    """The second, open, finds the clean forward's sinks, and not those that the first left."""
    dlm = model("LLaDA")
    open_, closed = (
        InOrder(Redistribute("uniform", Fixed([0, 1])), ZeroSinks(SameStep(top_k=1, loop=loop)))
        for loop in ("open", "closed")
    )
    canvas = row_canvas([5, 17, 9])
    assert len(open_.clean(dlm, canvas, open_.memory())) == dlm.n_layers
    assert list(closed.clean(dlm, canvas, closed.memory())) == []
    patterns = []
    for edits in (open_, closed):
        result = run(dlm, [edits], probes=[Pattern(Scope(layers=[0], steps=[0]))])
        patterns.append(result.record["pattern"].isel(step=0, layer=0))
    assert not patterns[0].equals(patterns[1])
    clean = run(dlm, [], probes=[ReceivedAttention()]).record["received"].isel(step=0, layer=0)
    for b in range(2):
        for h in range(4):
            sink = int(clean[b, h].argmax("key"))
            n = len(PROMPTS[b]) + 4
            zeros = [j for j in range(n) if float(abs(patterns[0][b, h, :n, j]).max()) == 0]
            assert zeros == sorted({0, 1, sink})


def test_what_cannot_be_composed_is_refused(model: Model, no_forward: None) -> None:
    dlm = model("LLaDA")
    with pytest.raises(ValueError, match=r"InOrder\(\): give one or more edits"):
        InOrder()
    with pytest.raises(ScopeError, match=r"order matters; say it with interventions=\[InOrder"):
        run(dlm, [MaskSinks(SameStep(top_k=1)), ZeroSinks(SameStep(top_k=1))])
    with pytest.raises(ValueError, match="give one or more edits"):
        InOrder(SameStep(top_k=1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be a list in which each is an Edit or null"):
        SideBySide([None, SameStep(top_k=1)], 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rows_each=0"):
        SideBySide([None], 0)
    one, other = (SameStep(top_k=1) for _ in range(2))
    inside = InOrder(MaskSinks(one, where=Scope(layers=[0])), ZeroSinks(other, where=Scope(heads=[2])))
    with pytest.raises(ScopeError, match="order matters"):
        run(dlm, [inside, ZeroSinks(Fixed(0), where=Scope(layers=[1], heads=[2, 3]))])
    with pytest.raises(ScopeError, match="layer 7 does not exist"):
        run(dlm, [InOrder(MaskSinks(Fixed(0)), ZeroSinks(Fixed(0), where=Scope(layers=[7])))])
    with pytest.raises(ScopeError, match="asks for 30 keys"):
        run(dlm, [InOrder(NullKey(), MaskSinks(SameStep(top_k=30)))])
    with pytest.raises(ScopeError, match="holds at none of the 4 steps"):
        run(dlm, [InOrder(MaskSinks(Fixed(0)), ZeroSinks(Fixed(0), where=Scope(steps=[9])))])
    with pytest.raises(ScopeError, match="asks for 30 keys"):
        run(dlm, [SideBySide([None, MaskSinks(SameStep(top_k=30))], 1)])
    for ask in (lambda edit, canvas: edit.check(dlm, canvas), lambda edit, canvas: edit.fwd_hooks(dlm, canvas)):
        with pytest.raises(ScopeError, match="2 groups of 1 rows do not make the 3 of this batch"):
            ask(SideBySide([None, MaskSinks(Fixed(0))], 1), row_canvas([5, 6], rows=3))
    with pytest.raises(ValueError, match="SideBySide needs a canvas to know its rows"):
        SideBySide([None, MaskSinks(Fixed(0))], 1).fwd_hooks(dlm)


def test_leaves_are_found_through_all_layers() -> None:
    a, b, c = MaskSinks(Fixed(0)), ZeroSinks(Fixed(0)), NullKey()
    edits = SideBySide([None, InOrder(a, b), c], 2)
    assert list(edits.leaves()) == [a, b, c]
    memory = edits.memory()
    parts = edits.parts(memory)
    assert [edit for edit, _ in parts] == [a, b, c]
    inner, last = memory.parts
    assert [part for _, part in parts] == [*inner.parts, last]


def test_composed_edits_are_values() -> None:
    a, b = MaskSinks(Fixed(0)), ZeroSinks(Fixed(0))
    for one, other in ((InOrder(a, b), InOrder(b, a)), (SideBySide([a, None], 1), SideBySide([a, None], 2))):
        assert one.digest != other.digest
        assert one != other
        again = type(one).from_dict(one.to_dict())
        assert again == one
        assert again.digest == one.digest
    assert InOrder(edits=[a, b]) == InOrder(a, b)
    assert SideBySide([a, None], 1) == SideBySide((a, None), 1)


# Side by side.

CONDITIONS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "mask": lambda: MaskSinks(PreviousStep(top_k=2)),
    "random": lambda: control(MaskSinks(PreviousStep(top_k=2)), "random", seed=5),
    "open": lambda: ZeroSinks(SameStep(top_k=2, loop="open"), where=Scope(steps=[1, 2])),
    "open previous": lambda: MaskSinks(PreviousStep(top_k=1, loop="open", first="same"), where=Scope(layers=[1])),
    "open control": lambda: control(MaskSinks(SameStep(top_k=1, loop="open")), "bottom"),
    "last steps": lambda: Swap(PreviousStep(SinkRule(None, top_k=1)), where=Scope(steps=slice(2, None))),
    "masked": lambda: Redistribute(
        "self", SameStep(SinkRule(None, top_k=1, queries="auto", keys="prompt")), queries="response"
    ),
    "value": lambda: ZeroValue(SameStep(top_k=2), where=Scope(heads=[0, 3])),
    "noise": lambda: NoiseValue(None, SameStep(top_k=1), seed=4),
    "null": lambda: NullKey(2.0, where=Scope(steps=[0, 3])),
    "token": lambda: SinkToken(44),
    "keep": lambda: KeepKeys(0.5, "random", seed=2),
    "norm": lambda: ZeroSinks(ByKeyNorm(2)),
    "order": lambda: InOrder(MaskSinks(SameStep(top_k=1, loop="open")), ZeroValue(PreviousStep(top_k=1))),
}
COUNTS = ("keys", "mass", "rows", "heads_without_sink", "rows_left")


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_every_group_gets_what_it_would_get_alone(model: Model, family: str) -> None:
    """15 conditions of two prompts in one batch of 30 rows, with sampled tokens."""
    dlm, edits = model(family), [make() for make in CONDITIONS.values()]
    seeds = [(7 + 2 * index, 8 + 2 * index) for index in range(len(edits))]
    side = SideBySide(edits, 2)
    together = run(dlm, [side], PROMPTS * len(edits), seed=sum(seeds, ()), probes=[Pattern()])
    memory = together.memories[0]
    parts = iter(memory.parts)
    different = set()
    for index, (name, edit) in enumerate(zip(CONDITIONS, edits, strict=True)):
        alone = run(dlm, [] if edit is None else [edit], seed=seeds[index], probes=[Pattern()])
        rows = slice(2 * index, 2 * index + 2)
        assert torch.equal(together.tokens[rows], alone.tokens), name
        assert torch.equal(together.commit_step[rows], alone.commit_step), name
        ours = torch.from_numpy(together.record["pattern"].to_numpy()[rows])
        torch.testing.assert_close(
            ours, torch.from_numpy(alone.record["pattern"].to_numpy()), atol=1e-4, rtol=0, equal_nan=True
        )
        mine = None if edit is None else next(parts)
        for count in COUNTS:
            theirs = [] if edit is None else alone.memories[0].per_row(count)
            counted = [] if mine is None else mine.per_row(count)
            assert counted == pytest.approx(theirs, rel=1e-4, abs=1e-4), name
            assert memory.per_row(count)[rows] == (counted or [0.0, 0.0]), name  # each row's own, and nobody else's
        different.add(tuple(alone.tokens.flatten().tolist()))
    assert len(different) > 3  # or the conditions would have nothing to tell apart


def test_groups_do_not_read_each_others_rows(model: Model) -> None:
    """The same edit, one prompt with another neighbour: nothing of its own changes."""
    dlm = model("LLaDA")
    results = []
    for other in (None, ZeroSinks(SameStep(top_k=3)), InOrder(MaskSinks(SameStep(top_k=2, loop="open")), NullKey(3.0))):
        edits = SideBySide([MaskSinks(PreviousStep(top_k=1, loop="open")), other], 1)
        steps = list(denoising_steps(dlm, [PROMPTS[1]] * 2, plan_for(dlm), interventions=[edits], seed=4))
        counts = steps[-1].memories[0].parts[0].counts()
        results.append((torch.stack([step.logits[0] for step in steps]), counts))
    for logits, counts in results[1:]:
        assert torch.equal(logits, results[0][0])
        assert counts == results[0][1]


def test_key_norms_of_an_edit_and_its_control_are_kept_apart(model: Model) -> None:
    """Other prompts side by side: each group's norms are those of its own rows."""
    dlm = model("LLaDA")
    edit = ZeroSinks(ByKeyNorm(1))
    other = control(edit, "random")
    prompts = [[5, 17, 9, 33, 50], [12, 40, 7, 21, 30]]
    kept = []
    for pair in ([edit, None], [edit, other]):
        result = run(dlm, [SideBySide(pair, 1)], prompts, probes=[Pattern(Scope(steps=[0]))])
        kept.append(torch.from_numpy(result.record["pattern"].to_numpy()[0, 0]))

    torch.testing.assert_close(kept[1], kept[0], atol=1e-5, rtol=0, equal_nan=True)


def test_groups_that_share_a_selector_do_not_disturb_each_other(model: Model) -> None:
    """Two conditions made with one selector object, as one would write it."""
    dlm, shared = model("LLaDA"), PreviousStep(top_k=1)
    edits = SideBySide([MaskSinks(shared), ZeroSinks(shared)], 2)
    parts = run(dlm, [edits], PROMPTS * 2, seed=[7, 8] * 2).memories[0].parts

    assert [part.counts()["keys"] for part in parts] == [3 * 2 * 2 * 4] * 2


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_one_edit_twice_keeps_two_memories(model: Model, family: str) -> None:
    """The very same object on other prompts side by side, and before and after another edit in order."""
    dlm, edit = model(family), MaskSinks(PreviousStep(top_k=2))
    apart = [run(dlm, [edit], [prompt], seed=seed) for prompt, seed in zip(PROMPTS, (3, 4), strict=True)]
    side = run(dlm, [SideBySide([edit, edit], 1)], PROMPTS, seed=[3, 4])
    for part, alone, row in zip(side.memories[0].parts, apart, range(2), strict=True):
        assert torch.equal(side.tokens[row][-len(alone.tokens[0]) :], alone.tokens[0])
        assert part.counts() == pytest.approx(alone.memories[0].counts(), rel=1e-4)
    assert side.memories[0].parts[0].counts() != side.memories[0].parts[1].counts()
    # In order, the second is shown what the first left: other keys, so other notes.
    twice = InOrder(edit, edit)
    one, other = run(dlm, [twice]).memories[0].parts
    assert one is not other
    copies = InOrder(MaskSinks(PreviousStep(top_k=2)), MaskSinks(PreviousStep(top_k=2)))
    expected = run(dlm, [copies]).memories[0].parts
    assert [one.counts(), other.counts()] == [part.counts() for part in expected]
    assert one.counts()["mass"] > 2 * other.counts()["mass"]


def test_counts_and_rows_of_side_by_side(model: Model) -> None:
    dlm = model("LLaDA")
    edits = SideBySide([None, MaskSinks(SameStep(top_k=1)), NullKey(1.0)], 2)
    memory = run(dlm, [edits], PROMPTS * 3, seed=[7, 8] * 3).memories[0]
    counts = memory.counts()
    assert counts["0: keys"] == 4 * 2 * 2 * 4
    assert counts["1: rows"] == (7 + 10) * 4 * 2 * 4
    assert memory.parts[0].per_row("keys") == [4 * 2 * 4] * 2
    assert memory.per_row("keys") == [0, 0, 32, 32, 0, 0]
    assert memory.per_row("rows") == [0, 0, 0, 0, 7 * 32, 10 * 32]
    assert memory.per_row("nothing") == []


def test_rows_that_are_done_are_left_alone_side_by_side(model: Model) -> None:
    """Prompts with one and three gaps: the first is done after one step."""
    dlm = model("LLaDA")
    prompts = [[5, 62, 9, 33], [5, 62, 9, 62, 62]]
    edits = [MaskSinks(SameStep(top_k=1)), ZeroSinks(SameStep(top_k=1))]
    side = SideBySide(edits, 2)
    memory = denoise(dlm, prompts * 2, Plan(new_tokens=0), interventions=[side], seed=1, progress=False).memories[0]
    for part in memory.parts:
        assert part.per_row("keys") == [1 * 2 * 4, 3 * 2 * 4]


def test_memories_of_other_edits_do_not_fit(model: Model) -> None:
    """A memory without parts is not that of composed edits."""
    with pytest.raises(ValueError, match="zip"):
        InOrder(MaskSinks(Fixed(0))).hooks(model("LLaDA"), row_canvas([5, 6]), Memory())
