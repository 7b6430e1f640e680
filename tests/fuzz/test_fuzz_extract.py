"""Regular expressions of users: the same matches as Python's `re`, and an end where `re` has none."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from fuzzing import fuzz, refused
from hypothesis import assume
from hypothesis import strategies as st

from sinklens.errors import TaskError
from sinklens.tasks import matching
from sinklens.tasks.matching import matches

CHARACTERS = [
    *"ab1 .^${}Aé",
    r"\d",
    r"\w",
    r"\W",
    r"\s",
    r"\b",
    r"\.",
    r"\{",
    "[ab]",
    "[^a]",
    "[0-9.,]",
    "[{]",
    r"[\]{]",
]
ATOMS = st.sampled_from([*CHARACTERS, "{e}", "{i<=1}", "{1", "x^{e}", "{}", "-?", "(?:ab)"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(
            inner, st.sampled_from(["({})", "(?:{})", "({})?", "({})+", "{}*", "{}+?", "{}{{2}}", "{}{{1,}}"])
        ).map(lambda both: both[1].format(both[0])),
        st.tuples(inner, inner).map("|".join),
    ),
    max_leaves=4,
)
TEXTS = st.text("ab1 .{}e-,A\né", max_size=10) | st.sampled_from(["The answer is 12,5.", "x^{e}", "a{i<=1}b"])


def by_re(extract: str, text: str) -> list[str] | None:
    """What `re` finds; None for what it cannot read without a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expression = re.compile(extract)
    except (re.error, Warning):
        return None
    return [found[min(1, expression.groups)] or "" for found in expression.finditer(text)]


@fuzz(few=300, many=20000, extract=EXPRESSIONS, text=TEXTS)
def test_an_expression_finds_what_re_finds(extract: str, text: str) -> None:
    expected = by_re(extract, text)
    if expected is None:
        said = refused(lambda: matches(extract, text), [repr(extract)])
        assert said is not None
        return
    assert matches(extract, text) == expected
    whole = re.fullmatch(extract, text.strip())
    groups = re.compile(extract).groups
    assert matches(extract, text, full=True) == ([] if whole is None else [whole[min(1, groups)] or ""])


@fuzz(extract=st.text("ab(){}[]?*+|\\^$.-<>=!:12,e&", max_size=8), text=TEXTS)
def test_any_text_as_an_expression(extract: str, text: str) -> None:
    expected = by_re(extract, text)
    said = refused(lambda: matches(extract, text), [repr(extract)])
    assume(said is None)
    assert matches(extract, text) == expected


@pytest.mark.parametrize("extract", ["(a|a)*$", "(a|aa)+$", r"((a|a)*)\d"])
@pytest.mark.parametrize("full", [False, True])
def test_an_expression_that_never_ends_is_an_error(extract: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "SECONDS", 0.2)
    began, text = time.monotonic(), "a" * 100 + "b" * (not full) + "!"
    with pytest.raises(
        TaskError, match=r"extract='.*' was not done with the \d+ characters 'aaa.*one repetition"
    ) as told:
        matches(extract, text, full=full)
    assert repr(extract) in str(told.value)
    assert time.monotonic() - began < 20
