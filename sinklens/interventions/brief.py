"""Short names of selectors and edits: the class and what is not as ever. For people; identity is the content."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from sinklens.values.content import Named, Value


class Brief(Value):
    """A value whose repr is how one would write it, shortest first: `ScaleSinks(0.1, SameStep(top_k=2))`."""

    def __repr__(self) -> str:
        return brief(self)


def brief(value: Any, **instead: str) -> str:
    """The repr of a dataclass: positional fields without their names, defaults left out, `selector` never.

    Args:
        value: The dataclass.
        **instead: Texts for fields that would show too much; "" leaves a field out.
    """
    shown, in_order = [], True
    stated = [field for field in fields(value) if field.init and field.compare] if is_dataclass(value) else []
    for field in sorted(stated, key=lambda field: bool(field.kw_only)):
        content = getattr(value, field.name)
        usual = field.default is not MISSING and field.name != "selector" and content == field.default
        if instead.get(field.name, "usual" if usual else None) in ("", "usual"):
            in_order = in_order and field.kw_only
            continue
        text = instead.get(field.name) or _said(content)
        shown.append(text if in_order and not field.kw_only else f"{field.name}={text}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _said(content: Any) -> str:
    if callable(content) and not isinstance(content, Named):
        return getattr(content, "__qualname__", repr(content))
    return repr(content)
