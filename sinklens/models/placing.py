"""How a model is loaded, in words: what specs and command lines say of device, dtype, attention, family and so on."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from sinklens.errors import CheckpointError
from sinklens.models.devices import check_place
from sinklens.models.hooked_dlm import PATHS, HookedDLM
from sinklens.models.outline import Outline, outline

DTYPES = ("bfloat16", "float16", "float32", "float64")
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Placing:
    """How a model is loaded.

    Attributes:
        device: "cpu", "cuda", "cuda:1", "mps", ...; None for `from_pretrained`'s own default.
        dtype: One of DTYPES; the checkpoint's own when None.
        device_map: One of MAPS, instead of a device.
        revision: Hub branch, tag or commit; of a bundled twin a step of its training.
        attention: As `HookedDLM.attention`.
        family: As in `HookedDLM.from_pretrained`, where config.json does not say.
        mask_token_id: Likewise, where the checkpoint names none.

    Raises:
        CheckpointError: what is unknown or not there, before anything is read.
    """

    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None
    attention: str | None = None
    family: str | None = None
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("device_map", MAPS), ("attention", PATHS)):
            given = getattr(self, name)
            if given is not None and given not in known:
                raise CheckpointError(f"{name}={given!r} is unknown; choose {', '.join(known)}")
        check_place(self.device, self.device_map)
        if self.device_map is not None and find_spec("accelerate") is None:
            raise CheckpointError(
                f"device_map={self.device_map!r} needs the package accelerate: pip install accelerate"
            )

    def outline(self, name: str) -> Outline:
        """What is known of the model before its weights are read."""
        return outline(name, self.revision, **self._read_as)

    @property
    def _read_as(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("family", "mask_token_id")}

    def load(self, name: str) -> HookedDLM:
        """The model."""
        dlm = HookedDLM.from_pretrained(
            name,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            device=self.device,
            device_map=self.device_map,
            revision=self.revision,
            **self._read_as,
        )
        if self.attention is not None:
            dlm.attention = self.attention
        return dlm
