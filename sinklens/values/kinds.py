"""The one place that reads what a field or an argument is given: what is exact is converted, the rest refused."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, fields
from functools import lru_cache, wraps
from numbers import Integral
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from sinklens.errors import ContentError
from sinklens.values.exact import Range, Unfit, exact

P = ParamSpec("P")
R = TypeVar("R")
Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Finite = Annotated[float, Range()]
AtLeastZero = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, above=True)]
Seed = Annotated[int, Range(0, 2**63 - 1)]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
LONGEST = 160  # characters of a value that an error quotes


def read(name: str, value: Any, hint: Any, error: type[Exception] = ContentError) -> Any:
    """A value as its annotation says, in one form: Python's own numbers, texts and truth values, and tuples.

    What is exact is converted: numpy's numbers and 0-d arrays and tensors of numbers; whole numbers where any number
    may stand; lists, ranges, sets (in order), 1-D arrays and tensors to tuples. Refused are: a truth value or a text as
    a number, any number as a truth value, 3.0 as a whole number, a text as a list of letters, nan, an array of numbers
    where whole numbers are meant. Of a union the first kind that fits counts. Annotations that are no classes (type
    variables, protocols) are not looked at.

    Args:
        name: What the error calls it.
        value: What was given.
        hint: The annotation.
        error: What to raise.

    Raises:
        ContentError: or another `error`; quoting the value and saying what it must be.
    """
    try:
        return exact(value, hint)
    except Unfit:
        pass
    said = f"{name}={shown(value)}"
    choices = [choice for each in _members(hint) if get_origin(each) is Literal for choice in get_args(each)]
    if isinstance(value, str) and choices:
        others = [_words(each) for each in _members(hint) if get_origin(each) is not Literal and each is not type(None)]
        raise error(f"{said} is unknown; choose from {', '.join([*map(repr, choices), *others])}")
    raise error(f"{said} must be {_words(hint)}{_advice(value, hint)}")


def whole_number(
    name: str,
    value: Any,
    least: int | None = None,
    most: int | None = None,
    error: type[Exception] = ContentError,
) -> int:
    """A whole number, as `read` has it, in a range.

    Raises:
        ContentError: or another `error`; it is none, or outside the range.
    """
    return read(name, value, Annotated[int, Range(least, most)], error)


def read_all(cls: type, values: Mapping[str, Any], before: str = "", error: type[Exception] = ContentError) -> dict:
    """Values by the name of a dataclass's field, each as the field's annotation says.

    Args:
        cls: The dataclass.
        values: Values by name; names that are no fields are passed on.
        before: What stands before the field's name in the message, for example "Plan.".
        error: What to raise.

    Raises:
        ContentError: or another `error`; as in `read`.
    """
    hints = _hints(cls)
    return {name: read(f"{before}{name}", value, hints.get(name, Any), error) for name, value in values.items()}


def read_fields(value: Any, given: Sequence[Any], error: type[Exception] = ContentError) -> list[Any]:
    """Read the fields of a new dataclass where they stand; what is the field's default stays as it is.

    Args:
        value: The dataclass, in its `__post_init__`.
        given: What `__post_init__` was given: its InitVars, in order.
        error: What to raise.

    Returns:
        The InitVars, read.
    """
    hints = _hints(type(value))
    for field in fields(value):
        if field.init and (content := getattr(value, field.name)) is not field.default:
            object.__setattr__(value, field.name, read(field.name, content, hints.get(field.name, Any), error))
    names = [name for name, hint in hints.items() if isinstance(hint, InitVar)]
    return [read(name, content, hints[name], error) for name, content in zip(names, given, strict=False)]


def reading_first(check: Callable[..., None]) -> Callable[..., None]:
    """A `__post_init__` before which the fields are read, once: before that of the class, not again before `super()`'s.

    Args:
        check: What it does afterwards.
    """

    @wraps(check)
    def reading(self: Any, *given: Any) -> None:
        if type(self).__post_init__ is reading:
            given = tuple(read_fields(self, given, type(self).kind_error))
        check(self, *given)

    return reading


def reads(*skipped: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it gets its arguments as its annotations say (`read`).

    Args:
        *skipped: Names of arguments that the function reads itself.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def reading(*args: P.args, **kwargs: P.kwargs) -> R:
            bound, hints = signature.bind(*args, **kwargs), _hints(function)
            for name, value in bound.arguments.items():
                parameter = signature.parameters[name]
                several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                if not (value is parameter.default or several or name in skipped):
                    bound.arguments[name] = read(name, value, hints.get(name, Any))
            return function(*bound.args, **bound.kwargs)

        return reading

    return decorate


def shown(value: Any) -> str:
    """A value as an error quotes it: its repr in one line, cut where it is long."""
    text = repr(value) if isinstance(value, str) else " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... {text[-15:]}"


@lru_cache(maxsize=512)
def _hints(thing: Any) -> dict[str, Any]:
    """Annotations of a class or a function; those with names that only a type checker imports are left out."""
    found: dict[str, Any] = {}
    for owner in reversed(getattr(thing, "__mro__", [thing])):
        names = getattr(owner, "__globals__", None) or getattr(sys.modules.get(owner.__module__), "__dict__", {})
        for name, said in inspect.get_annotations(owner).items():
            with suppress(NameError, AttributeError, TypeError):
                one = types.SimpleNamespace(__annotations__={name: said})
                found |= get_type_hints(one, names, include_extras=True)
    return found


def _members(hint: Any) -> Sequence[Any]:
    """The kinds of a union; of anything else itself."""
    if isinstance(hint, InitVar):
        return _members(hint.type)
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, InitVar):
        return _words(hint.type)
    if origin in (Union, types.UnionType):
        *others, last = dict.fromkeys(map(_words, inner))
        return f"{', '.join(others)} or {last}"
    if origin is Annotated:
        return next((each.words(_words(inner[0])) for each in inner[1:] if isinstance(each, Range)), _words(inner[0]))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and inner[-1:] != (...,):
        return f"({', '.join(map(_words, inner))})"
    if origin in (tuple, list, Sequence):
        each = _words(inner[0])
        several = re.sub(r"^a (.*?)(number|text)", r"\1\2s", each)
        return f"a list of {several}" if several != each else f"a list in which each is {each}"
    if origin in (dict, Mapping):
        return "a mapping from names"
    if origin is Callable or hint is Callable:
        return "a function"
    name = getattr(hint, "__name__", str(hint))
    return _WORDS.get(hint, f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}")


def _advice(value: Any, hint: Any) -> str:
    """What a user who wrote a number or a truth value as a text, or too large a number, should know."""
    if isinstance(value, Integral) and abs(int(value)) > 2**53:
        return ", one that a float holds exactly" if _words(hint).startswith(("a number", "a finite number")) else ""
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ", without quotes" if value.lower() in ("true", "false", "null") else ""
    return ", without quotes"
