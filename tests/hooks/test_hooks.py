"""Scopes, canvases and attaching: what a Where names, and that nothing silent passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import Canvas, HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Where, ZeroSinks, denoise
from sinklens.errors import HookNeverFired, ScopeError, SinklensError
from sinklens.hooks import Intervention, Probe, attached, chosen, plain_canvas, wanted
from sinklens.probes import ReceivedAttention

CANVAS = Canvas(
    tokens=torch.tensor([[9, 9, 5, 6, 62, 62], [4, 5, 62, 7, 8, 62]]),
    valid=torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool(),
    masked=torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 1]]).bool(),  # the last one of row 1 is not there yet
    prompt=torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0]]).bool(),
)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", [[2, 3, 4, 5], [0, 1, 2, 3, 4]]),
        ("masked", [[4, 5], [2]]),
        ("committed", [[2, 3], [0, 1, 3, 4]]),
        ("prompt", [[2, 3], [0, 1, 4]]),
        ("response", [[4, 5], [2, 3]]),
        ("last", [[5], [4]]),
    ],
)
def test_kinds_of_positions(which: Any, expected: list[list[int]]) -> None:
    found = CANVAS.where(which)
    assert [row.nonzero()[:, 0].tolist() for row in found] == expected
    assert found.dtype == torch.bool


def test_a_row_without_positions_has_no_last() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert not Canvas(torch.zeros(1, 3, dtype=torch.long), nothing, nothing, nothing).where("last").any()


def test_the_canvas_outside_the_loop() -> None:
    canvas = plain_canvas((2, 4), torch.device("cpu"))
    assert canvas.where("all").all()
    assert canvas.where("committed").all()
    assert not canvas.where("masked").any()
    assert canvas.where("last").tolist() == [[False] * 3 + [True]] * 2
    assert canvas.seeds == (0, 0)


# Selections.


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (2, [2]),
        (-1, [5]),
        (range(1, 4), [1, 2, 3]),
        ([5, 0, -1], [0, 5]),
        ((1, 1), [1]),
        (slice(4, None), [4, 5]),
        (slice(-2, None), [4, 5]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(4, 100), [4, 5]),
    ],
)
def test_selections(selection: Any, expected: list[int]) -> None:
    assert chosen(selection, 6, "layer") == expected


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (6, "layer 6 does not exist; there are 6: 0 to 5"),
        (-7, "layer -7 does not exist"),
        ([0, 9], "layer 9 does not exist"),
        (range(4, 8), "layer 6 does not exist"),
        ([], "selects none of the 6 layers"),
        (slice(6, 9), r"layers=slice\(6, 9, None\) selects none of the 6 layers"),
    ],
)
def test_selections_of_what_is_not_there(selection: Any, message: str) -> None:
    with pytest.raises(ScopeError, match=message):
        chosen(selection, 6, "layer")


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [
        (None, 6, [0, 1, 2, 3, 4, 5]),
        (3, 6, [3]),
        (-1, 6, [5]),
        ([0, -2], 6, [0, 4]),
        (range(2, 4), 6, [2, 3]),
        (slice(3, None), 6, [3, 4, 5]),
        (slice(-2, None), 6, [4, 5]),
        (slice(None, -4), 6, [0, 1]),
        (slice(1, None, 2), 6, [1, 3, 5]),
        (slice(3, None), None, [3, 4, 5]),
        ([0, 5], None, [0, 5]),
    ],
)
def test_steps(steps: Any, total: int | None, expected: list[int]) -> None:
    where = Where(steps=steps)
    assert [step for step in range(6) if where.at(step, total)] == expected


def test_heads_in_scope() -> None:
    mask = Where(heads=[0, -1]).head_mask(4, torch.device("cpu"))
    assert mask.shape == (1, 4, 1)
    assert mask.flatten().tolist() == [True, False, False, True]
    assert Where().head_mask(2, torch.device("cpu")).all()


@pytest.mark.parametrize("field", ["queries", "keys"])
def test_unknown_positions_are_refused(field: str) -> None:
    with pytest.raises(
        ScopeError, match=f"{field}='unmasked' is unknown; choose from all, masked, committed, prompt, response, last"
    ):
        Where(**{field: "unmasked"})


def test_a_scope_is_checked_against_the_model() -> None:
    Where(layers=[0, -1], heads=3, steps=slice(2, None)).validate(2, 4, 8)
    for where, message in (
        (Where(layers=2), "layer 2 does not exist"),
        (Where(heads=[4]), "head 4 does not exist"),
        (Where(steps=[8, 9]), r"steps=\[8, 9\] holds at none of the 8 steps"),
        (Where(steps=[]), r"holds at none of the 8 steps"),
    ):
        with pytest.raises(ScopeError, match=message):
            where.validate(2, 4, 8)
    assert issubclass(ScopeError, SinklensError)
    assert issubclass(ScopeError, ValueError)


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("steps", [-1, slice(-2, None), [-3]])
def test_steps_from_the_end_of_a_run_without_a_known_end_are_refused(tiny_model: Any, steps: Any) -> None:
    """Under a threshold nobody knows the number of steps, so that such a scope would silently never hold."""
    edit = MaskSinks(SameStep(top_k=1), Where(steps=steps))
    with pytest.raises(ScopeError):
        denoise(MODELS["LLaDA"], [5, 6, 7], Plan(new_tokens=4, threshold=0.5), interventions=[edit], progress=False)


def test_the_repr_names_what_was_changed() -> None:
    assert repr(Where()) == "Where()"
    assert repr(Where(layers=[1], diagonal=False)) == "Where(layers=[1], diagonal=False)"


# Attaching.

MODELS: dict[str, HookedDLM] = {}


@pytest.fixture(scope="module", autouse=True)
def _models(tiny_model: Any) -> None:
    """Made before any test forbids forwards."""
    MODELS["LLaDA"] = tiny_model("LLaDA")


def test_parts_are_what_the_protocols_ask_for() -> None:
    assert isinstance(ReceivedAttention(), Probe)
    for edit in (MaskSinks(), ZeroSinks()):
        assert isinstance(edit, Intervention)


def test_an_edit_that_looks_back_is_attached_one_step_before() -> None:
    where = Where(steps=[2, 5])
    previous, same = MaskSinks(PreviousStep(top_k=1), where), MaskSinks(SameStep(top_k=1), where)
    assert [step for step in range(6) if wanted(previous, step, 6)] == [1, 2, 4, 5]
    assert [step for step in range(6) if wanted(same, step, 6)] == [2, 5]
    assert [step for step in range(6) if wanted(ReceivedAttention(where), step, 6)] == [2, 5]


def part(points: list[str]) -> Any:
    """A part that hooks the given points and does nothing there."""

    def look(tensor: Tensor, *, hook: Any) -> None:
        return None

    return SimpleNamespace(where=Where(), fwd_hooks=lambda model, canvas=None: [(point, look) for point in points])


def test_fired_counts_by_part() -> None:
    dlm, tokens = MODELS["LLaDA"], torch.tensor([[5, 6, 7]])
    first, second, fired = part(["embed.hook_out"]), ReceivedAttention(), {}
    for times in (1, 2):
        with attached(dlm, [first, second], plain_canvas((1, 3), tokens.device), fired):
            dlm(tokens)
        assert fired == {repr(first): times, "ReceivedAttention()": 2 * times}
    assert not dlm.hooked


@pytest.mark.parametrize("points", [["blocks.0.attn.hook_result"], ["embed.hook_out", "blocks.1.attn.hook_result"]])
def test_a_hook_that_is_never_called_raises(points: list[str]) -> None:
    dlm, tokens = MODELS["LLaDA"], torch.tensor([[5, 6, 7]])
    with (
        pytest.raises(HookNeverFired, match=rf"was attached to {points[-1]} and the forward never called it"),
        attached(dlm, [part(points)], plain_canvas((1, 3), tokens.device), {}),
    ):
        dlm(tokens)
    assert not dlm.hooked


def test_a_point_that_is_not_there_raises_and_nothing_stays() -> None:
    dlm = MODELS["LLaDA"]
    parts = [ReceivedAttention(), part(["blocks.9.attn.hook_pattern"])]
    with (
        pytest.raises(
            HookNeverFired, match=r"wants hook point 'blocks.9.attn.hook_pattern', which this model does not"
        ),
        attached(dlm, parts, plain_canvas((1, 3), torch.device("cpu")), {}),
    ):
        raise AssertionError("the forward was reached")
    assert not dlm.hooked


def test_an_error_in_the_forward_is_not_hidden() -> None:
    dlm = MODELS["LLaDA"]
    with (
        pytest.raises(ZeroDivisionError),
        attached(dlm, [ReceivedAttention()], plain_canvas((1, 3), torch.device("cpu")), {}),
    ):
        raise ZeroDivisionError
    assert not dlm.hooked


def test_two_edits_of_one_kind_are_counted_apart() -> None:
    """They differ in `first` and in their head, and must not share a line in the firing counts."""
    edits = [
        MaskSinks(PreviousStep(top_k=1, first=first), Where(heads=head)) for head, first in enumerate(("none", "same"))
    ]
    run = denoise(MODELS["LLaDA"], [5, 6, 7], Plan(new_tokens=2), interventions=edits, progress=False)
    assert sorted(run.fired.values()) == [4, 4]
