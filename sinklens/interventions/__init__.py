"""Interventions: who is edited (detectors), where (Where), what is done (one file per operator)."""

from sinklens.interventions.controls import RandomKeys, random_control
from sinklens.interventions.detectors import Detector, PreviousStep, SameStep
from sinklens.interventions.edits import MaskSinks, SinkEdit, ZeroSinks

__all__ = [
    "Detector",
    "MaskSinks",
    "PreviousStep",
    "RandomKeys",
    "SameStep",
    "SinkEdit",
    "ZeroSinks",
    "random_control",
]
