"""Measurements, one file each: descriptions that reduce inside their hooks, and how large a record they make.

A probe changes nothing and remembers nothing; what several steps say together belongs to `analysis`.
"""

from sinklens.probes.confidence import Confidence
from sinklens.probes.contribution import Contribution
from sinklens.probes.entropy import AttentionEntropy
from sinklens.probes.estimate import Estimate, estimate
from sinklens.probes.features import Features
from sinklens.probes.kept import Kept
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
    "Features",
    "Kept",
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
