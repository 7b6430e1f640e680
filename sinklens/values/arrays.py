"""What tensors and records hold, as hashes; and records with their dims in the usual order."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import xarray as xr
from torch import Tensor

ORDER = ("prompt", "step", "block", "layer", "head", "kv_head", "query", "key", "position")  # of a record's dims


def in_order(record: xr.Dataset) -> xr.Dataset:
    """A record whose dims may stand in any order, in theirs: numbers are found by the names of dims, not by places.

    The record itself if they do. Dims that only some probe has stand before "layer".
    """
    moved = {}
    for name, variable in record.variables.items():
        known = [dim for dim in variable.dims if dim in ORDER]
        usual = sorted(known, key=ORDER.index)
        if known != usual:
            first = [dim for dim in usual if dim in ORDER[:2]]
            rest = [dim for dim in variable.dims if dim not in ORDER]
            moved[name] = record[name].transpose(*first, *rest, *usual[len(first) :])
    return record.assign(moved) if moved else record


def record_digest(record: xr.Dataset) -> str:
    """Hash of what a record measured: names, dims (in any order), coordinates and numbers; not of where it was made."""
    made = hashlib.sha256()
    for name in sorted(map(str, record.variables)):
        variable = record.variables[name].transpose(*sorted(map(str, record.variables[name].dims)))
        made.update(f"{name}{variable.dims}{variable.shape}{variable.dtype.kind}".encode())
        values = variable.to_numpy()
        made.update("\0".join(map(str, values.ravel())).encode() if values.dtype.kind in "OUS" else values.tobytes())
    return made.hexdigest()[:32]


def array_content(kind: str, tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and hash of a tensor on the CPU, as plain data."""
    raw = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.reshape(-1).to(torch.uint8)
    shape = list(tensor.shape)
    sha = hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:32]
    return {"type": kind, "shape": shape, "dtype": str(tensor.dtype), "sha256": sha}
