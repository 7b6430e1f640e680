"""Every value reads every field: exact numbers of any library are one number, and nothing else passes for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from random_edits import DIRECTION

import sinklens as sl
from sinklens import Plan, Scope, SinkRule
from sinklens.errors import ContentError, SinklensError
from sinklens.interventions import ByKeyNorm, ByToken, Fixed, KeepKeys, NoiseValue, SameStep, ShiftedKeys, SinkToken
from sinklens.tasks import Echo
from sinklens.values.content import Value

WHOLE: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: Plan(new_tokens=x), "new_tokens"),
    (lambda x: Plan(steps=x), "steps"),
    (lambda x: Plan(top_k=x), "top_k"),
    (lambda x: Scope(layers=x), "layers"),
    (lambda x: Scope(heads=[x]), "heads"),
    (lambda x: Scope(steps=slice(0, x)), "steps"),
    (lambda x: SinkRule(top_k=x), "top_k"),
    (lambda x: SameStep(top_k=x), "top_k"),
    (ByToken, "what"),
    (lambda x: ByToken([x]), "what"),
    (lambda x: ByToken("mask", top_k=x), "top_k"),
    (Fixed, "positions"),
    (lambda x: Fixed([0, x]), "positions"),
    (ByKeyNorm, "top_k"),
    (lambda x: ShiftedKeys(SameStep(), by=x), "by"),
    (SinkToken, "token"),
    (lambda x: NoiseValue(seed=x), "seed"),
    (lambda x: KeepKeys(0.5, seed=x), "seed"),
    (lambda x: sl.Steer(DIRECTION, seed=x), "seed"),
    (sl.probes.MassOn, "what"),
    (lambda x: sl.probes.MassOn(tokens=[x]), "tokens"),
    (lambda x: sl.probes.LogitLens(chunk=x), "chunk"),
    (Echo, "n"),
    (lambda x: Echo(seed=x), "seed"),
]
NO_WHOLE_NUMBERS = [3.0, 3.7, "11", "3", True, np.True_, float("nan"), float("inf"), np.float32(3), torch.tensor(3.0)]
NO_WHOLE_NUMBERS += [torch.tensor(True), b"3", object(), 3 + 0j, np.timedelta64(3), [[3]], {"a": 3}, np.array([[3]])]
EXACT = [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]


@pytest.mark.parametrize(("make", "field"), WHOLE, ids=lambda part: part if isinstance(part, str) else "")
def test_a_whole_number_of_any_library_is_that_number(make: Callable[[Any], Any], field: str) -> None:
    for number in EXACT:
        made = make(number)
        assert made == make(3)
        assert made.digest == make(3).digest
        assert repr(made) == repr(make(3))
        assert made.to_dict() == make(3).to_dict()


@pytest.mark.parametrize(("make", "field"), WHOLE, ids=lambda part: part if isinstance(part, str) else "")
def test_what_is_no_whole_number_is_refused_by_name(make: Callable[[Any], Any], field: str) -> None:
    for wrong in NO_WHOLE_NUMBERS:
        with pytest.raises(SinklensError, match=f"{field}=.* (must be|is unknown)"):
            make(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Plan(temperature=x),
        lambda x: SinkRule(epsilon=x),
        sl.interventions.BiasSinks,
        sl.interventions.ScaleSinks,
        sl.interventions.NullKey,
        NoiseValue,
        lambda x: sl.Steer(DIRECTION, x),
        lambda x: sl.interventions.Redistribute(share=x),
        lambda x: sl.probes.MassiveActivations(above=x),
        lambda x: Echo(gaps=x),
    ],
)
def test_a_number_is_exact_and_no_truth_value(make: Callable[[Any], Any]) -> None:
    for half in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)):
        assert make(half) == make(0.5)
        assert make(half).digest == make(0.5).digest
    for wrong in (True, np.False_, "0.5", b"1", float("nan"), np.float32("nan"), [0.5], np.array([0.5]), object()):
        with pytest.raises(SinklensError, match="must be a "):
            make(wrong)


@pytest.mark.parametrize("given", [[0, 2], (0, 2), range(0, 3, 2), {2, 0}, np.array([0, 2]), torch.tensor([0, 2])])
def test_whole_numbers_in_any_list_are_a_tuple(given: Any) -> None:
    for made in (Scope(layers=given).layers, Fixed(given).positions, ByToken(given).what):
        assert made == (0, 2)
        assert all(type(index) is int for index in made)


@pytest.mark.parametrize(
    "given", [[0.5], [True, False], torch.tensor([0.0, 2.0]), np.array([True, False]), "02", ["0"], b"\0\2", {0: 2}]
)
def test_other_lists_are_no_indices(given: Any) -> None:
    for make in (lambda: Scope(layers=given), lambda: Scope(heads=given), lambda: Fixed(given), lambda: ByToken(given)):
        with pytest.raises(SinklensError, match=r"must be |is unknown"):
            make()


def test_true_and_one_are_two_things() -> None:
    for make in (lambda x: Plan(allow_mask=x), lambda x: ByKeyNorm(largest=x), lambda x: sl.MaskSinks(diagonal=x)):
        assert make(np.True_) == make(True)
        for wrong in (1, 0, "no", "yes", None, [], np.int64(1)):
            with pytest.raises(SinklensError, match="must be true or false"):
                make(wrong)


def test_a_plan_of_numpy_numbers_runs_and_is_saved(tmp_path: Any) -> None:
    """As `Plan(new_tokens=8)`, to the same tokens, and its record can be replayed."""
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    plan = Plan(new_tokens=np.int64(8), temperature=np.float32(0.5), top_k=None)
    run = sl.denoise(dlm, [[0, 20, 30]], plan, seed=np.int64(3), save_to=tmp_path / "run.nc", progress=False)
    again = sl.denoise(dlm, [[0, 20, 30]], Plan(new_tokens=8, temperature=0.5), seed=3, progress=False)
    assert run.record.equals(again.record)
    assert sl.replay(sl.records.open(tmp_path / "run.nc"), dlm, progress=False).finished


def test_a_class_of_ones_own_cannot_forget() -> None:
    """Also one whose `__post_init__` calls nobody's."""

    @dataclass(frozen=True)
    class Mine(Value):
        often: int = 1
        name: str = "x"

        def __post_init__(self) -> None:
            object.__setattr__(self, "name", self.name.upper())

    assert Mine(np.int64(2)) == Mine(2)
    assert Mine(np.int64(2)).digest == Mine(2).digest
    assert Mine(2, "a").name == "A"
    for wrong in (True, 2.0, "2"):
        with pytest.raises(ContentError, match=f"often={wrong!r} must be a whole number"):
            Mine(wrong)


def test_what_sinklens_puts_around_a_method_is_no_content() -> None:
    """The code of one's own class is told by one's own code."""

    def made(factor: int) -> type:
        @dataclass(frozen=True)
        class Mine(Value):
            often: int = 1

            def __post_init__(self) -> None:
                object.__setattr__(self, "often", self.often * factor)

        Mine.__module__ = "elsewhere"
        return Mine

    assert made(2)(1).to_dict()["code"] == made(2)(1).to_dict()["code"] != made(3)(1).to_dict()["code"]


def test_the_default_of_a_field_stands_as_it_is() -> None:
    @dataclass(frozen=True)
    class Loose(Value):
        often: int = None  # pyright: ignore[reportArgumentType]

    assert Loose().often is None
    assert Loose(3).often == 3
    assert [field.name for field in fields(Loose)] == ["often"]
