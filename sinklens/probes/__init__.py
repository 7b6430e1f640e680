"""Probes: one file per measurement."""

from sinklens.probes.confidence import Confidence
from sinklens.probes.contribution import Contribution
from sinklens.probes.entropy import AttentionEntropy
from sinklens.probes.estimate import Estimate, estimate
from sinklens.probes.keynorm import KeyNorm
from sinklens.probes.lens import LogitLens
from sinklens.probes.mass import MassOn
from sinklens.probes.pattern import Pattern
from sinklens.probes.qk import QKCosine, QueryNorm
from sinklens.probes.received import ReceivedAttention
from sinklens.probes.residual import MassiveActivations, ResidualNorm
from sinklens.probes.valuenorm import ValueNorm

__all__ = [
    "AttentionEntropy",
    "Confidence",
    "Contribution",
    "Estimate",
    "KeyNorm",
    "LogitLens",
    "MassOn",
    "MassiveActivations",
    "Pattern",
    "QKCosine",
    "QueryNorm",
    "ReceivedAttention",
    "ResidualNorm",
    "ValueNorm",
    "estimate",
]
