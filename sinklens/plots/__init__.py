"""Plotly figures of a record (`timeline`, `sink_positions`) and of tables over several runs.

Every function returns a `plotly.graph_objects.Figure`; plotly is imported when a figure is made. Figures need no
network and stay readable in black and white: one sequential colour scale, and whatever a colour tells, a symbol, a
hatch or a position tells as well.
"""

from sinklens.plots.runs import CELLS, LABELLED, sink_positions, timeline
from sinklens.plots.tables import ablation, layer_counts, token_classes
from sinklens.plots.theme import COLORS, FONT, SCALE, SYMBOLS, describe, themed, visible

__all__ = [
    "CELLS",
    "COLORS",
    "FONT",
    "LABELLED",
    "SCALE",
    "SYMBOLS",
    "ablation",
    "describe",
    "layer_counts",
    "sink_positions",
    "themed",
    "timeline",
    "token_classes",
    "visible",
]
