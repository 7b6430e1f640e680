"""Which way the model of a record saw: causally, both ways, or in blocks; and which block was being decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from sinklens.errors import ContentError, RecordError
from sinklens.records import made
from sinklens.sinks import Blocks


def is_autoregressive(record: xr.Dataset) -> bool:
    """Whether the record is of an autoregressive model.

    Raises:
        RecordError: its provenance does not say.
    """
    known = made(record).get("causal")
    if not isinstance(known, bool):
        raise RecordError('this record does not say whether its model is causal: attrs["provenance"] has no "causal"')
    return known


def blocks_of(record: xr.Dataset) -> Blocks | None:
    """How the model of a record cut its texts into blocks, none of which sees a later one; None if it did not.

    Raises:
        RecordError: the provenance says something else.
    """
    origin = made(record)
    said, plan = origin.get("blocks"), origin.get("plan") or {}
    if said is None:
        return None
    try:
        known = Blocks(**said)
        return replace(known, length=plan.get("block_length") or known.length)
    except (TypeError, ContentError) as error:
        wrong = f'this record\'s provenance has "blocks"={str(said)[:60]}; expected a length, and from where'
        raise RecordError(wrong) from error


def being_decided(record: xr.Dataset, masked: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Which positions are of the block with the first mask, [prompt, step, key]; the response where a run had none."""
    blocks, length = blocks_of(record), (made(record).get("plan") or {}).get("block_length")
    if blocks is not None:
        row = np.ones((len(given), masked.shape[-1]), dtype=bool)
        prompt = torch.from_numpy(given.sum(-1)[:, 0])
        number = blocks.levels(torch.from_numpy(row), prompt).numpy()[:, None]
    elif length is not None:
        place = np.arange(masked.shape[-1]) - given.sum(-1)[..., None]
        number = np.where(place < 0, -1, place // length)
    else:
        return np.broadcast_to(~given, masked.shape)
    return number == np.where(masked == 1, number, np.iinfo(number.dtype).max).min(-1, keepdims=True)
