"""Devices: the best that there is, and whether one that is asked for is there."""

from __future__ import annotations

from typing import Any

import torch

from sinklens.errors import CheckpointError


def best_device() -> str:
    """The best device that there is: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str | torch.device) -> None:
    """Raise for a device that is not there.

    Raises:
        CheckpointError: naming those that are.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    try:
        asked = torch.device(device)
        if asked.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no one error for this
        why = str(error).splitlines()[0]
        raise CheckpointError(f"device={str(device)!r} cannot be used ({why}); there are {', '.join(there)}") from error


def check_place(device: str | torch.device | None, device_map: Any) -> None:
    """Raise for a device that is not there, or one beside a map of several, before anything is read.

    Raises:
        CheckpointError: quoting what was given.
    """
    if device is not None and device_map is not None:
        raise CheckpointError(
            f"device={str(device)!r} and device_map={device_map!r} both say where the model goes; give one"
        )
    if device is not None:
        check_device(device)
