"""Whether a checkpoint's weights are those of the stock class: names and sizes, before one of them is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sinklens.errors import CheckpointError
from sinklens.models.experts import stacked
from sinklens.models.families import Family

_OF_LAYER = re.compile(r"(.*?\b(?:layers?|h)\.)(\d+)\.")  # a weight of a layer, in the stock classes' names
_BUFFER = re.compile(r"rotary_emb\.inv_freq$")  # old checkpoints store what config.json says


def compare(family: Family, config: Any, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise for weights that are not those of the stock class, before one is read or anything of their size is made.

    Args:
        family: Whose layout it is.
        config: Of the stock class.
        shapes: Of the checkpoint's tensors, by their names in its files.
        name: Of the checkpoint.

    Raises:
        CheckpointError: weights that are missing, that nothing reads, or of another size than config.json says.
    """
    renamed = {}
    for key, shape in _folded(family, shapes, name).items():
        for old, new in family.key_mapping.items():
            key = re.sub(old, new, key)  # noqa: PLW2901
        renamed[key] = shape
    renamed = stacked(renamed, name)
    of_layers = [found for key in renamed if (found := _OF_LAYER.match(key))]
    layers = 1 + max((int(found[2]) for found in of_layers), default=-1)
    if config.num_hidden_layers > layers:
        stem = of_layers[0][1] if of_layers else "layers."
        misfit(name, family, "missing", [f"{stem}{layers}.* (config.json says {config.num_hidden_layers} layers)"])
    try:
        with torch.device("meta"):
            made = family.stock(config)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"config.json of {name!r} makes no {family.layout} model: {error}") from error
    expected = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    tied = made.all_tied_weights_keys  # the copies; the checkpoint need not hold them
    misfit(name, family, "missing", [key for key in expected if key not in renamed and key not in tied])
    misfit(name, family, "mismatched", [key for key, shape in expected.items() if renamed.get(key, shape) != shape])
    misfit(name, family, "unexpected", [key for key in renamed if key not in expected and not _BUFFER.search(key)])


def _folded(family: Family, shapes: Mapping[str, tuple[int, ...]], name: str) -> Mapping[str, tuple[int, ...]]:
    if family.fold is None:
        return shapes
    blank = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        return {key: tuple(tensor.shape) for key, tensor in family.fold(blank).items()}
    except KeyError as error:
        misfit(name, family, "missing", [str(error.args[0])])
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{name!r} does not fit the {family.name} layout: its weights do not fit each other: {error}"
        ) from error


def misfit(name: str, family: Family, kind: str, keys: Sequence[str]) -> None:
    """Raise if there are weights of a kind ("missing", "unexpected", ...) that the family minds."""
    fine = {"missing": family.optional, "unexpected": family.dropped}.get(kind, ())
    keys = [key for key in keys if not any(re.match(pattern, key) for pattern in fine)]
    if keys:
        shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        raise CheckpointError(f"{name!r} does not fit the {family.name} layout: {kind} weights {shown}")
