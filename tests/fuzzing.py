"""What every fuzz test asks: an example is a right result, or one clear error that quotes what was given."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

import sinklens
from sinklens.cli.app import main
from sinklens.errors import SinklensError

PACKAGE = Path(sinklens.__file__).parent


def fuzz(
    few: int = 200, many: int = 5000, **strategies: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on `few` examples, and with `pytest -m slow` on `many`.

    The test takes the strategies' names as arguments and no fixtures; what is slow to make, make once (`lru_cache`).
    """

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def fuzzed(examples: int) -> None:
            quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
            quiet(given(**strategies)(test))()

        fuzzed.__name__, fuzzed.__doc__ = test.__name__, test.__doc__
        return fuzzed

    return wrap


def refused(call: Callable[[], Any], quotes: Sequence[str] = ()) -> str | None:
    """What the error of a call says; None if it went through.

    Fails for any other exception, for one that sinklens did not raise itself, and for one that quotes none of `quotes`
    (if there are any).
    """
    try:
        call()
    except Exception as error:
        raised_by = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = isinstance(error, SinklensError | ValueError | TypeError) and raised_by.is_relative_to(PACKAGE)
        if not ours:
            raise AssertionError(f"no clear error of sinklens's own: {type(error).__name__}: {error}") from error
        text = str(error)
        assert text.strip(), "an error that says nothing"
        assert not quotes or any(quote in text for quote in quotes), f"{text!r} quotes none of {quotes!r}"
        return text
    return None


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output of a command line; a traceback is a failure of the test."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch("sys.argv", ["sinklens", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    assert "Traceback" not in err.getvalue(), err.getvalue()
    if code:
        assert err.getvalue().strip(), f"exit {code} and nothing said for {arguments}"
    return int(code), out.getvalue(), err.getvalue()
