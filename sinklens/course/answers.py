"""What an answer is read as, and what to say when it is none: a number, an array, a function, one of several words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinklens.errors import CourseError


class Wrong(Exception):
    """An answer is not right; the message says what is wrong with it. `check` turns it into a `Verdict`."""


def array(answer: Any, shape: Sequence[int] | None = None) -> np.ndarray:
    """An answer as float64, whatever library it comes from; of this shape, if one is said.

    Raises:
        Wrong: no numbers, or another shape; both shapes are quoted.
    """
    detached = answer.detach().cpu() if hasattr(answer, "detach") else answer
    try:
        values = np.asarray(detached, dtype=np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"expected numbers, and got {_quoted(answer)}") from None
    if shape is not None and values.shape != tuple(shape):
        raise Wrong(f"expected the shape {tuple(shape)}, and got {values.shape}")
    return values


def number(answer: Any) -> float:
    """An answer as one finite number.

    Raises:
        Wrong: it is none, or several.
    """
    values = array(answer)
    if values.size != 1:
        raise Wrong(f"expected one number, and got {values.size} of them, in the shape {values.shape}")
    value = float(values.reshape(()))
    if not np.isfinite(value):
        raise Wrong(f"expected a number, and got {value}")
    return value


def near(answer: Any, truth: Any, *, tolerance: float = 1e-4, mistakes: Mapping[str, Any] | None = None) -> None:
    """Nothing, if an answer is the truth within a tolerance, in the truth's own shape.

    Args:
        answer: A number or an array.
        truth: What is right.
        tolerance: Largest absolute difference.
        mistakes: What to say of values that a known mistake gives.

    Raises:
        CourseError: a listed mistake gives the right answer: the exercise cannot tell them apart.
        Wrong: the mistake that gives this answer, if one does; else where it is off most, and in which direction.
    """
    right = np.asarray(truth, dtype=np.float64)
    for says, value in (mistakes or {}).items():
        if np.shape(value) == right.shape and np.allclose(value, right, atol=tolerance, rtol=0, equal_nan=True):
            raise CourseError(f"a listed mistake gives what is right, so that nothing tells them apart: {says}")
    got = np.asarray(number(answer)) if right.size == 1 else array(answer)
    if got.shape == right.shape and np.allclose(got, right, atol=tolerance, rtol=0, equal_nan=True):
        return
    for says, value in (mistakes or {}).items():
        wrong = np.asarray(value, dtype=np.float64)
        if got.shape == wrong.shape and np.allclose(got, wrong, atol=tolerance, rtol=0, equal_nan=True):
            raise Wrong(says)
    got = array(got, right.shape)
    if right.size == 1:
        raise Wrong(f"{float(got):.6g} is too {'large' if got > right else 'small'}")
    off = np.nan_to_num(np.abs(got - right), nan=np.inf)
    place = tuple(int(each) for each in np.unravel_index(int(off.argmax()), off.shape))
    count = int((off > tolerance).sum())
    raise Wrong(f"{count} of {right.size} values are off, most at {list(place)}: {got[place]:.6g} there")


def choice(answer: Any, options: Sequence[str]) -> str:
    """One of several words, in lower case.

    Raises:
        Wrong: another one; the message lists them.
    """
    said = str(answer).strip().lower()
    if said not in options:
        raise Wrong(f"expected one of {', '.join(options)}, and got {_quoted(answer)}")
    return said


def call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What an answer that is a function returns.

    Raises:
        Wrong: it is none, or it raises; its error is quoted, unless it is one that a judge's own hook raised.
    """
    if not isinstance(function, Callable):
        raise Wrong(f"expected a function, and got {_quoted(function)}")
    try:
        return function(*args, **kwargs)
    except Wrong:
        raise
    except Exception as error:  # the student's own code: its error is the answer to show
        raise Wrong(f"your function raised {type(error).__name__}: {error}") from error


def _quoted(answer: Any) -> str:
    said = repr(answer)
    return said if len(said) <= 80 else said[:77] + "..."
