"""Planted sinks: records and attention patterns whose answers are known, to calibrate metrics, rules and plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from sinklens.records import Measured, dataset
from sinklens.sinks import uniform_null
from sinklens.values.kinds import Seed, reads
from sinklens.version import __version__

Kind = Literal["static", "jumping", "drifting", "split", "none"]
BOS, EOS, MASK, WORDS = 0, 1, 2, 61
_MARKS = {BOS: "<|bos|>", EOS: "<|eos|>", MASK: "<|mask|>"}


@dataclass(frozen=True, eq=False)
class Planted:
    """A record with known answers.

    Attributes:
        record: As `denoise` would make it, with `received`, `key_norm` and `value_norm`. The norms are planted, too:
            the key norm falls as received attention rises, the value norm is 0.5 at sinks and 1 elsewhere.
        patterns: The attention behind it; rows sum to 1. The same in all layers, heads and prompts (a view: clone it
            before you edit it).
        truth: What a metric must find (numpy arrays and numbers):

            - "position" [step]: the main sink, -1 where there is none
            - "sinks" [step, key]: which keys are planted
            - "excess": by how much a sink's column sum exceeds the mean of the others; a rule in units "sum" finds
              the sinks iff its epsilon is below
            - "sink_rate": 1, or 0 for "none"
            - "concentration": the share of all attention that the top key receives, mean over steps
            - "drift": positions per step; 0 for "static" and "split", 1 for "drifting", nan for "none"
            - "dwell": (key, first step, length) of each sink episode
            - "jumps": (step, position before, position after) of each change of the main sink
            - "drained": number of sinks per layer, over steps, heads and prompts; all have a low value norm
            - "null" [key]: received attention without any sink. With causal=True early keys receive some of it and a
              rule may call them sinks; that is a property of causal attention and not a planted sink
            - only "split": "masked_sink" and "committed_sink", the keys
    """

    record: xr.Dataset
    patterns: Float[Tensor, "step layer head query key"]
    truth: dict[str, Any]


@reads()
def planted(
    kind: Kind,
    *,
    steps: int = 16,
    keys: int = 32,
    layers: int = 2,
    heads: int = 2,
    prompts: int = 1,
    strength: float = 8.0,
    causal: bool = False,
    seed: Seed = 0,
) -> Planted:
    """A record in which sinks are planted, and the answers.

    Each query puts a fixed share of its attention on the sink, so that the sink's column sum is `strength`, and
    spreads the rest evenly over the other keys that it may see; `received` is summed from these patterns. The first
    half of the canvas is given, the rest is committed in random order (from left to right if causal), the last key is
    EOS.

    Example:
        >>> import sinklens as sl
        >>> made = sl.planted("static")
        >>> int(made.truth["position"][0]), int(sl.dynamics.main_sink(made.record)[0, 0, 0, 0])
        (17, 17)

    Args:
        kind: "static": one key at all steps. "jumping": key a, b, c and a again, for a quarter of the steps each.
            "drifting": one key to the right at every step. "split": masked queries use one sink and committed
            queries another, to the right of it; `received` has the queries all, masked and committed, each sink's
            column sum is `strength` in its own set and in "all" (so the main sink of "all" is a tie, which the
            leftmost key wins), and 0 in the other set. "none": uniform attention.
        steps: Denoising steps.
        keys: Length of the canvas.
        layers: Layers.
        heads: Query heads; an even number shares key heads in pairs.
        prompts: Rows; all the same.
        strength: Column sum of a sink.
        causal: Queries see only keys at or before them. The canvas stays whole, as under teacher forcing.
        seed: Draws positions, tokens and the order of commits.

    Raises:
        ValueError: an unknown kind; sizes that cannot hold it; a strength above the number of queries that use it.
    """
    _check(kind, steps, keys, strength, causal, counts={"layers": layers, "heads": heads, "prompts": prompts})
    rng = np.random.default_rng(seed)
    masked = _schedule(rng, steps, keys, left=math.ceil(strength) if kind == "split" else 1, causal=causal)
    positions = _positions(rng, kind, steps, keys, strength, causal)
    patterns = np.stack([_pattern(*step, strength, causal) for step in zip(masked, positions, strict=True)])
    sinks = np.zeros((steps, keys), bool)
    sinks[np.arange(steps)[:, None], positions] = True

    sets = {"all": np.ones_like(masked)} | ({"masked": masked, "committed": ~masked} if kind == "split" else {})
    received = np.stack([np.einsum("tqk,tq->tk", patterns, queries) for queries in sets.values()]).astype(np.float32)
    everyone = received[0]
    norms = {
        "key_norm": 1 + everyone.max() - everyone,
        "value_norm": np.where(sinks, 0.5, 1.0).astype(np.float32),
    }
    kv_heads = heads // 2 if heads % 2 == 0 else heads
    measured = [_received(received, list(sets), prompts, layers, heads)]
    for name, norm in norms.items():
        values = np.broadcast_to(norm[None, :, None, None], (prompts, steps, layers, kv_heads, keys))
        what = f"planted {name.replace('_', ' ')}"
        measured.append(Measured(name, values, ("layer", "kv_head", "key"), "norm", what))

    origin = {"model": f"planted:{kind}", "family": "planted", "causal": causal, "seed": seed, "strength": strength}
    origin |= {"heads": heads, "key_heads": kv_heads}
    return Planted(
        record=_record(rng, masked, measured, prompts, origin),
        patterns=torch.from_numpy(patterns).float()[:, None, None].expand(-1, layers, heads, -1, -1),
        truth=_truth(kind, positions, sinks, everyone, strength, causal, cells=heads * prompts),
    )


def _received(received: np.ndarray, sets: list[str], prompts: int, layers: int, heads: int) -> Measured:
    """Received attention [queries, step, key], the same in all prompts, layers and heads."""
    unit, what = "attention (column sum)", "planted: sum over the queries of the attention that the key receives"
    _, steps, keys = received.shape
    if len(sets) == 1:
        values = np.broadcast_to(received[0][None, :, None, None], (prompts, steps, layers, heads, keys))
        return Measured("received", values, ("layer", "head", "key"), unit, what, attributes={"queries": sets[0]})
    columns = received.transpose(1, 0, 2)[None, :, None, None]
    values = np.broadcast_to(columns, (prompts, steps, layers, heads, len(sets), keys))
    return Measured("received", values, ("layer", "head", "queries", "key"), unit, what, {"queries": sets})


def _check(kind: str, steps: int, keys: int, strength: float, causal: bool, counts: dict[str, int]) -> None:
    for name, size in {"steps": steps, **counts}.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
    least_steps, least_keys = {"jumping": (4, 4), "drifting": (1, max(steps, 2)), "split": (1, 4)}.get(kind, (1, 2))
    if steps < least_steps or keys < least_keys:
        raise ValueError(
            f"kind {kind!r} needs at least {least_steps} steps and {least_keys} keys, not steps={steps}, keys={keys}"
        )
    if kind == "none":
        return
    if kind == "split" and causal:
        raise ValueError("kind 'split' is bidirectional: a causal model has no masked queries; say causal=False")
    queries = {"split": keys // 2}.get(kind, keys)
    # In a causal pattern only the queries from a sink on can use it, and every kind needs room for its positions.
    needed = {"jumping": 3, "drifting": steps}.get(kind, 1) - 1 if causal else 0
    if not 1 <= strength <= queries - needed:
        raise ValueError(
            f"strength={strength:g} must be at least 1 (what a key receives on average) and at most the number of "
            f"queries that can use the sink, which is {queries - needed} for kind {kind!r} with keys={keys}, "
            f"steps={steps}, causal={causal}"
        )


def _schedule(rng: np.random.Generator, steps: int, keys: int, left: int, causal: bool) -> np.ndarray:
    """Which positions are masked before each step [step, key]; `left` of them at the last step."""
    response = np.arange(keys // 2, keys)
    response = response if causal else rng.permutation(response)
    masked = np.zeros((steps, keys), bool)
    for step in range(steps):
        done = (len(response) - left) * step // max(steps - 1, 1)
        masked[step, response[done:]] = True
    return masked


def _positions(rng: np.random.Generator, kind: str, steps: int, keys: int, strength: float, causal: bool) -> np.ndarray:
    """The planted keys of each step [step, sink]."""
    room = math.floor(keys - strength) + 1 if causal else keys
    if kind == "none":
        return np.empty((steps, 0), int)
    if kind == "drifting":
        return (rng.integers(room - steps + 1) + np.arange(steps))[:, None]
    if kind == "split":
        return np.tile(np.sort(rng.choice(room, 2, replace=False)), (steps, 1))
    if kind == "jumping":
        # It comes back in the end: a key that is a sink from its onset to the end of the run counts as static.
        a, b, c = rng.choice(room, 3, replace=False)
        return np.array([a, b, c, a])[4 * np.arange(steps) // steps][:, None]
    return np.full((steps, 1), rng.integers(room))


def _pattern(masked: np.ndarray, sinks: np.ndarray, strength: float, causal: bool) -> np.ndarray:
    """Attention [query, key] of one step. With two sinks masked queries use the first, committed ones the second."""
    keys = len(masked)
    sees = np.tril(np.ones((keys, keys), bool)) if causal else np.ones((keys, keys), bool)
    others = sees.copy()
    others[:, sinks] = False
    users = [masked, ~masked] if len(sinks) == 2 else [np.ones(keys, bool)]
    weights = np.zeros((keys, keys))
    for sink, using in zip(sinks, users, strict=False):
        able = using & sees[:, sink]
        forced = able & ~others.any(1)  # the first causal query sees nothing but key 0
        weights[forced, sink] = 1
        able &= ~forced
        weights[able, sink] = (strength - forced.sum()) / able.sum()
    rest = 1 - weights.sum(1, keepdims=True)
    return weights + others * rest / np.maximum(others.sum(1, keepdims=True), 1)


def _record(
    rng: np.random.Generator, masked: np.ndarray, measured: list[Measured], prompts: int, origin: dict[str, Any]
) -> xr.Dataset:
    keys = masked.shape[1]
    words = rng.integers(MASK + 1, MASK + 1 + WORDS, keys)
    words[0], words[-1] = BOS, EOS
    given = np.arange(keys) < keys // 2
    values = {
        "token": words,
        "given": given,
        "commit_step": np.where(masked[0], masked.sum(0) - 1, -1),  # masked up to the step that commits it
        "predicted": np.where(given, -1, words),
        "confidence": np.where(masked[0], 0.5 + 0.5 * rng.random(keys), np.nan),
        "text": np.array([_MARKS.get(int(word), f" w{word}") for word in words], dtype=object),
        "canvas": np.where(masked, MASK, words),
        "masked": masked,
    }
    alike = {name: np.broadcast_to(value, (prompts, *value.shape)) for name, value in values.items()}
    return dataset(alike, measured, {**origin, "versions": {"sinklens": __version__}})


def _truth(
    kind: str, positions: np.ndarray, sinks: np.ndarray, received: np.ndarray, strength: float, causal: bool, cells: int
) -> dict[str, Any]:
    steps, keys = sinks.shape
    main = positions[:, 0] if positions.size else np.full(steps, -1)
    dwell = []
    for column in positions.T:
        edges = [0, *(np.flatnonzero(np.diff(column)) + 1), steps]
        dwell += [(int(column[first]), int(first), int(last - first)) for first, last in pairwise(edges)]
    changes = np.flatnonzero(np.diff(main)) + 1
    about_mean = np.arange(steps) - (steps - 1) / 2
    slope = float(about_mean @ main / (about_mean @ about_mean)) if positions.size and steps > 1 else math.nan
    truth: dict[str, Any] = {
        "position": main,
        "sinks": sinks,
        "excess": strength - (keys - strength) / (keys - 1) if positions.size else -math.inf,
        "sink_rate": float(positions.size > 0),
        "concentration": float(received.max(1).mean()) / keys,
        "drift": slope,
        "dwell": sorted(dwell),
        "jumps": [(int(step), int(main[step - 1]), int(main[step])) for step in changes],
        "drained": int(sinks.sum()) * cells,
        "null": uniform_null(keys, "causal" if causal else "bidirectional").numpy(),
    }
    if kind == "split":
        truth |= {"masked_sink": int(positions[0, 0]), "committed_sink": int(positions[0, 1])}
    return truth
