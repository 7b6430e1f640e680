"""What a notebook shows of a value, a model, a run or a result: a short table, escaped, in the notebook's colours."""

from __future__ import annotations

import html
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

LONGEST = 200  # characters of a cell
MOST = 12  # lines of a table

_STYLE = "color: inherit; background: transparent; text-align: left; vertical-align: top; padding: 1px 14px 1px 0"
_LINE = "border: 0; border-top: 1px solid rgba(128, 128, 128, .35)"


@dataclass(frozen=True)
class Told:
    """What is shown of a thing. Everything is plain text, and escaped.

    Attributes:
        about: One sentence.
        rows: What it is: names and values.
        tables: Headings, lines, and how many lines there are in all.
    """

    about: str
    rows: Sequence[tuple[str, Any]]
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[Any]], int]] = ()


class Shown:
    """Base of what a notebook shows as a table. It never raises, runs no forward, and forms no large array."""

    def told(self) -> Told:
        """What to show."""
        return Told("", [("", repr(self))])

    def _repr_html_(self) -> str:
        try:
            told = self.told()
        except Exception as error:  # a notebook would print a traceback instead of the thing
            told = Told(f"it cannot be shown: {type(error).__name__}: {error}", [])
        warned = f"<div>{_cell(told.about)}</div>" if told.about else ""
        rows = "".join(_line([name, value]) for name, value in told.rows)
        tables = "".join(_table(*table) for table in told.tables)
        first = f'<table style="border-collapse: collapse; margin: 4px 0">{rows}</table>' if rows else ""
        return (
            '<div style="color: inherit; font-size: 13px; line-height: 1.45; max-width: 72em; overflow-x: auto">'
            f"<div><b>{_cell(type(self).__name__)}</b></div>{warned}{first}{tables}</div>"
        )


def first_sentence(thing: Any) -> str:
    """The first line of a class's own docstring; none of what dataclasses write themselves."""
    line = (inspect.getdoc(type(thing)) or "").split("\n")[0]
    return "" if line.startswith(f"{type(thing).__name__}(") else line


def said(value: Any) -> str:
    """A repr in one line: arrays and records by their sizes. What tells two of them apart is the digest."""
    if isinstance(value, Tensor | np.ndarray):
        return f"<{'tensor' if isinstance(value, Tensor) else 'array'} {'x'.join(map(str, value.shape))}>"
    if isinstance(value, xr.Dataset):
        return f"<record {', '.join(f'{size} {dim}s' for dim, size in value.sizes.items())}>"
    return repr(value)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        text = f"{value:.4g}"
    else:
        text = value if isinstance(value, str) else "" if value is None else said(value)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... {text[-15:]}"
    return html.escape("".join(each if each.isprintable() else repr(each)[1:-1] for each in text))


def _line(values: Sequence[Any], tag: str = "td", style: str = _LINE) -> str:
    cells = "".join(f'<{tag} style="{_STYLE}; {style}">{_cell(value)}</{tag}>' for value in values)
    return f'<tr style="background: transparent">{cells}</tr>'


def _table(heads: Sequence[str], lines: Sequence[Sequence[Any]], number: int) -> str:
    body = "".join(_line(line) for line in lines[:MOST])
    left = number - min(len(lines), MOST)
    more = f"<div>and {left} more</div>" if left > 0 else ""
    head = f"<thead>{_line(heads, 'th', 'border: 0')}</thead>"
    return f'<table style="border-collapse: collapse; margin: 4px 0">{head}<tbody>{body}</tbody></table>{more}'
