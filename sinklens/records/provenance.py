"""What made a record: model, versions, dtype and device."""

from __future__ import annotations

import importlib.metadata
import json
from functools import lru_cache
from typing import Any

import xarray as xr

from sinklens.errors import RecordError

_version = lru_cache(importlib.metadata.version)


def provenance(dlm: Any, **more: Any) -> dict[str, Any]:
    """Model, versions, dtype and device that made a record, and whatever else the run adds."""
    blocks = dlm.in_blocks
    packages = ("sinklens", "torch", "transformers", "transformer-lens")
    return {
        "model": dlm.name,
        "revision": dlm.revision,
        "family": dlm.family.name,
        "mask_token_id": dlm.ids.mask,
        "attention": dlm.attention,
        "dtype": str(dlm.dtype).removeprefix("torch."),
        "device": str(dlm.device),
        "causal": dlm.is_causal,
        "heads": dlm.n_heads,
        "key_heads": int(getattr(dlm.cfg, "n_key_value_heads", None) or dlm.n_heads),
        **({} if blocks is None else {"blocks": {"length": blocks.length, "aligned": blocks.aligned}}),
        **({"windows": list(dlm.windows)} if any(dlm.windows) else {}),
        "versions": {package: _version(package) for package in packages},
        **more,
    }


def unfinished(record: xr.Dataset) -> str:
    """What is to be said wherever the record of an interrupted run is shown; empty if the run was finished."""
    if made(record).get("finished", True):
        return ""
    return f"unfinished: it was interrupted after {record.sizes.get('step', 0)} steps, and what would follow is missing"


def made(record: xr.Dataset) -> dict[str, Any]:
    """What made a record, as it says; empty if it does not.

    Raises:
        RecordError: a provenance that is no JSON object.
    """
    text = record.attrs.get("provenance", "{}")
    try:
        said = json.loads(text)
    except (TypeError, ValueError):
        said = None
    if not isinstance(said, dict):
        raise RecordError(f"the provenance of this record is no JSON object but {str(text)[:60]!r}")
    return said
