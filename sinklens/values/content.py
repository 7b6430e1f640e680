"""Values with content: what a rule, a scope, a probe, an edit or a plan is, as plain data, and the hash of that.

Scores are stored and compared under this hash, never under a repr: a repr may round, leave out, or hold an address.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from inspect import isabstract
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinklens.errors import ContentError
from sinklens.values.arrays import array_content, record_digest
from sinklens.values.code import code_digest
from sinklens.values.kinds import read, read_all, reading_first, shown
from sinklens.values.notebook import Shown, Told, first_sentence, said

V = TypeVar("V", bound="Value")
_CLASSES: dict[str, type] = {}


def _name(cls: type) -> str:
    return cls.__name__ if cls.__module__.startswith("sinklens.") else f"{cls.__module__}.{cls.__qualname__}"


class Value(Shown):
    """Base of everything that is described by its fields: a frozen dataclass that holds no state.

    Two values with equal fields are the same thing, in every process and on every machine; `digest` tells values
    apart. A class of your own is a frozen dataclass, too, or says in `identity` what it is. Fields hold what their
    annotations say, in one form (`kinds.read`): numpy.int64(8) is 8, a list is a tuple, and True is no number.

    Attributes:
        identity: What this is, in words, for a class that is no dataclass or holds what has no content. Whoever sets
            it promises that two things with one identity do the same.
        kind_error: What is raised for a field of the wrong kind.
    """

    identity: str | None = None
    kind_error: ClassVar[type[Exception]] = ContentError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES[_name(cls)] = cls
        if "__post_init__" in vars(cls):
            cls.__post_init__ = reading_first(vars(cls)["__post_init__"])

    @reading_first
    def __post_init__(self, *given: Any) -> None:
        """Every class of values gets its fields as they say (`kinds.read`) before its own `__post_init__`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: the class under "type", and every field.

        Raises:
            ContentError: something in it has no content to compare: a function without a name, a class of your own
                with attributes that are no fields.
        """
        return plain(self)

    @classmethod
    def from_dict(cls: type[V], data: Mapping[str, Any]) -> V:
        """The value that `to_dict` described.

        Raises:
            ContentError: an unknown type, or fields that the type does not have.
        """
        made = rebuilt(data)
        if not isinstance(made, cls):
            raise ContentError(f"{data.get('type')!r} is no {cls.__name__}")
        return made

    @property
    def digest(self) -> str:
        """Hash of the content, 32 hexadecimal digits."""
        return digest(self)

    def told(self) -> Told:
        """What a notebook shows: the fields that are not as ever."""
        rows = [(each.name, said(getattr(self, each.name))) for each in _fields(self) if _differs(self, each)]
        return Told(first_sentence(self), [("in Python", repr(self)), *rows])

    def __repr__(self) -> str:
        shown = [f"{f.name}={said(getattr(self, f.name))}" for f in _fields(self) if _differs(self, f)]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Named(Value):
    """A function with a name, which is then all that tells it from others. See `named`."""

    name: str
    function: Callable[..., Any] = dataclasses.field(compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ContentError(f"name={self.name!r} must be a text, for example named('evenly', function)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def named(name: str, function: Callable[..., Any]) -> Named:
    """Give a function a name, so that edits that use it can be told apart and their scores stored.

    Two functions with one name count as the same; choose another name when you change what it does.
    """
    return Named(name, function)


def digest(value: Any) -> str:
    """Hash of anything that `plain` can describe, 32 hexadecimal digits; 1 and 1.0 are one number."""
    text = json.dumps(_numbers(plain(value)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def plain(value: Any) -> Any:
    """A value as plain JSON data that says everything about it.

    Raises:
        ContentError: it has no content that could be compared.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case np.bool_() | np.integer():
            return value.item()
        case float() | np.floating():
            number = float(value)
            return number if math.isfinite(number) else {"type": "float", "value": repr(number)}
        case slice():
            return {"type": "slice", "parts": [plain(part) for part in (value.start, value.stop, value.step)]}
        case range() | tuple() | list():
            return [plain(each) for each in value]
        case set() | frozenset():
            return sorted((plain(each) for each in value), key=json.dumps)
        case Named():
            return {"type": "Named", "name": value.name}
        case Value():
            return _content(value)
        case xr.Dataset():  # before mappings, for it is one
            return {"type": "record", "sha256": record_digest(value)}
        case Mapping():
            wrong = [key for key in value if not isinstance(key, str)]
            if wrong:
                raise ContentError(f"the key {wrong[0]!r} of a mapping is no text")
            return {key: plain(each) for key, each in value.items()}
        case Tensor():
            return array_content("tensor", value.detach().cpu().contiguous())
        case np.ndarray() if value.dtype.kind in "biufc":
            return array_content("array", torch.from_numpy(np.array(value, order="C")))
        case torch.dtype() | torch.device():
            return str(value)
    if callable(value):
        raise ContentError(
            f"{value!r} is a function, and whether two functions do the same cannot be seen; give it a name: "
            "sinklens.named('what it does', function)"
        )
    raise ContentError(f"{value!r} has no content that could be compared; use plain values, or set `identity`")


def _numbers(data: Any) -> Any:
    """Plain data in which equal numbers are written alike."""
    if isinstance(data, float) and data.is_integer():
        return int(data)
    if isinstance(data, list):
        return [_numbers(each) for each in data]
    return {key: _numbers(each) for key, each in data.items()} if isinstance(data, dict) else data


def rebuilt(data: Any) -> Any:
    """The value that `plain` described.

    Raises:
        ContentError: an unknown type, unknown fields, or something of which only the hash was kept.
    """
    if isinstance(data, list):
        return tuple(rebuilt(each) for each in data)
    if not isinstance(data, Mapping):
        return data
    kind = data.get("type")
    if kind is None:
        return {key: rebuilt(each) for key, each in data.items()}
    kind = read("type", kind, str)
    if kind in ("float", "slice"):
        return _parts(kind, data)
    if kind in ("record", "tensor", "array", "Named") or "identity" in data:
        article = "an" if kind[:1] in "Aa" else "a"
        what = f"the function named {data.get('name')!r}" if kind == "Named" else f"{article} {kind}"
        raise ContentError(f"{what} cannot be made from its description; build this value in Python")
    if kind not in _CLASSES:
        raise ContentError(f"type {kind!r} is unknown; the types are {', '.join(sorted(_CLASSES))}")
    return build(_CLASSES[kind], {key: rebuilt(each) for key, each in data.items() if key not in ("type", "code")})


def _parts(kind: str, data: Mapping[str, Any]) -> float | slice:
    """What JSON has no word for, from its parts."""
    try:
        return float(data["value"]) if kind == "float" else slice(*data["parts"])
    except (KeyError, TypeError, ValueError):
        raise ContentError(f"{shown(dict(data))} describes no {kind}") from None


def build(cls: type, arguments: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from its fields by name.

    Raises:
        ContentError: a field that the class does not have; the message lists those that it has. One that is missing,
            or holds another kind of thing than it says.
    """
    if isabstract(cls) or not is_dataclass(cls):
        raise ContentError(f"{cls.__name__} cannot be made from a description; name one of its kinds")
    known = [each for each in fields(cls) if each.init]
    names = [each.name for each in known]
    wrong = [name for name in arguments if name not in names]
    if wrong:
        near = get_close_matches(str(wrong[0]), names, 1)
        advice = f"; do you mean {near[0]!r}?" if near else ""
        raise ContentError(f"{cls.__name__} has no field {wrong[0]!r}; its fields are {', '.join(names)}{advice}")
    missing = [each.name for each in known if each.name not in arguments and _needed(each)]
    if missing:
        raise ContentError(f"{cls.__name__} needs the field {missing[0]!r}")
    return cls(**read_all(cls, arguments, f"{cls.__name__}."))


def _needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _content(value: Value) -> dict[str, Any]:
    cls = type(value)
    if value.identity is not None:
        return {"type": _name(cls), "identity": value.identity}
    # A field that takes no part in comparisons is derived from the others, and says nothing more.
    stated = {each.name for each in fields(value) if each.compare or not each.init} if is_dataclass(value) else set()
    loose = sorted(_held(value) - stated)
    if loose:
        raise ContentError(
            f"{cls.__name__} holds {', '.join(loose)}, which is no field, so two of them could not be told apart; make "
            "it a frozen dataclass (@dataclass(frozen=True)), or set `identity` to a text that says what it is"
        )
    content = {"type": _name(cls), **{each.name: plain(getattr(value, each.name)) for each in _fields(value)}}
    if not cls.__module__.startswith("sinklens."):
        content["code"] = code_digest(cls, plain)
    return content


def _held(value: Any) -> set[str]:
    """Names of what an object holds, in its dict or in slots."""
    slots = {name for cls in type(value).__mro__ for name in _listed(vars(cls).get("__slots__", ()))}
    return {*getattr(value, "__dict__", {}), *(name for name in slots - {"__weakref__"} if hasattr(value, name))}


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _fields(value: Any) -> list[dataclasses.Field]:
    return [each for each in fields(value) if each.compare] if is_dataclass(value) else []


def _differs(value: Any, field: dataclasses.Field) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    try:
        return default is dataclasses.MISSING or bool(getattr(value, field.name) != default)
    except (TypeError, ValueError):  # arrays: shown, to be safe
        return True
