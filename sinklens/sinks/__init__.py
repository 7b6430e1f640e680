"""What a sink is: received attention, the rule that calls a key a sink, the named rules, classes of tokens.

Pure torch on tensors and strings. What needs a model, a run or a record does not belong here.
"""

from sinklens.sinks.rule import Positions, SinkRule, Units, largest, received_attention, seeing, uniform_null

__all__ = ["Positions", "SinkRule", "Units", "largest", "received_attention", "seeing", "uniform_null"]
