"""What a sink is: received attention, who sees whom, the rule that calls a key a sink, named rules, token classes.

Pure torch on tensors and strings. What needs a model, a run or a record does not belong here.
"""

from sinklens.sinks.blocks import Blocks
from sinklens.sinks.received import Received, largest, received_attention
from sinklens.sinks.rule import Positions, SinkRule, Units
from sinklens.sinks.sight import Direction, Sight, uniform_null

__all__ = [
    "Blocks",
    "Direction",
    "Positions",
    "Received",
    "Sight",
    "SinkRule",
    "Units",
    "largest",
    "received_attention",
    "uniform_null",
]
