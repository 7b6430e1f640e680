"""What tensors and records hold, as hashes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import xarray as xr
from torch import Tensor


def record_digest(record: xr.Dataset) -> str:
    """Hash of what a record measured: names, dims, coordinates and numbers; not of where it was made."""
    made = hashlib.sha256()
    for name in sorted(map(str, record.variables)):
        variable = record.variables[name]
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
