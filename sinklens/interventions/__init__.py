"""Interventions: who is edited (detectors), where (Where), what is done (operators), against what (controls)."""

from sinklens.interventions.compose import InOrder, SideBySide
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
from sinklens.interventions.edits.base import At, Edit, SinkEdit
from sinklens.interventions.edits.budget import KeepKeys
from sinklens.interventions.edits.scores import BiasSinks, MaskSinks, NullKey
from sinklens.interventions.edits.transplant import Pin, SinkToken
from sinklens.interventions.edits.values import MeanValue, NoiseValue, ZeroValue
from sinklens.interventions.edits.weights import NoOp, Redistribute, ScaleSinks, Swap, ZeroSinks
from sinklens.interventions.selectors.attention import Detector, LastQuery, PreviousStep, SameStep
from sinklens.interventions.selectors.places import ByKeyNorm, ByToken, Fixed, FromRecord
from sinklens.interventions.text import GRAMMAR, parse

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
