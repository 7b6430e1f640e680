"""Composed edits: in order on the same rows, and side by side on their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import Canvas, HookedDLM, Plan, Where, denoise, denoising_steps
from sinklens.errors import ScopeError
from sinklens.hooks import leaves
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


def row_canvas(tokens: list[int], step: int = 0) -> Canvas:
    ids = torch.tensor([tokens])
    on = torch.ones_like(ids, dtype=torch.bool)
    return Canvas(ids, on, ids == 62, ids != 62, step, (1,))


@torch.no_grad()
def forward(dlm: HookedDLM, edit: Any, step: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Logits and the final pattern of each layer, of one forward."""
    canvas = row_canvas([5, 17, 9, 33, 62, 61], step)
    seen: list[Tensor] = []

    def look(pattern: Tensor, *, hook: Any) -> None:
        seen.append(pattern.clone())

    watch = [(f"blocks.{layer}.attn.hook_pattern", look) for layer in range(2)]
    with dlm.hooks(fwd_hooks=[*edit.fwd_hooks(dlm, canvas), *watch]):
        return dlm(canvas.tokens, canvas.valid), seen


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


def test_the_second_detector_reads_what_the_first_left(model: Model) -> None:
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
    apart, _ = forward(dlm, InOrder(edit(Fixed(2), Where(heads=0)), edit(Fixed(2), Where(heads=1))))
    same(apart, forward(dlm, edit(Fixed(2), Where(heads=[0, 1])))[0])


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_each_edit_keeps_its_own_layers_heads_and_steps(model: Model, family: str) -> None:
    """Edits that do not meet: in order, the other way around and as separate interventions it is one and the same."""
    dlm = model(family)
    make: list[Callable[[], Any]] = [
        lambda: MaskSinks(PreviousStep(top_k=1), Where(steps=[2])),
        lambda: ZeroSinks(SameStep(top_k=1), Where(steps=[0, 3], heads=[0, 2])),
        lambda: NullKey(1.0, Where(steps=[1], layers=[1])),
        lambda: Swap(SameStep(top_k=1), Where(steps=[3], heads=[1])),
    ]
    apart = [each() for each in make]
    want = run(dlm, apart, probes=[Pattern()])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        edits = [make[i]() for i in order]
        got = run(dlm, [InOrder(*edits)], probes=[Pattern()])
        assert torch.equal(want.tokens, got.tokens)
        assert want.record["pattern"].equals(got.record["pattern"])
        for edit, i in zip(edits, order, strict=True):
            assert dict(edit.counts()) == dict(apart[i].counts())
    assert apart[0].counts()["keys"] == 2 * 2 * 4


def test_hooks_are_made_at_the_steps_that_an_edit_wants(model: Model) -> None:
    """Step 2, and for the previous step's sinks step 1, where the edit only watches."""
    dlm = model("LLaDA")
    for make in (InOrder, lambda edit: SideBySide([None, edit], 1)):
        for detector, steps in ((SameStep(top_k=1), [2]), (PreviousStep(top_k=1), [1, 2])):
            edits = make(MaskSinks(detector, Where(steps=[-2])))
            edits.reset(4)
            assert [step for step in range(4) if edits.fwd_hooks(dlm, row_canvas([5, 62, 7], step))] == steps


def test_counts_are_labelled_by_the_edits_number(model: Model) -> None:
    dlm = model("LLaDA")
    edits = InOrder(MaskSinks(SameStep(top_k=1)), NullKey(0.0), ZeroSinks(SameStep(top_k=2), Where(heads=[0])))
    result = run(dlm, [edits])
    counts = edits.counts()
    assert counts["0: keys"] == 4 * 2 * 2 * 4
    assert counts["2: keys"] == 4 * 2 * 2 * 2
    assert "1: mass" in counts
    assert "1: keys" not in counts
    assert edits.per_row("keys") == [4 * 2 * (4 + 2)] * 2
    assert edits.per_row("rows") == [7 * 4 * 2 * 4, 10 * 4 * 2 * 4]
    assert edits.per_row("nothing") == []
    assert repr(edits) in result.fired
    edits.reset(4)
    assert edits.counts()["0: keys"] == 0


def test_open_and_closed_loops_in_order(model: Model) -> None:
    """The second, open, finds the clean forward's sinks, and not those that the first left."""
    dlm = model("LLaDA")
    open_, closed = (
        InOrder(Redistribute("uniform", Fixed([0, 1])), ZeroSinks(SameStep(top_k=1, loop=loop)))
        for loop in ("open", "closed")
    )
    assert len(list(open_.clean)) == 1
    assert list(closed.clean) == []
    patterns = []
    for edits in (open_, closed):
        result = run(dlm, [edits], probes=[Pattern(Where(layers=[0], steps=[0]))])
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
    inside = InOrder(MaskSinks(SameStep(top_k=1), Where(layers=[0])), ZeroSinks(SameStep(top_k=1), Where(heads=[2])))
    with pytest.raises(ScopeError, match="order matters"):
        run(dlm, [inside, ZeroSinks(Fixed(0), Where(layers=[1], heads=[2, 3]))])
    with pytest.raises(ScopeError, match="layer 7 does not exist"):
        run(dlm, [InOrder(MaskSinks(Fixed(0)), ZeroSinks(Fixed(0), Where(layers=[7])))])
    with pytest.raises(ScopeError, match="asks for 30 keys"):
        run(dlm, [InOrder(NullKey(), MaskSinks(SameStep(top_k=30)))])
    with pytest.raises(ScopeError, match="holds at none of the 4 steps"):
        run(dlm, [InOrder(MaskSinks(Fixed(0)), ZeroSinks(Fixed(0), Where(steps=[9])))])
    with pytest.raises(ScopeError, match="asks for 30 keys"):
        run(dlm, [SideBySide([None, MaskSinks(SameStep(top_k=30))], 1)])
    with pytest.raises(ValueError, match="SideBySide needs a canvas to know its rows"):
        SideBySide([None, MaskSinks(Fixed(0))], 1).fwd_hooks(dlm)


def test_leaves_are_found_through_all_layers() -> None:
    a, b, c = MaskSinks(Fixed(0)), ZeroSinks(Fixed(0)), NullKey()
    assert leaves(SideBySide([None, InOrder(a, b), c], 2)) == [a, b, c]


# Side by side.

CONDITIONS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "mask": lambda: MaskSinks(PreviousStep(top_k=2)),
    "random": lambda: control(MaskSinks(PreviousStep(top_k=2)), "random", seed=5),
    "open": lambda: ZeroSinks(SameStep(top_k=2, loop="open"), Where(steps=[1, 2])),
    "open previous": lambda: MaskSinks(PreviousStep(top_k=1, loop="open", first="same"), Where(layers=[1])),
    "open control": lambda: control(MaskSinks(SameStep(top_k=1, loop="open")), "bottom"),
    "last steps": lambda: Swap(PreviousStep(top_k=1, queries="all"), Where(steps=slice(2, None))),
    "masked": lambda: Redistribute("self", SameStep(top_k=1), Where(queries="response", keys="prompt")),
    "value": lambda: ZeroValue(SameStep(top_k=2), Where(heads=[0, 3])),
    "noise": lambda: NoiseValue(None, SameStep(top_k=1), seed=4),
    "null": lambda: NullKey(2.0, Where(steps=[0, 3])),
    "token": lambda: SinkToken(44),
    "keep": lambda: KeepKeys(0.5, "random", seed=2),
    "norm": lambda: ZeroSinks(ByKeyNorm(2)),
    "order": lambda: InOrder(MaskSinks(SameStep(top_k=1, loop="open")), ZeroValue(PreviousStep(top_k=1))),
}
COUNTS = ("keys", "mass", "rows", "heads_without_sink", "rows_left")


def per_row(edit: Any, name: str) -> list[float]:
    return [] if edit is None else list(edit.per_row(name))


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_every_group_gets_what_it_would_get_alone(model: Model, family: str) -> None:
    """15 conditions of two prompts in one batch of 30 rows, with sampled tokens."""
    dlm, edits = model(family), [make() for make in CONDITIONS.values()]
    seeds = [(7 + 2 * index, 8 + 2 * index) for index in range(len(edits))]
    together = run(dlm, [SideBySide(edits, 2)], PROMPTS * len(edits), seed=sum(seeds, ()), probes=[Pattern()])
    different = set()
    for index, (name, make) in enumerate(CONDITIONS.items()):
        edit = make()
        alone = run(dlm, [] if edit is None else [edit], seed=seeds[index], probes=[Pattern()])
        rows = slice(2 * index, 2 * index + 2)
        assert torch.equal(together.tokens[rows], alone.tokens), name
        assert torch.equal(together.commit_step[rows], alone.commit_step), name
        ours = torch.from_numpy(together.record["pattern"].to_numpy()[rows])
        torch.testing.assert_close(
            ours, torch.from_numpy(alone.record["pattern"].to_numpy()), atol=1e-4, rtol=0, equal_nan=True
        )
        for count in COUNTS:
            assert per_row(edits[index], count) == pytest.approx(per_row(edit, count), rel=1e-4, abs=1e-4), name
        different.add(tuple(alone.tokens.flatten().tolist()))
    assert len(different) > 3  # or the conditions would have nothing to tell apart


def test_groups_do_not_read_each_others_rows(model: Model) -> None:
    """The same edit, one prompt with another neighbour: nothing of its own changes."""
    dlm = model("LLaDA")
    results = []
    for other in (None, ZeroSinks(SameStep(top_k=3)), InOrder(MaskSinks(SameStep(top_k=2, loop="open")), NullKey(3.0))):
        edit = MaskSinks(PreviousStep(top_k=1, loop="open"))
        steps = list(
            denoising_steps(dlm, [PROMPTS[1]] * 2, plan_for(dlm), interventions=[SideBySide([edit, other], 1)], seed=4)
        )
        results.append((torch.stack([step.logits[0] for step in steps]), dict(edit.counts())))
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
        result = run(dlm, [SideBySide(pair, 1)], prompts, probes=[Pattern(Where(steps=[0]))])
        kept.append(torch.from_numpy(result.record["pattern"].to_numpy()[0, 0]))

    torch.testing.assert_close(kept[1], kept[0], atol=1e-5, rtol=0, equal_nan=True)


def test_groups_that_share_a_detector_do_not_disturb_each_other(model: Model) -> None:
    """Two conditions made with one detector object, as one would write it."""
    dlm, shared = model("LLaDA"), PreviousStep(top_k=1)
    edits = [MaskSinks(shared), ZeroSinks(shared)]
    run(dlm, [SideBySide(edits, 2)], PROMPTS * 2, seed=[7, 8] * 2)

    assert edits[0].counts()["keys"] == edits[1].counts()["keys"] == 3 * 2 * 2 * 4


def test_counts_and_rows_of_side_by_side(model: Model) -> None:
    dlm = model("LLaDA")
    edits = SideBySide([None, MaskSinks(SameStep(top_k=1)), NullKey(1.0)], 2)
    run(dlm, [edits], PROMPTS * 3, seed=[7, 8] * 3)
    counts = edits.counts()
    assert counts["0: keys"] == 4 * 2 * 2 * 4
    assert counts["1: rows"] == (7 + 10) * 4 * 2 * 4
    assert edits.edits[0].per_row("keys") == [4 * 2 * 4] * 2


def test_rows_that_are_done_are_left_alone_side_by_side(model: Model) -> None:
    """Prompts with one and three gaps: the first is done after one step."""
    dlm = model("LLaDA")
    prompts = [[5, 62, 9, 33], [5, 62, 9, 62, 62]]
    edits = [MaskSinks(SameStep(top_k=1)), ZeroSinks(SameStep(top_k=1))]
    denoise(dlm, prompts * 2, Plan(new_tokens=0), interventions=[SideBySide(edits, 2)], seed=1, progress=False)
    for edit in edits:
        assert edit.per_row("keys") == [1 * 2 * 4, 3 * 2 * 4]
