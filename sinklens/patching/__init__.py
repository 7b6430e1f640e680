"""Patching across steps: what one run computed is put into another run of as many masks, place by place.

What is patched and what it is measured by is a value (`Patches`); running it, many patches in one forward, belongs
here. Decoding belongs to `decoding`, edits that find their own keys to `interventions`.
"""

from sinklens.patching.estimate import PatchEstimate, estimate
from sinklens.patching.metrics import METRICS
from sinklens.patching.patches import SITES, Patches
from sinklens.patching.run import patch

__all__ = ["METRICS", "SITES", "PatchEstimate", "Patches", "estimate", "patch"]
