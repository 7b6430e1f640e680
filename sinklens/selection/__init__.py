"""Which tokens are enough: gates on frozen models, what they are trained on, and their training.

A gate says which tokens stay visible as keys at a rate that the user chooses. Applying one in a run is an edit
(`interventions`); comparing it with other ways to choose belongs to `experiments`.
"""

from sinklens.selection.gate import Gate, GateKind, ModelId, Scores, Shape
from sinklens.selection.places import find

__all__ = ["Gate", "GateKind", "ModelId", "Scores", "Shape", "find"]
