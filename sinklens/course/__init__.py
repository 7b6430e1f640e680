"""The course's exercises, `check("3.2", answer)`, and its chapters as notebooks.

A check says what is wrong with an answer, not only that it is; the right one it computes by itself, from the same
models and seeds. What a chapter says stands in `docs/course`; what it measures with belongs to the rooms below.
"""

from sinklens.course.answers import Wrong, array, call, choice, near, number
from sinklens.course.chapters import chapters, copy
from sinklens.course.checking import EXERCISES, Exercise, Verdict, check

__all__ = [
    "EXERCISES",
    "Exercise",
    "Verdict",
    "Wrong",
    "array",
    "call",
    "chapters",
    "check",
    "choice",
    "copy",
    "near",
    "number",
]
