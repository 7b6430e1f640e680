"""What a user's class does, as a hash of its code, so that a changed method is another content."""

from __future__ import annotations

import hashlib
import sysconfig
import types
from collections.abc import Callable
from typing import Any

from sinklens.errors import ContentError

Plain = Callable[[Any], Any]
OURS = ("sinklens", "abc", "builtins", "typing")
PLAIN = ("builtins", "numpy", "sinklens", "torch", "xarray")
# What no measurement depends on; most of it is written by dataclasses.
SKIPPED = ("__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__", "__doc__")


def code_digest(cls: type, plain: Plain) -> str:
    """Hash of the methods of a class, its class attributes, and the plain values that the methods read from outside.

    Those are: what a method encloses, its default arguments, and globals of its module that are plain data or
    functions. What a method reads otherwise (a file, an attribute of a module) is not seen.

    Args:
        cls: The class.
        plain: `content.plain`.

    Raises:
        ContentError: a method encloses something whose content cannot be told.
    """
    code = _Code(plain)
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in OURS:
            continue
        for name, member in sorted(vars(base).items()):
            function = _function(member)
            if name in SKIPPED or (name == "__init__" and _written(base, function)):
                continue
            if function is not None:
                code.add(name)
                code.add_function(function)
            elif not name.startswith("__"):
                code.add_value(name, member)
    return code.hash.hexdigest()[:16]


def _function(member: Any) -> types.FunctionType | None:
    """The function behind a method, a property, a cached property or a cached function."""
    for name in ("__func__", "fget", "func", "__wrapped__"):
        member = member if isinstance(member, types.FunctionType) else getattr(member, name, member)
    while isinstance(member, types.FunctionType) and hasattr(member, "__wrapped__") and _ours(member):
        member = getattr(member, "__wrapped__")  # noqa: B009 - what sinklens puts around a method says nothing of the method
    return member if isinstance(member, types.FunctionType) else None


def _ours(function: types.FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).split(".")[0] == "sinklens"


def _written(cls: type, function: types.FunctionType | None) -> bool:
    """Whether a dataclass wrote its `__init__` itself."""
    made = function is not None and function.__code__.co_filename == "<string>"
    return made and "__dataclass_fields__" in vars(cls)


def _installed(code: types.CodeType) -> bool:
    paths = sysconfig.get_paths()
    return code.co_filename.startswith((paths["purelib"], paths["platlib"], paths["stdlib"]))


class _Code:
    def __init__(self, plain: Plain) -> None:
        self.plain, self.hash, self.known = plain, hashlib.sha256(), set[int]()

    def add(self, *parts: object) -> None:
        self.hash.update(("\0".join(map(str, parts)) + "\1").encode())

    def add_value(self, name: str, value: Any) -> None:
        """A value, if it is plain data; of anything else, which may lead back to here, only the type."""
        kind = type(value)
        try:
            known = kind.__module__.split(".")[0] in PLAIN
            self.add(name, self.plain(value) if known else kind.__name__)
        except ContentError:
            self.add(name, kind.__name__)

    def add_function(self, function: types.FunctionType) -> None:
        if id(function) in self.known:
            return
        self.known.add(id(function))
        if str(function.__module__).split(".")[0] == "sinklens":  # the version of sinklens says what it does
            self.add(function.__module__, function.__qualname__)
            return
        self._add_code(function.__code__)
        self.add(self.plain([*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__":
                continue
            inside = _function(cell.cell_contents)
            if inside is not None:
                self.add_function(inside)
            elif _installed(function.__code__):  # a decorator of a library
                self.add_value(name, cell.cell_contents)
            else:
                self.add(name, self.plain(cell.cell_contents))
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
                self.add_function(value)
            elif value is not None and not isinstance(value, type | types.ModuleType):
                self.add_value(name, value)

    def _add_code(self, code: types.CodeType) -> None:
        self.hash.update(code.co_code)
        self.add(code.co_names, code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._add_code(constant)
            else:  # a set has another order in every process
                self.add(sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant))


def _names(code: types.CodeType) -> list[str]:
    inner = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names(each)]
    return sorted({*code.co_names, *inner})
