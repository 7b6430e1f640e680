"""How a model is loaded, in words: device, dtype, device map, revision and attention of specs and command lines."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from sinklens.errors import CheckpointError
from sinklens.models.hooked_dlm import PATHS, HookedDLM

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

    Raises:
        CheckpointError: what is unknown or not there, before anything is read.
    """

    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("device_map", MAPS), ("attention", PATHS)):
            given = getattr(self, name)
            if given is not None and given not in known:
                raise CheckpointError(f"{name}={given!r} is unknown; choose {', '.join(known)}")
        if self.device is not None and self.device_map is not None:
            raise CheckpointError(
                f"device={self.device!r} and device_map={self.device_map!r} both say where the model goes; give one"
            )
        if self.device_map is not None and find_spec("accelerate") is None:
            raise CheckpointError(
                f"device_map={self.device_map!r} needs the package accelerate: pip install accelerate"
            )
        if self.device is not None:
            _check_device(self.device)

    def load(self, name: str) -> HookedDLM:
        """The model."""
        dlm = HookedDLM.from_pretrained(
            name,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            device=self.device,
            device_map=self.device_map,
            revision=self.revision,
        )
        if self.attention is not None:
            dlm.attention = self.attention
        return dlm


def best_device() -> str:
    """The best device that there is: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(device: str) -> None:
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    try:
        asked = torch.device(device)
        if asked.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no one error for this
        why = str(error).splitlines()[0]
        raise CheckpointError(f"device={device!r} cannot be used ({why}); there are {', '.join(there)}") from error
