"""A value as its kind has it: Python's own numbers, texts and truth values, and tuples; exact, or not at all."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import xarray as xr

from sinklens.values.arrays import in_order


@dataclass(frozen=True)
class Range:
    """The range of a number, for an annotation: `Annotated[float, Range(0)]`. Both ends belong to it, inf does not.

    Attributes:
        least: The smallest number; none when None.
        most: The largest.
        above: Whether numbers must be above `least`, which then does not belong to the range.
    """

    least: float | None = None
    most: float | None = None
    above: bool = False

    def holds(self, number: float) -> bool:
        """Whether a number is in the range."""
        low = float("-inf") if self.least is None else self.least
        high = float("inf") if self.most is None else self.most
        return low <= number <= high and abs(number) != float("inf") and not (self.above and number == low)

    def words(self, number: str) -> str:
        """The range behind "a number" or "a whole number"."""
        if self.above:
            return f"{number} above {self.least}" + ("" if self.most is None else f" and at most {self.most}")
        if self.least is not None and self.most is not None:
            return f"{number} from {self.least} to {self.most}"
        number = "a finite number" if number == "a number" else number
        ends = [f"at {word} {end}" for word, end in (("least", self.least), ("most", self.most)) if end is not None]
        return f"{number} of {ends[0]}" if ends else number


class Unfit(Exception):
    """A value that is not of a kind."""


def exact(value: Any, hint: Any) -> Any:
    """A value as an annotation says; `kinds.read` has the rules.

    Raises:
        Unfit: it is not of this kind.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, InitVar):
        return exact(value, hint.type)
    if origin in (Union, types.UnionType):
        for each in inner:
            with suppress(Unfit):
                return exact(value, each)
        raise Unfit
    if origin is Annotated:
        return _in_range(exact(value, inner[0]), inner[1:])
    if origin is Literal:
        return _one_of(value, inner)
    if origin in (tuple, list, Sequence):
        return _several(value, origin, inner)
    if origin in (dict, Mapping):
        _fit(isinstance(value, Mapping))
        return {exact(key, inner[0]): exact(each, inner[1]) for key, each in value.items()}
    if origin is Callable or hint is Callable:
        _fit(callable(value))
        return value
    if hint in _SCALARS:
        return _SCALARS[hint](_bare(value))
    if hint is slice:
        return _slice(value)
    if isinstance(hint, type) and hint is not Any and not getattr(hint, "_is_protocol", False):
        _fit(isinstance(value, hint))
    return in_order(value) if isinstance(value, xr.Dataset) else value


def _fit(holds: bool) -> None:
    if not holds:
        raise Unfit


def _bare(value: Any) -> Any:
    """Python's own of numpy's numbers and of 0-d arrays and tensors; other things as they are."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    _fit(getattr(value.dtype, "kind", "f") in "biufU")  # no dates, no spans of time
    return value.item()


def _whole(value: Any) -> int:
    _fit(isinstance(value, Integral) and not isinstance(value, bool))
    return int(value)


def _number(value: Any) -> float:
    _fit(isinstance(value, Real) and not isinstance(value, bool))
    try:
        number = float(value)
    except OverflowError:
        raise Unfit from None
    _fit(number == value)  # nan is no number; 1/3 and 2**53 + 1 are no floats
    return number


def _flag(value: Any) -> bool:
    _fit(isinstance(value, bool))
    return value


def _text(value: Any) -> str:
    _fit(isinstance(value, str))
    return str.__str__(value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {int: _whole, float: _number, bool: _flag, str: _text}


def _in_range(value: Any, limits: Sequence[Any]) -> Any:
    _fit(all(limit.holds(value) for limit in limits if isinstance(limit, Range)))
    return value


def _one_of(value: Any, choices: Sequence[Any]) -> Any:
    bare = _bare(value)
    for choice in choices:
        if isinstance(bare, type(choice)) and isinstance(bare, bool) == isinstance(choice, bool) and bare == choice:
            return choice
    raise Unfit


def _several(value: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    """A list of one kind, or a tuple in which each place has its own."""
    several = isinstance(value, Collection) and not isinstance(value, str | bytes | bytearray | Mapping)
    _fit(several and getattr(value, "ndim", 1) > 0)
    try:
        listed = sorted(value) if isinstance(value, set | frozenset) else list(value)
    except TypeError:  # a set without an order
        raise Unfit from None
    if origin is tuple and inner[-1:] != (...,):
        _fit(len(listed) == len(inner))
        return tuple(map(exact, listed, inner))
    each = [exact(one, inner[0]) for one in listed]
    return each if origin is list else tuple(each)


def _slice(value: Any) -> slice:
    _fit(isinstance(value, slice) and value.step != 0)
    return slice(*(None if end is None else _whole(_bare(end)) for end in (value.start, value.stop, value.step)))
