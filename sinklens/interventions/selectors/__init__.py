"""Who is edited: selectors find the keys of a row, layer and head.

A selector changes nothing; what happens to the keys that it finds is an edit's business. One file per way to find
them: attention, places, norms, a record, and what matches another selector's keys (for controls).
"""

from sinklens.interventions.selectors.attention import LastQuery, PreviousStep, SameStep
from sinklens.interventions.selectors.base import Evidence, Selector
from sinklens.interventions.selectors.matched import (
    BottomKeys,
    Matched,
    RandomKeys,
    SameClass,
    SameMass,
    ShiftedKeys,
)
from sinklens.interventions.selectors.norms import ByKeyNorm
from sinklens.interventions.selectors.places import ByToken, Fixed
from sinklens.interventions.selectors.record import FromRecord

__all__ = [
    "BottomKeys",
    "ByKeyNorm",
    "ByToken",
    "Evidence",
    "Fixed",
    "FromRecord",
    "LastQuery",
    "Matched",
    "PreviousStep",
    "RandomKeys",
    "SameClass",
    "SameMass",
    "SameStep",
    "Selector",
    "ShiftedKeys",
]
