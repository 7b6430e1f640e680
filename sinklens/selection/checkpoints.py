"""What an interrupted training leaves: the gate and Adam's state after an update, as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sinklens import files
from sinklens.errors import GateError
from sinklens.selection.gate import Gate

NAME = "checkpoint.safetensors"
KIND = files.Kind("checkpoint of a gate's training", b"", b'"sinklens":"gate checkpoint"')


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training after some updates.

    Attributes:
        updates: How many are done.
        tensors: The gate's weights under "gate.NAME", Adam's moments under "first.NAME" and "second.NAME".
        log: The lines of log.jsonl so far.
    """

    updates: int
    tensors: Mapping[str, Tensor]
    log: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, updates: int, gate: Gate, adam: torch.optim.Adam, log: list[dict[str, Any]]) -> Checkpoint:
        """A copy of a training as it is."""
        tensors = {f"gate.{name}": weight.detach().clone() for name, weight in gate.weights.items()}
        for name, weight in gate.weights.items():
            if state := adam.state.get(weight):
                tensors |= {f"first.{name}": state["exp_avg"].clone(), f"second.{name}": state["exp_avg_sq"].clone()}
        return cls(updates, tensors, tuple(log))

    def restore(self, gate: Gate, adam: torch.optim.Adam) -> None:
        """Put a training back to where it was."""
        with torch.no_grad():
            for name, weight in gate.weights.items():
                weight.copy_(self.tensors[f"gate.{name}"])
                if self.updates:
                    moments = {"exp_avg": self.tensors[f"first.{name}"], "exp_avg_sq": self.tensors[f"second.{name}"]}
                    adam.state[weight] = {
                        "step": torch.tensor(float(self.updates)),
                        **{which: moment.clone() for which, moment in moments.items()},
                    }

    def write(self, folder: Path, identity: str) -> Path:
        """Write it, whole or not at all."""
        said = {"sinklens": "gate checkpoint", "identity": identity, "updates": str(self.updates)}
        content = save(dict(self.tensors), {**said, "log": json.dumps(self.log)})
        return files.write_bytes(folder / NAME, content, KIND)


def read(folder: Path, identity: str, gate: Gate) -> Checkpoint | None:
    """The checkpoint in a folder, if there is one.

    Raises:
        GateError: it is damaged, or of another training.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs, updates, log = said["identity"], int(said["updates"]), json.loads(said["log"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise GateError(f"{str(path)!r} cannot be read: {error}; move it away to train from the beginning") from error
    if theirs != identity:
        raise GateError(
            f"{str(path)!r} is of another training (recipe, text, model or version); give another --out, or move it "
            "away to train from the beginning"
        )
    kinds = ("gate", "first", "second") if updates else ("gate",)
    wanted = {f"{kind}.{name}": tuple(w.shape) for kind in kinds for name, w in gate.weights.items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        raise GateError(f"{str(path)!r} does not hold the weights of this gate; move it away")
    return Checkpoint(updates, tensors, tuple(log))
