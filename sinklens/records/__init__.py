"""One xarray Dataset per run: what is in it, how a run fills it, how it is written, read and searched.

What a record says about sinks belongs to `analysis`.
"""

from sinklens.records.frames import from_frame, to_frame
from sinklens.records.io import concat, open, save
from sinklens.records.prompts import PromptIndex
from sinklens.records.provenance import made, provenance, unfinished
from sinklens.records.recorder import Recorder
from sinklens.records.schema import DIMS, SCHEMA, VARIABLES, Measured, contents, dataset

__all__ = [
    "DIMS",
    "SCHEMA",
    "VARIABLES",
    "Measured",
    "PromptIndex",
    "Recorder",
    "concat",
    "contents",
    "dataset",
    "from_frame",
    "made",
    "open",
    "provenance",
    "save",
    "to_frame",
    "unfinished",
]
