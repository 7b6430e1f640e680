"""Who is edited (selectors), what is done (edits), against what (controls), and how edits are joined and written.

An edit is a value: what it remembers in a run lives in the run's `Memory`. Measuring belongs to `probes`; running and
comparing edits belongs to `decoding` and `experiments`.
"""

from sinklens.interventions.compose import InOrder, SideBySide
from sinklens.interventions.controls import CONTROLS, control, other_prompt
from sinklens.interventions.edits import (
    At,
    AttentionEdit,
    BiasSinks,
    KeepKeys,
    MaskSinks,
    MeanValue,
    NoiseValue,
    NoOp,
    NullKey,
    Pin,
    Redistribute,
    ScaleSinks,
    SinkEdit,
    SinkToken,
    Swap,
    ZeroSinks,
    ZeroValue,
)
from sinklens.interventions.grammar import GRAMMAR
from sinklens.interventions.selectors import (
    BottomKeys,
    ByKeyNorm,
    ByToken,
    Evidence,
    Fixed,
    FromRecord,
    LastQuery,
    Matched,
    PreviousStep,
    RandomKeys,
    SameClass,
    SameMass,
    SameStep,
    Selector,
    ShiftedKeys,
)
from sinklens.interventions.text import parse, text_of

__all__ = [
    "CONTROLS",
    "GRAMMAR",
    "At",
    "AttentionEdit",
    "BiasSinks",
    "BottomKeys",
    "ByKeyNorm",
    "ByToken",
    "Evidence",
    "Fixed",
    "FromRecord",
    "InOrder",
    "KeepKeys",
    "LastQuery",
    "MaskSinks",
    "Matched",
    "MeanValue",
    "NoOp",
    "NoiseValue",
    "NullKey",
    "Pin",
    "PreviousStep",
    "RandomKeys",
    "Redistribute",
    "SameClass",
    "SameMass",
    "SameStep",
    "ScaleSinks",
    "Selector",
    "ShiftedKeys",
    "SideBySide",
    "SinkEdit",
    "SinkToken",
    "Swap",
    "ZeroSinks",
    "ZeroValue",
    "control",
    "other_prompt",
    "parse",
    "text_of",
]
