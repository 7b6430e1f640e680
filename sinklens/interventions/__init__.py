"""Interventions: who is edited (detectors), where (Where), what is done (operators), against what (controls)."""

from sinklens.interventions.composed import InOrder, SideBySide
from sinklens.interventions.controls import (
    CONTROLS,
    BottomKeys,
    RandomKeys,
    SameClass,
    SameMass,
    ShiftedKeys,
    control,
    other_prompt,
)
from sinklens.interventions.detectors import Detector, LastQuery, PreviousStep, SameStep
from sinklens.interventions.edits import At, Edit, SinkEdit
from sinklens.interventions.keepkeys import KeepKeys
from sinklens.interventions.named import GRAMMAR, parse
from sinklens.interventions.places import ByKeyNorm, ByToken, Fixed, FromRecord
from sinklens.interventions.runs import Pin, SinkToken
from sinklens.interventions.scores import BiasSinks, MaskSinks, NullKey
from sinklens.interventions.values import MeanValue, NoiseValue, ZeroValue
from sinklens.interventions.weights import NoOp, Redistribute, ScaleSinks, Swap, ZeroSinks

__all__ = [
    "CONTROLS",
    "GRAMMAR",
    "At",
    "BiasSinks",
    "BottomKeys",
    "ByKeyNorm",
    "ByToken",
    "Detector",
    "Edit",
    "Fixed",
    "FromRecord",
    "InOrder",
    "KeepKeys",
    "LastQuery",
    "MaskSinks",
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
]
