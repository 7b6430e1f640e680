"""docs/compose.md says what the tools do: every cell is run, every tool is there, every reproduction still shows it."""

from __future__ import annotations

import inspect

import pytest
from compose import page
from compose.cases import COLUMNS
from compose.inventory import NOT_RUN, taking_a_model
from compose.table import TOOLS, Tool
from compose.upstream import WRONG, Wrong, shown


@pytest.mark.parametrize("found", TOOLS, ids=lambda found: f"{found.room.split()[0]}-{found.name}")
def test_right_or_refused(found: Tool) -> None:
    """A wrong number, or an error that is no refusal, comes out of here."""
    said = page.cells(found)
    assert list(said) == list(COLUMNS)


def test_the_page_says_what_was_found() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.written(), "PYTHONPATH=tests python -m compose.page"


def test_no_tool_that_takes_a_model_is_forgotten() -> None:
    """Each is run, or stands in the list of those that are not, with a reason."""
    run = {name.removeprefix("evals.").removeprefix("utilities.") for found in TOOLS for name in found.covers}
    assert taking_a_model() - run - set(NOT_RUN) == set()
    assert run & set(NOT_RUN) == set()


@pytest.mark.parametrize("found", TOOLS, ids=lambda found: f"{found.room.split()[0]}-{found.name}")
def test_a_check_calls_what_it_covers(found: Tool) -> None:
    """By its text; matrices and sweeps are called by a name that is put together."""
    text = inspect.getsource(found.check)
    for name in found.covers[1:]:
        word = name.rpartition(".")[2]
        assert word in text or word[:2] in ("W_", "b_"), name


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.title)
def test_what_transformer_lens_gets_wrong_it_still_gets_wrong(wrong: Wrong) -> None:
    """When one of these passes upstream, its paragraph goes, and with it what sinklens does about it."""
    theirs, right = shown(wrong)
    assert abs(theirs - right) > 0.05
    assert sum(map(bool, wrong.code.splitlines())) <= 5
