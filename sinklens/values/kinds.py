"""Whether values are of the kinds that the fields of a dataclass say, for what files and command lines hold."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from sinklens.errors import ContentError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_SEVERAL = {int: "whole numbers", float: "numbers", bool: "truth values", str: "texts"}


def check_kinds(cls: type, values: Mapping[str, Any], before: str = "") -> None:
    """Raise for a value that is not of the kind that its field's annotation says.

    A truth value is no number and a text is no list of letters. Annotations that are no classes (functions, say) are
    not checked.

    Args:
        cls: The dataclass.
        values: Values by the name of the field.
        before: What stands before the field's name in the message, for example "plan.".

    Raises:
        ContentError: quoting the value and saying what it should be.
    """
    for name, hint in _hints(cls).items():
        if name in values and not _fits(values[name], hint):
            raise ContentError(f"{before}{name}={values[name]!r} must be {_words(hint)}{_advice(values[name])}")


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a class whose annotations are names that only a type checker imports
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is tuple and inner[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in (tuple, list, Sequence):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return several and all(_fits(each, inner[0]) for each in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(map(_fits, value.items(), [tuple[inner]] * len(value)))
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint is Any or not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return True
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each) for each in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list, Sequence):
        return f"a list of {_SEVERAL.get(inner[0], 'values')}"
    if origin in (dict, Mapping):
        return "a mapping from names"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _advice(value: Any) -> str:
    """What a user who wrote a number or a truth value as a text should know."""
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ", without quotes" if value.lower() in ("true", "false", "yes", "no", "on", "off", "null") else ""
    return ", without quotes (YAML reads 1e-3 as a text; write 0.001)"
