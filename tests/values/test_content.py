"""Values with content: equal ones are one thing in every process, others never are, and what has none raises."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

import sinklens as sl
from sinklens.errors import ContentError
from sinklens.hooks import Edit, Scope
from sinklens.values.content import Value, digest, named, plain, record_digest


@dataclass(frozen=True, repr=False)
class Inner(Value):
    number: float = 0.0
    text: str = ""


@dataclass(frozen=True, repr=False)
class Outer(Value):
    several: tuple[Any, ...] = ()
    inner: Inner = Inner()
    mapping: Any = None
    where: Scope = Scope()


@dataclass(frozen=True, repr=False)
class Another(Value):
    """The fields of Inner, in another class."""

    number: float = 0.0
    text: str = ""


# Round trips.

numbers = st.floats(allow_nan=False) | st.integers(-(2**53), 2**53)
inners = st.builds(Inner, numbers, st.text(max_size=5))
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5) | inners
several = st.recursive(leaves, lambda inside: st.lists(inside, max_size=3).map(tuple), max_leaves=6).map(lambda x: (x,))
mappings = st.none() | st.dictionaries(st.text(max_size=4).filter(lambda name: name != "type"), leaves, max_size=3)
selections = (
    st.none() | st.integers(-3, 3) | st.lists(st.integers(0, 5)).map(tuple) | st.builds(slice, st.integers(0, 3))
)
values = st.builds(Outer, several, inners, mappings, st.builds(Scope, selections, selections, selections))


@given(values)
def test_a_value_survives_being_data(value: Outer) -> None:
    """Through JSON, and to the same content: slices, tuples, infinities, nested values and all."""
    data = json.loads(json.dumps(value.to_dict(), allow_nan=False))
    again = Outer.from_dict(data)
    assert again == value
    assert again.digest == value.digest == digest(data) == digest(value.to_dict())
    assert again.to_dict() == value.to_dict()


@given(values, values)
def test_equal_values_have_one_digest_and_others_another(one: Outer, other: Outer) -> None:
    assume(not _confused(one, other))
    assert (one.digest == other.digest) == (one == other)


def _confused(one: Any, other: Any) -> bool:
    """Whether Python calls two values equal that are none: True and 1."""
    return one == other and json.dumps(plain(one)).count("true") != json.dumps(plain(other)).count("true")


@given(numbers, numbers)
def test_numbers_are_told_apart_to_the_last_bit(one: float, other: float) -> None:
    assert (Inner(one).digest == Inner(other).digest) == (one == other)


@pytest.mark.parametrize("number", [-1.000001, 1e-300, 0.1, math.inf, -math.inf])
def test_a_number_that_a_repr_would_round_is_kept(number: float) -> None:
    near = Inner(math.nextafter(number, 0.0))
    assert Inner(number).digest != near.digest
    assert Inner.from_dict(Inner(number).to_dict()).number == number


def test_not_a_number_is_content_too() -> None:
    """Where anything may stand; a field that says that it holds a number holds none such."""
    assert Outer((math.nan,)).digest == Outer((math.nan,)).digest != Outer((0.0,)).digest
    assert math.isnan(Outer.from_dict(Outer((math.nan,)).to_dict()).several[0])
    with pytest.raises(ContentError, match="number=nan must be a number"):
        Inner(math.nan)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Inner(1.0), Another(1.0)),
        (Outer((1, (2,))), Outer((1, 2))),
        (Outer(("1",)), Outer((1,))),
        (Outer((None,)), Outer(())),
        (Outer((True,)), Outer(("True",))),
        (Outer(mapping={"a": 1}), Outer(mapping={"a": 2})),
        (Outer(mapping={"a": 1}), Outer(mapping={"b": 1})),
        (Outer((Inner(),)), Outer((Another(),))),
        (Outer(where=Scope(layers=0)), Outer(where=Scope(heads=0))),
        (Outer((torch.zeros(2),)), Outer((torch.zeros(1, 2),))),
        (Outer((torch.zeros(2),)), Outer((torch.zeros(2, dtype=torch.float64),))),
        (Outer((torch.zeros(2),)), Outer((np.zeros(2, np.float32),))),
        (Outer((torch.arange(3.0),)), Outer((torch.arange(3.0).flip(0),))),
        (Outer((np.array(1.0),)), Outer((np.array([1.0]),))),
    ],
)
def test_what_differs_in_anything_has_another_digest(one: Value, other: Value) -> None:
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Inner(1), Inner(1.0)),
        (Inner(0.0), Inner(-0.0)),
        (Inner(np.float32(0.5)), Inner(0.5)),  # pyright: ignore[reportArgumentType]
        (Outer((np.int64(3),)), Outer((3,))),
        (Outer((np.True_,)), Outer((True,))),
        (Outer(mapping={"a": 1, "b": 2}), Outer(mapping={"b": 2, "a": 1})),
        (Outer(({3, 1, 2},)), Outer(({2, 3, 1},))),
        (Outer((torch.ones(3),)), Outer((torch.ones(3, requires_grad=True),))),
        (Outer((torch.ones(2, 3),)), Outer((torch.ones(3, 2).T,))),
        (Outer((torch.ones(2, dtype=torch.bfloat16),)), Outer((torch.ones(2, dtype=torch.bfloat16),))),
    ],
)
def test_what_means_the_same_has_one_digest(one: Value, other: Value) -> None:
    assert one.digest == other.digest


def test_a_digest_is_the_same_in_every_process() -> None:
    """Strings, sets and classes are hashed otherwise in each; content is not."""
    code = (
        "from sinklens.values.content import named, digest; from sinklens import Plan, Scope; "
        "print(digest([{'b', 'a', 'c'}, Plan(new_tokens=3), Scope(layers=[1]), named('x', print)]))"
    )
    root = Path(sl.__file__).parents[1]
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    mine = digest([{"b", "a", "c"}, sl.Plan(new_tokens=3), Scope(layers=[1]), named("x", print)])
    assert found == {f"{mine}\n".encode()}


# Records and arrays.


def test_a_record_is_its_numbers() -> None:
    record = xr.Dataset({"x": ("key", [1.0, 2.0]), "text": ("key", ["a", "b"])}, attrs={"provenance": "today"})
    assert record_digest(record) == record_digest(record.assign_attrs(provenance="tomorrow"))
    for other in (
        record.isel(key=[1, 0]),
        record.rename(x="y"),
        record.rename(key="query"),
        record.assign_coords(key=[0, 1]),
        record.assign(text=("key", ["a", "c"])),
        record.assign(text=("key", ["", "ab"])),
    ):
        assert record_digest(record) != record_digest(other)
    assert Outer((record,)).digest == Outer((record.copy(deep=True),)).digest


# What has no content.


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda x: x, "is a function, and whether two functions do the same cannot be seen; give it a name"),
        (math.sin, "is a function"),
        (Inner, "is a function"),
        (object(), "has no content that could be compared"),
        (b"bytes", "has no content"),
        ({1: 2}, "the key 1 of a mapping is no text"),
        (np.array([object()]), "has no content"),
        (np.array(["a"]), "has no content"),
    ],
    ids=["lambda", "function", "class", "object", "bytes", "keys", "array of objects", "array of texts"],
)
def test_what_has_no_content_raises(thing: Any, message: str) -> None:
    for value in (Outer((thing,)), Outer(mapping={"a": thing})):
        with pytest.raises(ContentError, match=message):
            value.to_dict()
        with pytest.raises(ContentError, match=message):
            _ = value.digest


def test_a_function_with_a_name_is_its_name() -> None:
    one, same, other = (Outer((named(name, function),)) for name, function in zip("aab", (min, max, min), strict=True))
    assert one.digest == same.digest != other.digest
    assert one.several[0](3, 5) == 3
    assert named("a", min) == named("a", max)
    with pytest.raises(ContentError, match="the function named 'a' cannot be made from its description"):
        Outer.from_dict(one.to_dict())
    for name in ("", None, 3):
        with pytest.raises(ContentError, match="must be a text"):
            named(name, min)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "thing", [torch.ones(2), np.ones(2), xr.Dataset({"x": 1.0})], ids=["tensor", "array", "record"]
)
def test_what_was_only_hashed_cannot_be_made_again(thing: Any) -> None:
    with pytest.raises(ContentError, match="cannot be made from its description; build this value in Python"):
        Outer.from_dict(Outer((thing,)).to_dict())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Nothing"}, "type 'Nothing' is unknown; the types are "),
        ({"type": "Scope", "rows": 1}, "Scope has no field 'rows'; its fields are layers, heads, steps"),
        ({"type": "Scope"}, "'Scope' is no Outer"),
        ({"several": ()}, "None is no Outer"),
    ],
)
def test_data_of_no_value_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ContentError, match=message):
        Outer.from_dict(data)


# Classes of one's own.


class Loose(Value):
    """No dataclass: whatever it holds is hidden."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient


class Promised(Value):
    """No dataclass, but it says what it is."""

    def __init__(self, coefficient: float, function: Any) -> None:
        self.coefficient, self.function = coefficient, function
        self.identity = f"coefficient {coefficient!r}"


@dataclass(frozen=True, repr=False)
class Mine(Edit):
    """An edit of one's own, with a derived field."""

    coefficient: float
    squared: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "squared", self.coefficient**2)

    def hooks(self, model: Any, canvas: Any, memory: Any) -> list[Any]:
        return []


def test_hidden_attributes_are_refused_unless_it_says_what_it_is() -> None:
    for value in (Loose(1.0), Loose(4.0)):
        with pytest.raises(
            ContentError, match="Loose holds coefficient, which is no field, so two of them could not be"
        ):
            _ = value.digest
    assert Promised(1.0, min).digest == Promised(1.0, max).digest != Promised(4.0, min).digest
    assert "coefficient 4.0" in json.dumps(Promised(4.0, min).to_dict())


def test_an_attribute_that_is_hung_on_a_value_later_is_refused() -> None:
    value = Mine(2.0)
    before = value.digest
    object.__setattr__(value, "cache", 1)
    with pytest.raises(ContentError, match="Mine holds cache"):
        _ = value.digest
    assert Mine(2.0).digest == before


def test_ones_own_edit_is_its_fields_and_its_code() -> None:
    digests = {Mine(number).digest for number in (0.0, 1.0, 4.0, -1.000001, -1.0000001)}
    assert len(digests) == 5
    assert Mine.from_dict(Mine(3.0).to_dict()) == Mine(3.0)
    assert Mine.from_dict(Mine(3.0).to_dict()).squared == 9
    assert "squared" not in Mine(3.0).to_dict()
    assert Mine(3.0).to_dict()["type"].endswith("test_content.Mine")
    with pytest.raises(FrozenInstanceError):
        Mine(3.0).coefficient = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def doing(what: int) -> Edit:
    """Edits of classes that differ in one line of a method."""

    @dataclass(frozen=True, repr=False)
    class Same(Edit):
        def hooks(self, model: Any, canvas: Any, memory: Any) -> list[Any]:
            return [("point", 1)]

    @dataclass(frozen=True, repr=False)
    class Changed(Edit):
        def hooks(self, model: Any, canvas: Any, memory: Any) -> list[Any]:
            return [("point", 2)]

    Changed.__qualname__ = Same.__qualname__
    return (Same, Changed)[what]()


def test_a_changed_method_is_another_content() -> None:
    assert doing(0).to_dict()["type"] == doing(1).to_dict()["type"]
    assert doing(0).digest == doing(0).digest != doing(1).digest


# How it reads.


def test_a_repr_shows_what_was_said_in_one_line() -> None:
    assert repr(Outer()) == "Outer()"
    assert repr(Outer((1,), Inner(0.5))) == "Outer(several=(1,), inner=Inner(number=0.5))"
    large = Outer(mapping=torch.zeros(300, 2))
    assert repr(large) == "Outer(mapping=<tensor 300x2>)"
    assert repr(Outer(mapping=np.zeros(3))) == "Outer(mapping=<array 3>)"
    record = xr.Dataset({"x": (("prompt", "step"), np.zeros((2, 3)))})
    assert repr(Outer(mapping=record)) == "Outer(mapping=<record 2 prompts, 3 steps>)"
