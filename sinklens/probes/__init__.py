"""Probes: one file per measurement."""

from sinklens.probes.received import ReceivedAttention

__all__ = ["ReceivedAttention"]
