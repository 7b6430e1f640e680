"""Which tokens are enough: gates on frozen models, what they are trained on, and their training.

A gate says which tokens stay visible as keys at a rate that the user chooses. Applying one in a run is an edit
(`interventions`); comparing it with other ways to choose belongs to `experiments`.
"""

from sinklens.models.fingerprint import ModelId
from sinklens.selection.gate import Gate, GateKind, Scores, Shape
from sinklens.selection.measuring import calibrate, measure
from sinklens.selection.places import find, names
from sinklens.selection.recipe import Recipe
from sinklens.selection.texts import (
    Chains,
    EchoTexts,
    Prose,
    Rows,
    Texts,
    antibody_chains,
    python_reference,
    texts_for,
)
from sinklens.selection.training import train

__all__ = [
    "Chains",
    "EchoTexts",
    "Gate",
    "GateKind",
    "ModelId",
    "Prose",
    "Recipe",
    "Rows",
    "Scores",
    "Shape",
    "Texts",
    "antibody_chains",
    "calibrate",
    "find",
    "measure",
    "names",
    "python_reference",
    "texts_for",
    "train",
]
