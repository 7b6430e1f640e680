"""What made a record: model, versions, dtype and device."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import Any

_version = lru_cache(importlib.metadata.version)


def provenance(dlm: Any, **more: Any) -> dict[str, Any]:
    """Model, versions, dtype and device that made a record, and whatever else the run adds."""
    packages = ("sinklens", "torch", "transformers", "transformer-lens")
    return {
        "model": dlm.name,
        "revision": dlm.revision,
        "family": dlm.family.name,
        "dtype": str(dlm.dtype).removeprefix("torch."),
        "device": str(dlm.device),
        "causal": dlm.is_causal,
        "heads": dlm.n_heads,
        "key_heads": int(getattr(dlm.cfg, "n_key_value_heads", None) or dlm.n_heads),
        "versions": {package: _version(package) for package in packages},
        **more,
    }
