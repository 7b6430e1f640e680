"""Plotly figures of records, of tables over several runs, and of a training log.

Every function returns a `plotly.graph_objects.Figure` (`circuitsvis` a view of that package); plotly is imported when
a figure is made. Figures need no network and stay readable in black and white: one sequential colour scale, and
whatever a colour tells, a symbol, a hatch or a position tells as well. Beside the numbers stands what uniform
attention would give.

Of one prompt: `timeline`, `sink_positions`, `sink_lives`, `heads`. Of a whole record: `layer_steps`, `histogram`,
`filtered_curve`, `key_norms`. Of two: `side_by_side`. Of tables: `layer_counts`, `token_classes`, `ablation`. Of
ablations: `conditions`, `effects`, `dose_response`. Of a training log: `emergence`. Of one pattern: `circuitsvis`.
"""

from sinklens.plots.attention import POINTS, circuitsvis, key_norms
from sinklens.plots.curves import filtered_curve, histogram
from sinklens.plots.data import CELLS, LABELLED
from sinklens.plots.effects import conditions, dose_response, effects
from sinklens.plots.lives import sink_lives
from sinklens.plots.pairs import side_by_side
from sinklens.plots.panels import PANELS, heads, layer_steps
from sinklens.plots.single import sink_positions, timeline
from sinklens.plots.tables import ablation, layer_counts, token_classes
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
    "ablation",
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
    "side_by_side",
    "sink_lives",
    "sink_positions",
    "themed",
    "timeline",
    "token_classes",
    "visible",
]
