"""A record's dims may stand in any order: every function of records says the same."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fuzzing import fuzz, refused
from hypothesis import strategies as st

import sinklens as sl
from sinklens import HookedDLM, Plan, SinkRule, denoise, planted, plots, records
from sinklens.analysis import attention, dynamics, headline, norms, overlap, rates
from sinklens.probes import KeyNorm, Pattern, QKDecomposition, ReceivedAttention, ValueNorm
from sinklens.records.schema import DIMS
from sinklens.sinks import Sight
from sinklens.values.arrays import ORDER, in_order

RULES = {
    "default": SinkRule(),
    "top": SinkRule(epsilon=None, top_k=2),
    "layer": SinkRule(epsilon=None, top_k=1, per="mean"),
    "share": SinkRule(epsilon=0.3, units="share"),
    "committed": SinkRule(epsilon=2.0, queries="committed", keys="committed"),
}
MORE: dict[str, dict[str, Any]] = {  # what a function needs beside the record
    "filtered_share": {"epsilons": [0.5, 3.0]},
    "overlap": {"between": "layer"},
    "agreement": {"rules": RULES},
    "positions": {"which": "masked"},
    "counting": {"queries": "auto"},
    "beside": {"name": "key_norm", "queries": "all"},
}
HELPERS = ("flags", "evidence", "happened", "measured", "described")  # of what other functions gave, not of a record


@lru_cache
def real(name: str = "tiny-dlm") -> xr.Dataset:
    """Two prompts of different lengths, three sets of queries, patterns and norms."""
    dlm = HookedDLM.from_pretrained(name)
    queries = ("all", "masked", "committed") if name == "tiny-dlm" else ("all", "committed")
    probes = [ReceivedAttention(queries=queries), KeyNorm(), ValueNorm(), Pattern(), QKDecomposition()]
    plan = Plan(new_tokens=5) if name == "tiny-dlm" else Plan(new_tokens=5).for_causal()
    return denoise(dlm, ["dolko xe dolko", "gake"], plan, probes=probes, progress=False).record


def functions(*modules: ModuleType, first: tuple[str, ...] = ("record", "attention", "records")) -> Iterator[Any]:
    """All public functions that take a record first, whoever adds one."""
    for module in modules:
        for name, function in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(function) or name in HELPERS:
                continue
            names = list(inspect.signature(function).parameters)
            if names and names[0] in first and inspect.unwrap(function).__module__.startswith(module.__name__):
                yield pytest.param(function, id=f"{module.__name__.rsplit('.')[-1]}.{name}")


class Refused(str):
    """What an error said."""


def once(function: Callable, record: xr.Dataset, rule: SinkRule = RULES["default"]) -> Any:
    """What a function says, with a rule if it takes one."""
    options = dict(MORE.get(function.__name__, {}))
    if "rule" in inspect.signature(function).parameters:
        options["rule"] = rule
    return function(record, **options)


def called(function: Callable, record: xr.Dataset, rule: SinkRule) -> Any:
    """What a function says; or its error."""
    try:
        return once(function, record, rule)
    except ValueError as error:
        return Refused(f"{type(error).__name__}: {error}")


def alike(one: Any, other: Any) -> None:
    assert type(one) is type(other), (one, other)
    if isinstance(one, xr.Dataset):
        assert (set(one.variables), one.attrs) == (set(other.variables), other.attrs)
        for name in one.variables:
            alike(one[name], other[name])
    elif isinstance(one, xr.DataArray):
        xr.testing.assert_identical(one.reset_coords(drop=True), other.transpose(*one.dims).reset_coords(drop=True))
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif isinstance(one, Sight):
        assert one.direction == other.direction
        assert one.valid.equal(other.valid)
    elif isinstance(one, tuple):
        for each in zip(one, other, strict=True):
            alike(*each)
    elif hasattr(one, "to_plotly_json"):
        assert json.loads(one.to_json()) == json.loads(other.to_json())
    else:
        assert one == other or np.array_equal(one, other)


def turned(record: xr.Dataset) -> list[xr.Dataset]:
    """The record with its dims the other way round, variable by variable or as a whole, and with another one first."""
    each = record.assign({name: v.transpose(*v.dims[::-1]) for name, v in record.data_vars.items()})
    return [each, record.transpose("key", "head", ...), record.transpose(..., "prompt")]


FUNCTIONS = [*functions(attention, dynamics, headline, norms, overlap, rates)]


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_goes_by_the_names_of_dims(function: Callable, name: str) -> None:
    """Those that sl.metrics, sl.dynamics, sl.norms and sl.overlap have."""
    record = real(name)
    said = 0
    for rule in RULES.values():
        expected = called(function, record, rule)
        said += not isinstance(expected, Refused)
        for other in turned(record):
            alike(expected, called(function, other, rule))
    assert said


FIGURES = [*functions(plots)]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_goes_by_the_names_of_dims(figure: Callable) -> None:
    record = real()
    if figure.__name__ == "circuitsvis":
        pytest.importorskip("circuitsvis")
    expected = called(figure, record, RULES["default"])
    for other in turned(record):
        alike(expected, called(figure, other, RULES["default"]))


def test_there_are_functions_and_figures() -> None:
    assert len(FUNCTIONS) >= 24
    assert len(FIGURES) >= 8


PLANTED = planted("drifting").record


@fuzz(few=40, many=500, orders=st.lists(st.permutations(range(5)), min_size=1, max_size=1), mixed=st.booleans())
def test_any_order_of_dims(orders: list[list[int]], mixed: bool) -> None:
    names = ["prompt", "step", "layer", "head", "key"]  # and one of key heads, which stays where it is
    order = [names[place] for place in orders[0]]
    if mixed:
        variables = {
            name: v.transpose(*[dim for dim in order if dim in v.dims], ...) for name, v in PLANTED.data_vars.items()
        }
        variables["masked"] = PLANTED["masked"]
        record = PLANTED.assign(variables)
    else:
        record = PLANTED.transpose(*order, ...)
    for function in (rates.per_layer, rates.movement, dynamics.drift, dynamics.dwell, rates.sink_tokens):
        alike(called(function, PLANTED, SinkRule()), called(function, record, SinkRule()))


def test_a_record_in_order_is_itself() -> None:
    assert in_order(real()) is real()
    assert tuple(DIMS) == ORDER
    for other in turned(real()):
        back = in_order(other)
        alike(real(), back)
        for name, variable in back.variables.items():
            known = [dim for dim in variable.dims if dim in ORDER]
            assert known == sorted(known, key=ORDER.index), name


def test_edits_and_replay_of_a_turned_record_are_those_of_the_record() -> None:
    """Selectors and edits that read a record find rows, layers and heads by name, too."""
    dlm, record = HookedDLM.from_pretrained("tiny-dlm"), real()
    options: dict[str, Any] = {"progress": False}
    for other in turned(record):
        for make in (
            lambda r: sl.MaskSinks(sl.interventions.FromRecord(r, top_k=1)),
            sl.interventions.Pin,
        ):
            edits = [make(record), make(other)]
            assert edits[0].digest == edits[1].digest
            runs = [
                denoise(dlm, ["dolko xe dolko", "gake"], Plan(new_tokens=5), interventions=[e], **options)
                for e in edits
            ]
            assert runs[0].record.equals(runs[1].record)
        again = sl.replay(other, dlm, progress=False)
        np.testing.assert_array_equal(again.record["token"], record["token"])
        joined = records.concat([record, other])
        alike(rates.per_layer(records.concat([record, record])), rates.per_layer(joined))


@lru_cache
def answer(function: Callable) -> Any:
    """What a function says of the whole record."""
    return once(function, real())


BROKEN: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    **{f"without {name}": lambda r, name=name: r.drop_vars(name) for name in [*records.VARIABLES, "received", "layer"]},
    **{f"{dim} chosen": lambda r, dim=dim: r.isel({dim: 0}) for dim in ("prompt", "step", "layer", "head", "key")},
    **{f"no {dim}": lambda r, dim=dim: r.isel({dim: slice(0, 0)}) for dim in ("prompt", "step", "layer", "key")},
    "received as texts": lambda r: r.assign(received=r["received"].astype(str)),
    "received as whole numbers": lambda r: r.assign(received=r["received"].fillna(0).astype(int)),
    "text as numbers": lambda r: r.assign(text=r["token"]),
    "masked without its steps": lambda r: r.assign(masked=r["masked"].isel(step=0)),
    "given with steps": lambda r: r.assign(given=r["given"].expand_dims(step=5)),
    "another name of keys": lambda r: r.rename(key="position"),
    "no attributes": lambda r: r.drop_attrs(),
    "a torn provenance": lambda r: r.assign_attrs(provenance="{"),
    "a provenance of another kind": lambda r: r.assign_attrs(provenance="[]"),
    "a number for a provenance": lambda r: r.assign_attrs(provenance=3),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_record_that_lacks_something_is_an_answer_or_one_clear_error(what: str) -> None:
    """Where the part that is missing plays no role, the answer is what it was."""
    broken = BROKEN[what](real())
    for function in (param.values[0] for param in [*FUNCTIONS, *FIGURES]):
        if function.__name__ == "circuitsvis":
            continue
        found: list[Any] = []
        said = refused(lambda f=function, found=found: found.append(once(f, broken)))
        same = what.startswith("without") and what != "without layer" and not isinstance((found or [0])[0], xr.Dataset)
        if said is None and same and not hasattr(found[0], "to_plotly_json"):
            alike(answer(function), found[0])
