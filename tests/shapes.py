"""The run-time check of shapes in the tests: jaxtyping's import hook with beartype, where a signature says a shape.

The hook wraps every function, also those that say no shape, and a wrapped call costs tens of microseconds; so it is
told to leave the others alone. Of the other annotations nothing is checked: what users pass by mistake stays for the
function itself to refuse.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

SHAPES = re.compile(r"\b(Float|Int|Bool|Num|Shaped)\[|\b(Logits|Mask|Confidence)\b")  # the last: aliases of remasking
CHECKED = 5  # calls of a function in a test
calls: dict[Any, int] = {}  # of this test; the fixture `fresh_shapes` empties it
_jaxtyped = jaxtyping.jaxtyped


def shapes_only(function: Any) -> Any:
    """A function of whose annotations those that say a shape are checked."""
    if inspect.isclass(function):  # a dataclass, whose __init__ is checked
        return function
    function.__annotations__ = _shapes(function)
    return beartype(function)


def where_shapes_are_said(*, typechecker: Any) -> Callable[[Any], Any]:
    """Jaxtyping's decorator, for functions and dataclasses that say a shape."""
    decorate = _jaxtyped(typechecker=typechecker)
    return lambda thing: decorate(thing) if _shapes(thing) else thing


def install() -> None:
    """Check what is imported of sinklens from here on."""
    jaxtyping.jaxtyped = where_shapes_are_said
    jaxtyping.install_import_hook("sinklens", "shapes.shapes_only")


def _shapes(thing: Any) -> dict[str, Any]:
    said = vars(thing).get("__annotations__", {}) if inspect.isclass(thing) else thing.__annotations__
    return {name: hint for name, hint in said.items() if SHAPES.search(str(hint))}
