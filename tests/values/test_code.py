"""A user's class is another content when what it does is another thing, and only then."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import pytest
import torch

from sinklens.errors import ContentError
from sinklens.values.content import Value, digest

FACTOR = 1.0


def scaled(number: float) -> float:
    """A helper that a method calls."""
    return FACTOR * number


class Reads(Value):
    """Reads a global of its module."""

    def value(self) -> float:
        """The global."""
        return FACTOR


class Calls(Value):
    """Calls a function that reads a global."""

    def value(self) -> float:
        """Its result."""
        return scaled(2.0)


@pytest.mark.parametrize("cls", [Reads, Calls])
def test_a_global_that_a_method_reads_is_content(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(cls())
    monkeypatch.setitem(globals(), "FACTOR", 4.0)
    assert digest(cls()) != before
    monkeypatch.undo()
    assert digest(cls()) == before


def enclosing(factor: Any) -> Value:
    """A value of a class that encloses a number."""

    class Encloses(Value):
        def value(self) -> Any:
            return factor

    return Encloses()


def with_default(factor: float) -> Value:
    """A value of a class with a number among its default arguments."""

    class Defaults(Value):
        def value(self, by: float = factor, *, more: float = factor) -> float:
            return by + more

    return Defaults()


def with_attribute(factor: float) -> Value:
    """A value of a class with a number among its attributes."""

    class Attribute(Value):
        by = factor

    return Attribute()


@pytest.mark.parametrize("make", [enclosing, with_default, with_attribute])
def test_what_a_class_was_made_with_is_content(make: Any) -> None:
    assert len({digest(make(factor)) for factor in (0.0, 1.0, 4.0, -1.000001, -1.0000001)}) == 5
    assert digest(make(1.0)) == digest(make(1.0))


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ContentError, match="has no content that could be compared"):
        digest(enclosing(object()))


class Slotted(Value):
    """Holds a number where no dict shows it."""

    __slots__ = ("by",)

    def __init__(self, by: float) -> None:
        self.by = by


@dataclass(frozen=True)
class Hidden(Value):
    """A field that is not compared, though a user gives it."""

    by: float = field(default=1.0, compare=False)


@pytest.mark.parametrize("value", [Slotted(1.0), Hidden(1.0)], ids=["slots", "compare=False"])
def test_what_is_held_beside_the_fields_is_refused(value: Value) -> None:
    with pytest.raises(ContentError, match=f"{type(value).__name__} holds by, which is no field"):
        digest(value)


def test_slots_of_a_dataclass_are_its_fields() -> None:
    @dataclass(frozen=True, slots=True)
    class Fine(Value):
        by: float = 1.0

    assert digest(Fine(1.0)) != digest(Fine(2.0))


def test_another_method_is_another_content() -> None:
    def one() -> type:
        class Same(Value):
            def value(self, x: float) -> float:
                return x * 2

        return Same

    def other() -> type:
        class Same(Value):
            def value(self, x: float) -> float:
                return x * 3

        return Same

    one_cls, other_cls = one(), other()
    other_cls.__qualname__ = one_cls.__qualname__
    assert digest(one_cls()) != digest(other_cls())


def test_a_property_and_a_nested_function_are_code() -> None:
    def make(by: int) -> type:
        source = f"""
        class Made(Value):
            @property
            def p(self):
                def inner():
                    return {by}
                return inner()
        """
        names: dict[str, Any] = {"Value": Value, "__name__": __name__}
        exec(textwrap.dedent(source), names)
        return names["Made"]

    assert digest(make(1)()) != digest(make(2)())
    assert digest(make(1)()) == digest(make(1)())


def test_a_dataclass_is_its_fields_and_its_code() -> None:
    @dataclass(frozen=True)
    class Scaled(Value):
        by: float = 1.0

        def value(self) -> float:
            return self.by

    assert digest(Scaled(1.0)) != digest(Scaled(2.0))
    assert digest(Scaled(2.0)) == digest(Scaled(2.0))


def decorated(factor: float) -> Value:
    """A value of a class whose method a library has wrapped."""

    class Wrapped(Value):
        @torch.no_grad()
        def value(self) -> float:
            return factor

        @cached_property
        def kept(self) -> float:
            return factor

        @staticmethod
        @lru_cache
        def known() -> float:
            return factor

    return Wrapped()


def test_decorators_of_libraries_are_looked_through() -> None:
    assert digest(decorated(1.0)) == digest(decorated(1.0)) != digest(decorated(2.0))


def test_the_same_class_in_another_process_is_the_same() -> None:
    """Also where it holds a set, whose order differs from process to process."""
    code = """
    from dataclasses import dataclass
    from sinklens.values.content import Value, digest
    @dataclass(frozen=True)
    class Own(Value):
        by: float = 1.0
        def value(self, x):
            return x in {"a", "b", "c", "d", "e"}
    print(digest(Own(2.0)))
    """
    runs = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert len(set(runs)) == 1
