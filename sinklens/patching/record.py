"""The record of a patching sweep: effects by step, layer and place, and the canvases that they are between."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from sinklens.models.hooked_dlm import HookedDLM
from sinklens.patching.metrics import about
from sinklens.patching.pairs import NAMES, Pair
from sinklens.patching.patches import SITES, Patches
from sinklens.records import SCHEMA

WAYS = {"denoising": ("clean", "corrupt"), "noising": ("corrupt", "clean")}  # out of which run, into which


@dataclass
class Measured:
    """What a sweep has come to so far.

    Attributes:
        ends: By pair and step: the metric in the clean and in the corrupt run, and how many places are asked.
        patched: By forward (pair, step, layer, rows): the metric of each row.
    """

    ends: dict[tuple[int, int], tuple[float, float, int]] = field(default_factory=dict)
    patched: dict[Any, list[float]] = field(default_factory=dict)


def record_of(
    dlm: HookedDLM,
    patches: Patches,
    pairs: Sequence[Pair],
    steps: Sequence[Sequence[int]],
    measured: Measured,
    origin: Mapping[str, Any],
) -> xr.Dataset:
    """The record of what was measured so far; nan where nothing was.

    Args:
        dlm: The model.
        patches: What was asked.
        pairs: The pairs that were decoded.
        steps: The steps at which each was asked.
        measured: What came of it.
        origin: What made the numbers.
    """
    width = max((pair.clean.start.canvas.tokens.shape[1] for pair in pairs), default=0)
    coords: dict[str, list[int]] = {
        "prompt": list(range(len(pairs))),
        "step": sorted({step for each in steps for step in each}),
        "layer": patches.at_layers(dlm),
    }
    heads = patches.at_heads(dlm)
    of_head = SITES[patches.site].heads or ""
    dims = ["prompt", "step", "layer", *([of_head] if heads else []), *(["position"] if patches.by != "head" else [])]
    coords |= ({of_head: heads} if heads else {}) | {"position": list(range(width))}
    index = {dim: {name: at for at, name in enumerate(names)} for dim, names in coords.items()}
    patched = np.full([len(coords[dim]) for dim in dims], np.nan)
    ends = np.full((2, len(pairs), len(coords["step"])), np.nan)
    places = np.zeros(ends.shape[1:], np.int32)
    for (pair, step), (clean, corrupt, count) in measured.ends.items():
        at = pair, index["step"][step]
        ends[(slice(None), *at)], places[at] = (clean, corrupt), count
    for (pair, step, layer, rows), values in measured.patched.items():
        for (head, position), value in zip(rows, values, strict=True):
            at = [pair, index["step"][step], index["layer"][layer]]
            at += [] if head is None else [index[of_head][head]]
            at += [] if position is None else [position]
            patched[tuple(at)] = value
    out_of, into = (
        ends[NAMES.index(name)].reshape(*ends.shape[1:], *[1] * (len(dims) - 2)) for name in WAYS[patches.direction]
    )
    unit, what = about(patches.metric)
    data = {
        "effect": (dims, (patched - into) / (out_of - into), _about("1", _effect(patches))),
        "patched": (dims, patched, _about(unit, f"{what}; {_when(patches)}, patched")),
        "clean": (dims[:2], ends[0], _about(unit, f"{what}; in the clean run")),
        "corrupt": (dims[:2], ends[1], _about(unit, f"{what}; in the corrupt run")),
        "places": (dims[:2], places, _about("positions", "positions of the answer over which the metric is averaged")),
        **_canvases(dlm, pairs, coords["step"], width),
    }
    attrs = {
        "sinklens_schema": SCHEMA,
        "provenance": json.dumps(origin),
        "prompts": len(pairs),
        "finished": int(origin["finished"]),
        "site": patches.site,
        "outcome": patches.outcome,
        "direction": patches.direction,
        "n_layers": dlm.n_layers,
    }
    return xr.Dataset(data, {dim: (dim, np.array(names, np.int64)) for dim, names in coords.items()}, attrs)


def _about(unit: str, definition: str) -> dict[str, str]:
    return {"units": unit, "definition": definition}


def _effect(patches: Patches) -> str:
    out_of, into = WAYS[patches.direction]
    one = "head at one position" if patches.by == "both" else patches.by
    return (
        f"(patched - {into}) / ({out_of} - {into}): 0 as in the {into} run, 1 as in the {out_of} run. Patched is "
        f"{SITES[patches.site].what}. One patch is one {one}. The metric: {about(patches.metric)[1]}; "
        f"{_when(patches)}"
    )


def _when(patches: Patches) -> str:
    if patches.outcome == "step":
        return "of the forward of the step itself"
    return "of the forwards that decided the answer in the run that went on"


def _canvases(dlm: HookedDLM, pairs: Sequence[Pair], steps: Sequence[int], width: int) -> dict[str, Any]:
    """What the forwards saw, and the answers that are told apart."""
    found: dict[str, Any] = {}
    for name in NAMES:
        tokens = np.full((len(pairs), len(steps), width), -1, np.int32)
        masked, answer = np.full(tokens.shape, -1, np.int8), np.full((len(pairs), width), -1, np.int32)
        texts = np.full((len(pairs), width), "", object)
        for index, pair in enumerate(pairs):
            side = getattr(pair, name)
            for at, step in enumerate(steps):
                if step < len(side.canvases):
                    canvas = side.canvases[step]
                    seen = canvas.tokens.shape[1]
                    tokens[index, at, :seen] = canvas.tokens[0].cpu().numpy()
                    masked[index, at, :seen] = canvas.masked[0].cpu().numpy()
            for place in pair.places:
                answer[index, place.position] = getattr(place, name)
            final = side.trajectory.tokens[0]
            strings = [text.replace("\0", "\u2400") for text in dlm.token_strings(final)]
            texts[index, : len(strings)] = strings
        by_step, by_place = ["prompt", "step", "position"], ["prompt", "position"]
        found |= {
            f"canvas_{name}": (by_step, tokens, _about("id", f"token id before the step in the {name} run; -1 unseen")),
            f"masked_{name}": (by_step, masked, _about("1/0", f"1 where the {name} run has still to commit")),
            f"answer_{name}": (
                by_place,
                answer,
                _about("id", f"token of the {name} answer where both differ, else -1"),
            ),
            f"text_{name}": (by_place, texts, _about("", f"token as text, at the end of the {name} run")),
        }
    return found
