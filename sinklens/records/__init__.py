"""One xarray Dataset per run: what is in it, how a run fills it, how it is written and read.

What a record says about sinks belongs to `analysis`.
"""

from sinklens.records.recorder import SCHEMA, Recorder, Rows, concat, open, provenance, save, seeds_for, to_numpy

__all__ = ["SCHEMA", "Recorder", "Rows", "concat", "open", "provenance", "save", "seeds_for", "to_numpy"]
