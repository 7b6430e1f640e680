"""What probes and edits share: canvas, scope, memory, the two protocols, attaching and counting hooks.

Nothing here measures or edits, and nothing runs a model.
"""

from sinklens.hooks.attach import autoregressive, only_new, rotated, usual_queries, with_hooks
from sinklens.hooks.by_query import ByQuery, Hook, HookFunction, block_of, by_query, watching
from sinklens.hooks.canvas import Canvas
from sinklens.hooks.memory import Memory
from sinklens.hooks.protocols import Edit, Probe
from sinklens.hooks.scope import Scope, Selection, chosen
from sinklens.hooks.seen import canvas_of, sight_of

__all__ = [
    "ByQuery",
    "Canvas",
    "Edit",
    "Hook",
    "HookFunction",
    "Memory",
    "Probe",
    "Scope",
    "Selection",
    "autoregressive",
    "block_of",
    "by_query",
    "canvas_of",
    "chosen",
    "only_new",
    "rotated",
    "sight_of",
    "usual_queries",
    "watching",
    "with_hooks",
]
