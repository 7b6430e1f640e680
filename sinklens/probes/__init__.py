"""Probes: one file per measurement."""

from sinklens.probes.confidence import Confidence
from sinklens.probes.contribution import Contribution
from sinklens.probes.entropy import AttentionEntropy
from sinklens.probes.estimate import Estimate, estimate
from sinklens.probes.keynorm import KeyNorm
from sinklens.probes.lens import LogitLens
from sinklens.probes.mass import MassOn
from sinklens.probes.pattern import Pattern
from sinklens.probes.qk import QKCosine, QKDecomposition, QueryNorm
from sinklens.probes.querysplit import MaskedVsCommitted
from sinklens.probes.received import ReceivedAttention
from sinklens.probes.residual import MassiveActivations, ResidualNorm
from sinklens.probes.sinkmask import SinkMask
from sinklens.probes.valuenorm import ValueNorm

__all__ = [
    "AttentionEntropy",
    "Confidence",
    "Contribution",
    "Estimate",
    "KeyNorm",
    "LogitLens",
    "MaskedVsCommitted",
    "MassOn",
    "MassiveActivations",
    "Pattern",
    "QKCosine",
    "QKDecomposition",
    "QueryNorm",
    "ReceivedAttention",
    "ResidualNorm",
    "SinkMask",
    "ValueNorm",
    "estimate",
]
