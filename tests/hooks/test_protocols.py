"""Probes and edits are descriptions: what their defaults do, and when the loop asks an edit for which hooks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from parts import PATTERN, Acts, Sees
from torch import Tensor

from sinklens import Canvas, HookedDLM, denoising_steps
from sinklens.decoding.plan import Plan
from sinklens.hooks import Edit, Hook, Memory, Probe, Scope

CANVAS = Canvas.plain(torch.ones(1, 3, dtype=torch.bool))


@dataclass(frozen=True, repr=False)
class Threefold(Edit):
    """Gives one hook of each kind, by name."""

    where: Scope = Scope()
    back: bool = True

    @property
    def looks_back(self) -> bool:
        return self.back

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return [("edit", print)]

    def watch(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return [("watch", print)]

    def clean(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return [("clean", print)]


def asked(edit: Edit, steps: int, known: int | None) -> list[tuple[str, ...]]:
    """What the loop would attach at each step: to a clean forward, and to the forward itself."""
    memory = edit.memory(known)
    out = []
    for step in range(steps):
        canvas = replace(CANVAS, step=step)
        hooks = [*edit.clean_at_step(None, canvas, memory), *edit.at_step(None, canvas, memory)]
        out.append(tuple(name for name, _ in hooks))
    return out


@pytest.mark.parametrize(
    ("steps", "known", "acting"),
    [
        (None, 6, [0, 1, 2, 3, 4, 5]),
        ([2, 5], 6, [2, 5]),
        (-1, 6, [5]),
        (slice(-2, None), 6, [4, 5]),
        (slice(3, None), None, [3, 4, 5]),
        (0, 6, [0]),
    ],
)
@pytest.mark.parametrize("back", [False, True])
def test_an_edit_acts_in_scope_and_watches_one_step_before(
    steps: Any, known: Any, acting: list[int], back: bool
) -> None:
    edit = Threefold(Scope(steps=steps), back)
    for step, names in enumerate(asked(edit, 6, known)):
        if step in acting:
            assert names == ("clean", "edit")
        else:
            assert names == (("watch",) if back and step + 1 in acting else ())


def test_what_an_edit_does_not_say_does_nothing() -> None:
    edit = Acts()
    assert not edit.looks_back
    assert edit.watch(None, CANVAS, Memory()) == edit.clean(None, CANVAS, Memory()) == []
    edit.check(None, CANVAS)
    assert edit.leaves() == (edit,)
    memory = edit.memory(4, CANVAS)
    assert (memory.steps, memory.start) == (4, CANVAS)
    assert edit.parts(memory) == ((edit, memory),)
    assert edit.where == Scope()
    assert Edit.stage == 0


def test_every_memory_is_a_new_one() -> None:
    edit = Acts()
    assert edit.memory() is not edit.memory()


def test_a_probe_says_nothing_more_than_it_must() -> None:
    assert Sees().coords({}) == {}
    assert Sees().attributes() == {}
    assert Sees().where == Scope()


@pytest.mark.parametrize("cls", [Probe, Edit])
def test_a_part_without_hooks_cannot_be_made(cls: type) -> None:
    empty = type("Empty", (cls,), {})
    with pytest.raises(TypeError, match="abstract"):
        empty()


def test_parts_are_ordinary_hooks_outside_the_loop(tiny_model: Any) -> None:
    """Also on a bridge that knows nothing of canvases."""
    dlm: HookedDLM = tiny_model("LLaDA")
    seen: dict[Any, Any] = {}
    probe, edit, memory = Outside(), Zero(), Zero().memory()
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = dlm(tokens)
        edited = dlm.run_with_hooks(
            tokens, fwd_hooks=[*edit.fwd_hooks(dlm, memory=memory), *probe.fwd_hooks(dlm, seen=seen)]
        )
    assert not torch.allclose(plain, edited)
    assert probe.values(seen).tolist() == [0]
    assert memory.counts() == {"forwards": 1}
    with torch.no_grad():
        dlm.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(dlm))
    assert memory.counts() == {"forwards": 1}  # without a memory every call has its own
    assert not dlm.hooked


@dataclass(frozen=True, repr=False)
class Zero(Edit):
    """No attention at all in layer 0."""

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        def hook_function(pattern: Tensor, *, hook: Any) -> Tensor:
            memory.count("forwards", torch.ones(len(pattern)))
            return torch.zeros_like(pattern)

        return [(PATTERN, hook_function)]


@dataclass(frozen=True, repr=False)
class Outside(Probe):
    """All attention of layer 0."""

    name = "outside"
    dims = ()
    unit = "attention"
    definition = "sum over the pattern"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        def hook_function(pattern: Tensor, *, hook: Any) -> None:
            seen["sum"] = pattern.sum((1, 2, 3))

        return [(PATTERN, hook_function)]

    def values(self, seen: dict[Any, Any]) -> Tensor:
        return seen["sum"]


def test_a_step_out_of_a_probes_scope_shows_nothing(tiny_model: Any) -> None:
    probe = Sees(where=Scope(steps=[1]))
    seen = [step.seen[0] for step in denoising_steps(tiny_model("LLaDA"), [5, 6], Plan(new_tokens=3), probes=[probe])]
    assert seen == [None, {"batch": 1}, None]
