"""Directions of the residual stream: how they are found from contrasting prompts, and how they are kept.

Adding one to a run is an edit (`interventions`); whether it does what it says is measured by `experiments`.
"""

from sinklens.directions.difference import difference
from sinklens.directions.direction import At, Direction

__all__ = ["At", "Direction", "difference"]
