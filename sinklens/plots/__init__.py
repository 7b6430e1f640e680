"""Plotly figures of records, of tables over several runs, of ablations and of training logs; and a text that fills in.

Beside the numbers stands what uniform attention would give; whatever a colour tells, a symbol or a position tells, too.
Nothing is computed here that `analysis` or `experiments` could say.
"""

from sinklens.plots.adapting import adaptation
from sinklens.plots.attention import POINTS, circuitsvis, key_norms
from sinklens.plots.budgets import budget_curves, reached_shares, sinks_kept
from sinklens.plots.caches import cache_curve, norm_correlation, norms_over_steps, retrieval_grid
from sinklens.plots.canvas import sink_positions, timeline
from sinklens.plots.curves import filtered_curve, histogram
from sinklens.plots.doses import dose_response
from sinklens.plots.effects import conditions, effects
from sinklens.plots.episodes import sink_lives
from sinklens.plots.filling import TextTimeline, text_timeline
from sinklens.plots.layers_heads import PANELS, heads, layer_steps
from sinklens.plots.patching import patching
from sinklens.plots.record_view import CELLS, LABELLED
from sinklens.plots.side_by_side import side_by_side
from sinklens.plots.survival import survival
from sinklens.plots.tables import layer_counts, token_classes
from sinklens.plots.theme import COLORS, FONT, SCALE, SYMBOLS, describe, themed, visible
from sinklens.plots.training import emergence

__all__ = [
    "CELLS",
    "COLORS",
    "FONT",
    "LABELLED",
    "PANELS",
    "POINTS",
    "SCALE",
    "SYMBOLS",
    "TextTimeline",
    "adaptation",
    "budget_curves",
    "cache_curve",
    "circuitsvis",
    "conditions",
    "describe",
    "dose_response",
    "effects",
    "emergence",
    "filtered_curve",
    "heads",
    "histogram",
    "key_norms",
    "layer_counts",
    "layer_steps",
    "norm_correlation",
    "norms_over_steps",
    "patching",
    "reached_shares",
    "retrieval_grid",
    "side_by_side",
    "sink_lives",
    "sink_positions",
    "sinks_kept",
    "survival",
    "text_timeline",
    "themed",
    "timeline",
    "token_classes",
    "visible",
]
