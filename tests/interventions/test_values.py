"""Edits and selectors are values: identified by content, written and read again, and they hold no state."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from random_edits import every_edit, every_selector
from torch import Tensor

from sinklens import HookedDLM, Plan, Scope, denoise, denoising_steps, named
from sinklens.errors import ContentError
from sinklens.hooks import Canvas, Edit, Hook, Memory
from sinklens.interventions import (
    At,
    BiasSinks,
    Evidence,
    Fixed,
    FromRecord,
    InOrder,
    KeepKeys,
    MaskSinks,
    NullKey,
    Pin,
    PreviousStep,
    Redistribute,
    SameStep,
    Selector,
    SideBySide,
    SinkEdit,
    SinkToken,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.probes import Pattern, ReceivedAttention
from sinklens.sinks import largest

PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40]]
Model = Callable[..., HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model of a family, made once."""
    return lru_cache(tiny_model)


# What a user writes.


@dataclass(frozen=True, repr=False)
class Dampen(Edit):
    """Multiplies what attention adds, as a user would write it."""

    factor: float
    where: Scope = Scope()

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        def dampen(tensor: Tensor, *, hook: Any) -> Tensor:
            return tensor * self.factor

        return [(f"blocks.{layer}.attn.o.hook_in", dampen) for layer in range(model.cfg.n_layers)]


@dataclass(frozen=True, repr=False)
class DampenSinks(SinkEdit):
    """The same for what selected keys get."""

    factor: float
    selector: Selector = SameStep(top_k=1)  # noqa: RUF009 - frozen

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        return torch.where(at.touched, tensor * self.factor, tensor)


@dataclass(frozen=True, repr=False)
class Quantile(Selector):
    """A selector with a parameter."""

    share: float

    def select(self, evidence: Evidence) -> Tensor:
        keys = (evidence.eligible.sum(-1, keepdim=True) * self.share).ceil()
        return largest(evidence.received, evidence.eligible, keys)


class Loose(Edit):
    """No dataclass: its coefficient shows nowhere."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return Dampen(self.factor).hooks(model, canvas, memory)


class LooseSinks(MaskSinks):
    """Adds what its base knows nothing of."""

    def __init__(self, factor: float) -> None:
        super().__init__(Fixed(0))
        object.__setattr__(self, "factor", factor)


class Called(Loose):
    """Says what it is."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.identity = f"dampen by {factor!r}"


@pytest.mark.parametrize(
    "make", [Dampen, DampenSinks, Called, lambda share: MaskSinks(Quantile(share)), lambda f: InOrder(Dampen(f))]
)
def test_an_edit_of_ones_own_is_told_apart_by_its_coefficient(make: Any) -> None:
    """Once three of these had one name, and so one score in an `ablate`."""
    edits = [make(factor) for factor in (0.0, 0.5, 1.0)]
    assert len({edit.digest for edit in edits}) == 3
    assert make(0.5).digest == edits[1].digest
    json.dumps([edit.to_dict() for edit in edits])


@pytest.mark.parametrize("make", [Loose, LooseSinks, lambda factor: InOrder(Loose(factor), NullKey())])
def test_an_edit_whose_content_does_not_show_is_refused_with_a_way_out(make: Any) -> None:
    with pytest.raises(ContentError, match=r"holds factor, which is no field.*frozen dataclass.*set `identity`"):
        _ = make(0.5).digest


def test_an_edit_of_keys_without_a_selector_is_told_so() -> None:
    @dataclass(frozen=True, repr=False)
    class Aimless(SinkEdit):
        def apply(self, tensor: Tensor, at: At) -> Tensor:
            return tensor

    with pytest.raises(
        ValueError, match=r"selector=None of Aimless must be a selector.*a field `selector` of the class"
    ):
        Aimless()


def test_edits_of_ones_own_do_what_they_say(model: Model) -> None:
    """With three coefficients three results; the one that changes nothing is the unedited run, bit for bit."""
    dlm = model("LLaDA")
    plain = denoise(dlm, PROMPTS, Plan(new_tokens=3), probes=[Pattern()], progress=False)
    for make in (Dampen, DampenSinks, Called):
        runs = [
            denoise(dlm, PROMPTS, Plan(new_tokens=3), interventions=[make(f)], probes=[Pattern()], progress=False)
            for f in (1.0, 0.5, 0.0)
        ]
        results = [run.record["pattern"].isel(layer=1, step=0) for run in [plain, *runs]]
        assert results[0].equals(results[1])
        assert not results[1].equals(results[2])
        assert not results[2].equals(results[3])
        found = [json.loads(run.record.attrs["provenance"])["interventions"][0] for run in runs]
        assert len({json.dumps(each, sort_keys=True) for each in found}) == 3


def test_a_class_of_the_same_name_with_other_code_is_another_edit() -> None:
    """As when a notebook's cell is changed and run again."""

    def defined(sign: int) -> type[Edit]:
        if sign > 0:

            @dataclass(frozen=True, repr=False)
            class Add(Edit):
                def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
                    return [("blocks.0.hook_in", lambda tensor, *, hook: tensor + 1)]

        else:

            @dataclass(frozen=True, repr=False)
            class Add(Edit):
                def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
                    return [("blocks.0.hook_in", lambda tensor, *, hook: tensor - 1)]

        return Add

    assert defined(1)().digest != defined(-1)().digest


# Functions.


def evenly(pattern: Tensor, at: At) -> Tensor:
    """To all visible keys alike."""
    return (at.visible / at.visible.sum(-1, keepdim=True).clamp(min=1)).expand(pattern.shape)


def first_key(pattern: Tensor, at: At) -> Tensor:
    """To the row's first key."""
    first = at.canvas.valid.int().argmax(-1)[:, None, None, None]
    return (torch.arange(pattern.shape[-1]) == first).float().expand(pattern.shape)


def test_functions_are_told_apart_by_their_names(model: Model) -> None:
    one, other = (Redistribute(named(f.__name__, f), SameStep(top_k=1)) for f in (evenly, first_key))
    assert one.digest != other.digest
    assert one != other
    assert one == Redistribute(named("evenly", evenly), SameStep(top_k=1))
    assert "evenly" in repr(one)
    runs = [
        denoise(model("LLaDA"), PROMPTS, Plan(new_tokens=2), interventions=[edit], probes=[Pattern()], progress=False)
        for edit in (one, other)
    ]
    assert not runs[0].record["pattern"].equals(runs[1].record["pattern"])
    with pytest.raises(ContentError, match="the function named 'evenly' cannot be made from its description"):
        Edit.from_dict(one.to_dict())


def test_a_function_without_a_name_acts_and_is_refused_where_content_is_asked_for(model: Model) -> None:
    """Two of them could not be told apart, whatever their names in Python and their addresses are."""
    dlm, edit = model("LLaDA"), Redistribute(evenly, SameStep(top_k=1))
    tokens = torch.tensor(PROMPTS[1:])
    with torch.no_grad():
        ours = dlm.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(dlm))
        theirs = dlm.run_with_hooks(
            tokens, fwd_hooks=Redistribute(named("evenly", evenly), SameStep(top_k=1)).fwd_hooks(dlm)
        )
    assert torch.equal(ours, theirs)
    for ask in (lambda: edit.digest, edit.to_dict, lambda: InOrder(edit).digest):
        with pytest.raises(ContentError, match=r"is a function.*sinklens\.named\('what it does', function\)"):
            ask()
    with pytest.raises(ContentError, match=r"sinklens\.named"):
        denoise(dlm, PROMPTS, Plan(new_tokens=2), interventions=[edit], progress=False)


# Content.


def test_numbers_that_differ_in_the_last_digit_differ() -> None:
    edits = [BiasSinks(bias, Fixed(0)) for bias in (-1.0, -1.000001, -1.0000001)]
    assert len({edit.digest for edit in edits}) == len({repr(edit) for edit in edits}) == len(set(edits)) == 3
    one, every = KeepKeys(1), KeepKeys(1.0)  # equal numbers, and not the same: one key, and all of them
    assert one.digest != every.digest
    assert one != every
    assert repr(one) != repr(every)
    assert InOrder(one).digest != InOrder(every).digest
    for alike in (
        [BiasSinks(1, Fixed(0)), BiasSinks(1.0, Fixed(0)), BiasSinks(torch.tensor(1.0).item(), Fixed([0]))],
        [Redistribute(1), Redistribute(torch.tensor(1))],  # pyright: ignore[reportArgumentType]
        [KeepKeys(3), KeepKeys(torch.tensor(3))],  # pyright: ignore[reportArgumentType]
    ):
        assert len({edit.digest for edit in alike}) == len(set(alike)) == len({repr(edit) for edit in alike}) == 1


@given(edit=every_edit)
def test_every_edit_can_be_written_and_read(edit: Edit) -> None:
    text = json.dumps(edit.to_dict())
    again = Edit.from_dict(json.loads(text))
    assert again == edit
    assert type(again) is type(edit)
    assert again.digest == edit.digest
    assert json.dumps(again.to_dict()) == text
    assert repr(again) == repr(edit)


@given(selector=every_selector)
def test_every_selector_can_be_written_and_read(selector: Selector) -> None:
    again = Selector.from_dict(json.loads(json.dumps(selector.to_dict())))
    assert again == selector
    assert type(again) is type(selector)
    assert again.digest == selector.digest


@given(one=every_edit, other=every_edit)
def test_edits_are_equal_where_their_digests_are(one: Edit, other: Edit) -> None:
    assert (one == other) == (one.digest == other.digest)


@given(edit=every_edit)
def test_edits_can_be_keys(edit: Edit) -> None:
    """Scopes with slices, too."""
    assert {edit: 1}[Edit.from_dict(edit.to_dict())] == 1


def test_edits_cannot_be_changed() -> None:
    for edit in (MaskSinks(), NullKey(1.0), InOrder(MaskSinks()), KeepKeys(0.5), SinkToken(3)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            edit.where = Scope(layers=[0])  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        SameStep(top_k=1).fewer = "none"  # pyright: ignore[reportAttributeAccessIssue]


# No state.

FAMILIES = ["LLaDA", "Dream", "Llama"]


def stateful() -> dict[str, Edit]:
    """Edits that have something to remember: steps before, clean forwards, norms, tokens, classes, parts."""
    before = PreviousStep(top_k=2)
    return {
        "previous": MaskSinks(before),
        "open": ZeroSinks(PreviousStep(top_k=1, loop="open")),
        "control": control(MaskSinks(before), "same_class", seed=3),
        "norms": KeepKeys(0.5, "key_norm"),
        "token": SinkToken(44),
        "values": ZeroValue(before),
        "in order": InOrder(MaskSinks(before), ZeroSinks(SameStep(top_k=1, loop="open")), NullKey(0.5)),
        "side by side": SideBySide([MaskSinks(before), ZeroSinks(before)], 1),
    }


def plan_for(dlm: HookedDLM) -> Plan:
    return Plan(new_tokens=4, temperature=0.7, suppress_eos="logits" if dlm.is_causal else None)


def everything(steps: list[Any]) -> tuple[list[Tensor], dict[str, float]]:
    """What a run came to."""
    return [step.logits for step in steps], steps[-1].memories[0].counts()


def same(ours: tuple[list[Tensor], dict[str, float]], theirs: tuple[list[Tensor], dict[str, float]]) -> None:
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(one, other)
    assert ours[1] == theirs[1]


OTHERS = [[7, 13, 60, 21], [12, 40]]


@pytest.mark.parametrize("name", stateful())
@pytest.mark.parametrize("family", FAMILIES)
def test_one_edit_serves_two_runs_that_take_turns(model: Model, family: str, name: str) -> None:
    dlm, edit = model(family), stateful()[name]
    content = edit.to_dict()

    def run(prompts: Any, seed: int) -> Any:
        return denoising_steps(dlm, prompts, plan_for(dlm), interventions=[edit], seed=seed)

    alone = [everything(list(run(*each))) for each in ((PROMPTS, 1), (OTHERS, 2))]
    assert alone[0][1] != alone[1][1] or (name, family) == ("control", "Llama")  # too few keys to match
    turns = [run(PROMPTS, 1), run(OTHERS, 2)]
    kept: list[list[Any]] = [[], []]
    for _ in range(4):
        for mine, steps in zip(kept, turns, strict=True):
            mine.append(next(steps))
    for mine, theirs in zip(kept, alone, strict=True):
        same(everything(mine), theirs)
    assert edit.to_dict() == content


@pytest.mark.parametrize("name", stateful())
def test_one_edit_serves_two_threads_on_two_models(model: Model, tiny_model: Any, name: str) -> None:
    edit = stateful()[name]
    models = [model("LLaDA"), tiny_model("LLaDA", seed=1)]

    def run(dlm: HookedDLM) -> Any:
        return everything(list(denoising_steps(dlm, PROMPTS, plan_for(dlm), interventions=[edit], seed=1)))

    alone = [run(dlm) for dlm in models]
    assert alone[0][1] != alone[1][1] or not torch.equal(alone[0][0][0], alone[1][0][0])
    found: dict[int, Any] = {}
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(3):
            found[index] = run(models[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        same(found[index], alone[index])


def test_a_record_that_is_held_is_content_too(model: Model) -> None:
    """By its numbers, not by where it lies in memory."""
    dlm = model("LLaDA")
    one, other = (
        denoise(
            dlm,
            PROMPTS,
            Plan(new_tokens=3, temperature=1.0),
            probes=[Pattern(), ReceivedAttention()],
            seed=seed,
            progress=False,
        ).record
        for seed in (1, 2)
    )
    for make in (Pin, lambda record: MaskSinks(FromRecord(record, top_k=1))):
        for tell in (lambda edit: edit.digest, repr, lambda edit: edit):
            assert len({tell(make(record)) for record in (one, other, one.copy(deep=True))}) == 2
        with pytest.raises(ContentError, match="a record cannot be made from its description"):
            Edit.from_dict(make(one).to_dict())
