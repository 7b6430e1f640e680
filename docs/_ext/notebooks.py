"""Chapters: percent scripts become notebooks, and every folded solution is executed behind its exercise and checked."""

from __future__ import annotations

import re

import jupytext
import nbformat
from nbformat import NotebookNode

# `sl.course.check("3.2", answer)` in a code cell; the folded solution below it assigns to the same name.
CHECK = re.compile(r'sl\.course\.check\("(?P<name>\d\.\d)", (?P<variable>\w+)\)')
SOLUTION = re.compile(r"<summary>Solution</summary>\s+```python\n(?P<code>.*?)```\s+.*?</details>", re.DOTALL)


class ChapterError(Exception):
    """A chapter that is not made as chapters are."""


def read(text: str) -> NotebookNode:
    """A chapter's notebook as the site executes it: with a cell, not shown, for each solution that must check right."""
    notebook = jupytext.reads(text, fmt="py:percent")
    cells, asked = [], None
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and (found := CHECK.search(cell.source)):
            if asked is not None:
                raise ChapterError(f"exercise {asked['name']} has no folded solution before {found['name']}")
            asked = found
        if cell.cell_type == "markdown" and (solution := SOLUTION.search(cell.source)):
            if asked is None:
                raise ChapterError(f"a solution without an exercise before it: {solution['code']}")
            cells.append(_checked(solution["code"], asked))
            asked = None
    if asked is not None:
        raise ChapterError(f"exercise {asked['name']} has no folded solution")
    notebook.cells = cells
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def _checked(code: str, asked: re.Match[str]) -> NotebookNode:
    name, variable = asked["name"], asked["variable"]
    source = (
        f"{code}\n_verdict = sl.course.check({name!r}, {variable})\n"
        f"if not _verdict:\n    raise RuntimeError(f'the solution of {name} in the text: {{_verdict}}')"
    )
    return nbformat.v4.new_code_cell(source, metadata={"tags": ["remove-cell"]})
