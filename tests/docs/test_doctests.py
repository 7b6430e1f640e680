"""Examples in docstrings run, and give what stands below them."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import sinklens

PACKAGE = Path(sinklens.__file__).parent
HOLDING = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8") and "harness" not in path.parts  # those name tasks of one's own
)


def test_what_is_used_most_has_an_example() -> None:
    assert len(HOLDING) >= 15


@pytest.mark.parametrize("name", HOLDING)
def test_examples_of_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert found.attempted
    assert not found.failed
