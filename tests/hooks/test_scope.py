"""Scopes: what they name, what they refuse, and that nothing silent passes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sinklens as sl
from sinklens.errors import ContentError, ScopeError, SinklensError
from sinklens.hooks import Scope, chosen
from sinklens.values.content import Value

FIELDS = ("layers", "heads", "steps")

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
        ({3, 1}, [1, 3]),
        (slice(4, None), [4, 5]),
        (slice(-2, None), [4, 5]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(4, 100), [4, 5]),
        (np.int64(2), [2]),
        (np.array(2), [2]),
        (np.array([0, -1]), [0, 5]),
        (torch.tensor(2), [2]),
        (torch.tensor([4, 1]), [1, 4]),
        (np.flatnonzero([0, 1, 0, 1]), [1, 3]),
    ],
)
@pytest.mark.parametrize("field", FIELDS)
def test_selections(field: str, selection: Any, expected: list[int]) -> None:
    scope = Scope(**{field: selection})
    assert chosen(getattr(scope, field), 6, field[:-1]) == expected
    assert scope.to_dict()[field] == Scope.from_dict(scope.to_dict()).to_dict()[field]


@pytest.mark.parametrize(
    "selection",
    [
        1.0,
        "1",
        "all",
        b"\x01",
        True,
        [True, False],
        [0, 1.0],
        ["0"],
        [[0]],
        [None],
        {"layers": 0},
        {0: 1},
        frozenset({"0"}),
        np.array([0.0, 1.0]),
        np.array([True, False]),
        np.array(True),
        torch.tensor([0.5]),
        torch.tensor([True]),
        torch.tensor([[0, 1]]),
        slice(0.0, 2),
        slice("a", None),
        slice(None, None, 0),
        slice(True, None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("field", FIELDS)
def test_what_is_no_selection_is_refused(field: str, selection: Any) -> None:
    """Above all truth values: a mask of layers is not a list of layers."""
    with pytest.raises(
        ScopeError, match=rf"^{field}=.* must be a whole number, a slice, a list of whole numbers or null"
    ):
        Scope(**{field: selection})


@pytest.mark.parametrize("field", ["queries", "keys", "diagonal", "layer"])
def test_a_scope_says_layers_heads_and_steps_only(field: str) -> None:
    with pytest.raises(TypeError, match=field):
        Scope(**{field: "masked"})
    with pytest.raises(ContentError, match=rf"Scope has no field '{field}'; its fields are layers, heads, steps"):
        Scope.from_dict({"type": "Scope", field: "masked"})


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


selections = st.one_of(
    st.none(),
    st.integers(-6, 5),
    st.lists(st.integers(-6, 5), min_size=1, max_size=4),
    st.builds(slice, st.none() | st.integers(-7, 7), st.none() | st.integers(-7, 7), st.none() | st.integers(1, 3)),
)


@given(selections, selections)
def test_a_step_is_in_scope_iff_it_is_chosen(steps: Any, other: Any) -> None:
    """`at`, `chosen` and `validate` are three views of one selection."""
    scope = Scope(steps=steps, layers=other)
    held = [step for step in range(6) if scope.at(step, 6)]
    if held:
        assert held == chosen(scope.steps, 6, "step")
    else:
        with pytest.raises(ScopeError, match="holds at none of the 6 steps"):
            Scope(steps=steps).validate(2, 4, 6)


@given(selections, selections, selections, selections)
def test_scopes_meet_where_they_share_a_layer_a_head_and_a_step(a: Any, b: Any, c: Any, d: Any) -> None:
    def cells(scope: Scope) -> set[tuple[int, int]]:
        layers = list(range(6)) if scope.layers is None else chosen(scope.layers, 6, "layer")
        return {(layer, step) for layer in layers for step in range(6) if scope.at(step, 6)}

    one, other = Scope(layers=a, steps=b), Scope(layers=c, steps=d)
    try:
        share = bool(cells(one) & cells(other))
    except ScopeError:  # a slice that selects no layer
        return
    assert one.meets(other, 6, 4, 6) == other.meets(one, 6, 4, 6) == share


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
    scope = Scope(steps=steps)
    assert [step for step in range(6) if scope.at(step, total)] == expected


def test_heads_in_scope() -> None:
    mask = Scope(heads=[0, -1]).head_mask(4, torch.device("cpu"))
    assert mask.shape == (1, 4, 1)
    assert mask.flatten().tolist() == [True, False, False, True]
    assert Scope().head_mask(2, torch.device("cpu")).all()


# Against a model and a run.


def test_a_scope_is_checked_against_the_model() -> None:
    Scope(layers=[0, -1], heads=3, steps=slice(2, None)).validate(2, 4, 8)
    for scope, message in (
        (Scope(layers=2), "layer 2 does not exist"),
        (Scope(heads=[4]), "head 4 does not exist"),
        (Scope(steps=[8, 9]), r"steps=\(8, 9\) holds at none of the 8 steps"),
        (Scope(steps=[]), r"holds at none of the 8 steps"),
    ):
        with pytest.raises(ScopeError, match=message):
            scope.validate(2, 4, 8)
    assert issubclass(ScopeError, SinklensError)
    assert issubclass(ScopeError, ValueError)


@pytest.mark.parametrize("steps", [-1, slice(-2, None), [0, -3], slice(0, -1)])
def test_steps_from_the_end_need_one_known_end(steps: Any) -> None:
    Scope(steps=steps).validate(2, 4, 8, 8)
    with pytest.raises(ScopeError, match="this run's number of steps is not known"):
        Scope(steps=steps).validate(2, 4)
    with pytest.raises(ScopeError, match="the prompts of this run take 5 to 8 steps"):
        Scope(steps=steps).validate(2, 4, 8, 5)


@dataclass(frozen=True, repr=False)
class WholeLayers(Value):
    """A part that knows no heads and no steps."""

    where: Scope = Scope()

    def __post_init__(self) -> None:
        self.where.refuse("heads", "steps", by=self)


@pytest.mark.parametrize("value", [0, [0], slice(None), range(2), [], -1])
@pytest.mark.parametrize("field", ["heads", "steps"])
def test_a_field_that_a_part_cannot_honour_is_refused(field: str, value: Any) -> None:
    """Whatever it says: also "all of them" is not nothing."""
    WholeLayers(Scope(layers=[1]))
    with pytest.raises(ScopeError, match=rf"^{field}=.* has no meaning for WholeLayers"):
        WholeLayers(Scope(layers=[1], **{field: value}))


# A scope is a value.


def test_a_scope_is_a_value() -> None:
    assert sl.Where is sl.Scope is Scope
    scope = Scope(layers=[1, 2], steps=slice(3, None))
    assert scope == Scope(layers=(1, 2), steps=slice(3, None)) == Scope(layers=np.array([1, 2]), steps=slice(3, None))
    assert scope.digest == Scope(layers=range(1, 3), steps=slice(3, None)).digest
    assert Scope(layers={2, 1}).digest == Scope(layers={1, 2}).digest == Scope(layers=[1, 2]).digest
    with pytest.raises(FrozenInstanceError):
        scope.layers = None  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Scope(), Scope(layers=0)),
        (Scope(layers=0), Scope(heads=0)),
        (Scope(layers=1), Scope(layers=-1)),
        (Scope(steps=slice(0, 2)), Scope(steps=slice(0, 3))),
        (Scope(steps=slice(0, None)), Scope(steps=None)),
    ],
)
def test_scopes_that_differ_have_other_digests(one: Scope, other: Scope) -> None:
    assert one != other
    assert one.digest != other.digest


def test_the_repr_names_what_was_changed() -> None:
    assert repr(Scope()) == "Scope()"
    assert repr(Scope(layers=[1], steps=slice(2, None))) == "Scope(layers=(1,), steps=slice(2, None, None))"
