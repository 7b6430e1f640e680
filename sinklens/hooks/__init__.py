"""What probes and edits share: the canvas, the scope, the protocols, attaching and counting hooks.

Nothing here measures or edits, and nothing runs a model.
"""

from sinklens.hooks.protocols import (
    Canvas,
    Hook,
    Hookable,
    Intervention,
    Probe,
    Selection,
    Where,
    attached,
    chosen,
    is_causal,
    leaves,
    nothing,
    overlap,
    plain_canvas,
    rotated,
    rows_of,
    rowwise,
    wanted,
)

__all__ = [
    "Canvas",
    "Hook",
    "Hookable",
    "Intervention",
    "Probe",
    "Selection",
    "Where",
    "attached",
    "chosen",
    "is_causal",
    "leaves",
    "nothing",
    "overlap",
    "plain_canvas",
    "rotated",
    "rows_of",
    "rowwise",
    "wanted",
]
