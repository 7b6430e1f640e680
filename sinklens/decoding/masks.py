"""Masks, which an autoregressive baseline never sees: probes and edits that are of masked positions are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from sinklens.errors import ScopeError
from sinklens.models.outline import Sketched

SETS = ("queries", "positions", "keys")  # fields that name a set of positions
INNER = ("selector", "of", "rule")  # fields that hold what may name one


def refuse_masks(dlm: Sketched, part: Any) -> None:
    """Raise for a probe or an edit of masked positions in a baseline: it would measure nan or 0, and edit nothing.

    Raises:
        ScopeError: quoting the part and its field.
    """
    if not dlm.is_causal:
        return
    for name in _named(part):
        raise ScopeError(
            f"{part!r}: {dlm.name} is autoregressive and sees no masks, so that {name}='masked' is empty; say "
            f"{name}='last', 'response' or 'all'"
        )


def _named(part: Any) -> Iterator[str]:
    """The fields of a value, and of what it is made of, that say "masked".

    Not of what reads a record: a rule is of that run, which may be a diffusion model's.
    """
    if not is_dataclass(part) or hasattr(part, "record"):
        return
    for field in fields(part):
        given = getattr(part, field.name)
        if field.name in SETS and given == "masked":  # among several sets measured side by side it may be
            yield field.name
        elif field.name in INNER:
            yield from (f"{field.name}.{name}" for name in _named(given))
