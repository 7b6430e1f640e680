"""How sinks behave over a run: how many, where, how long. Pure functions of a record.

Common to all: `rule` says which keys are sinks, `SinkRule()` when None; its `queries`, or the argument of that name
where no rule is needed, must have been measured. Steps that the probe skipped are left out, so "consecutive" means
consecutive measured steps; a row that is done counts no longer. Positions are the record's key coordinate. "Planted"
lines give the value on the cases of `planted`, with its default sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.analysis.attention import evidence, measured, received
from sinklens.analysis.rates import flagged, happened
from sinklens.sinks import SinkRule
from sinklens.sinks.rule import Queries
from sinklens.values.kinds import Finite, Share, reads


def described(array: xr.DataArray, name: str, units: str, definition: str) -> xr.DataArray:
    """The array with a name, its unit and what it means."""
    array = array.rename(name)
    array.attrs = {"units": units, "definition": definition}
    return array


@reads()
def sink_rate(record: xr.Dataset, rule: SinkRule | None = None) -> xr.DataArray:
    """How often a head has a sink at all, per layer.

    Unit: share of (prompt, step, head), in [0, 1]. 0: never a sink; 1: at least one in every head at every step.
    Source: Gu et al., arXiv 2410.10781 (their mean indicator over samples, layers and heads, there for one fixed key).
    Planted: 1; "none" 0.
    """
    values, sinks = flagged(record, rule)
    rate = sinks.any("key").astype(float).where(happened(values)).mean(["prompt", "step", "head"])
    return described(rate, "sink_rate", "share", "share of (prompt, step, head) with at least one sink")


@reads()
def filtered_share(record: xr.Dataset, epsilons: Sequence[Finite], rule: SinkRule | None = None) -> xr.DataArray:
    """How many keys are NOT sinks, as a curve over epsilon.

    Unit: share of all measured keys, in [0, 1], never falling with epsilon. 1: epsilon filters out every key; 0: every
    key is a sink. `rule` gives everything but epsilon. Source: arXiv 2510.15731, figure 10 (at least 0.96 at 3).
    Planted: 1 - 1/32 below the planted excess ("split" 1 - 2/32) and 1 from there on; "none" 1 from 0 on.
    """
    rule = rule or SinkRule()
    values = measured(received(record, rule.queries))
    total = int(values.notnull().sum())
    rules = [replace(rule, epsilon=float(epsilon)) for epsilon in epsilons]
    given = evidence(values, record, rule)
    shares = [1 - int(one(*given).sum()) / total for one in rules]
    curve = xr.DataArray(shares, dims="epsilon", coords={"epsilon": np.asarray(epsilons, dtype=float)})
    return described(curve, "filtered_share", "share", "share of keys that are no sinks at this epsilon")


@reads()
def concentration(record: xr.Dataset, queries: Queries = "all") -> xr.DataArray:
    """Share of all received attention that the top key gets, per layer; no rule needed.

    Unit: share, in [1 / keys, 1], mean over prompts, steps and heads (those that have such queries).
    1: one key gets everything; 1 / keys: all get the same. Source: arXiv 2510.15731, figure 5 (score of the main
    sink), divided by the total. Planted: strength / keys = 0.25; "none" 1/32.
    """
    values = measured(received(record, queries))
    total = values.sum("key")
    share = (values.fillna(0).max("key") / total.where(total > 0)).mean(["prompt", "step", "head"])
    return described(share, "concentration", "share", "share of received attention that the top key gets")


@reads()
def main_sink(record: xr.Dataset, rule: SinkRule | None = None) -> xr.DataArray:
    """Position of the sink that receives most, per prompt, step, layer and head.

    Unit: position, from 0; -1 where no key is a sink (or the row is done); of equals the leftmost. 0: the first real
    token; 1: the second. Source: arXiv 2510.15731, section 4.2. Planted: the planted position; "none" -1.

    Example:
        >>> import sinklens as sl
        >>> [int(key) for key in sl.dynamics.main_sink(sl.planted("jumping").record)[0, ::4, 0, 0]]
        [16, 1, 24, 16]
    """
    values, sinks = flagged(record, rule)
    best = values.where(sinks, -np.inf).to_numpy().argmax(-1)
    position = np.where(sinks.any("key"), values["key"].to_numpy()[best], -1)
    return described(
        values.isel(key=0, drop=True).copy(data=position), "main_sink", "position", "the sink that receives most"
    )


@reads()
def onset(record: xr.Dataset, rule: SinkRule | None = None) -> xr.DataArray:
    """First step at which a key is a sink, per prompt, layer, head and key.

    Unit: step, from 0; -1 where the key never is one. 0: from the start; 1: from the second step.
    Source: sinklens, from "moving sinks" in arXiv 2510.15731, section 4.2.
    Planted: "static" and "split" 0, "drifting" 0, 1, 2, ..., "jumping" 0, 4 and 8; "none" -1.
    """
    values, sinks = flagged(record, rule)
    first = values["step"].to_numpy()[sinks.to_numpy().argmax(1)]
    steps = np.where(sinks.any("step"), first, -1)
    return described(values.isel(step=0, drop=True).copy(data=steps), "onset", "step", "first step as a sink")


@reads()
def dwell(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """Uninterrupted sink episodes.

    Columns: prompt, layer, head, key, start (step) and length (measured steps, at least 1; the lengths sum to the
    number of sink flags). 1: a sink of a single step; there is no 0. An episode that lasts to the end of the run may
    have lasted longer. Source: arXiv 2510.15731, section 4.2 ("some consecutive steps", "edge cases live for one").
    Planted: "static" one episode of 16 steps, "drifting" 16 of 1, "jumping" 4 of 4, "split" two of 16; "none" no row.

    Example:
        >>> import sinklens as sl
        >>> sl.dynamics.dwell(sl.planted("static").record).length.tolist()
        [16, 16, 16, 16]
    """
    values, sinks = flagged(record, rule)
    last = ("prompt", "layer", "head", "key", "step")
    edges = np.diff(np.pad(sinks.transpose(*last).to_numpy().astype(np.int8), [(0, 0)] * 4 + [(0, 1)]), prepend=0)
    # Row-major order puts the n-th beginning and the n-th end of each key together.
    starts, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)
    table = {dim: values[dim].to_numpy()[index] for dim, index in zip(last[:-1], starts, strict=False)}
    return pd.DataFrame({**table, "start": values["step"].to_numpy()[starts[-1]], "length": ends[-1] - starts[-1]})


@reads()
def births_deaths(record: xr.Dataset, rule: SinkRule | None = None) -> xr.Dataset:
    """How many keys become and cease to be sinks, per step and layer.

    Variables births and deaths [step, layer]. Unit: keys, summed over prompts and heads, at least 0. 0: nothing
    changes at this step; 1: one key of one head does. At the first step all sinks are births, so that the running
    sum of births - deaths is the number of sinks; that a row is done is no death. Source: arXiv 2510.15731, section
    4.2 ("may move or vanish"). Planted, per head: "static" and "split" births at step 0 only, "drifting" 1 and 1 at
    each later step, "jumping" 1 and 1 at steps 4, 8 and 12; "none" 0.
    """
    values, sinks = flagged(record, rule)
    before = sinks.shift(step=1, fill_value=False)
    changes = {"births": sinks & ~before, "deaths": before & ~sinks & happened(values)}
    over = ["prompt", "head", "key"]
    return xr.Dataset(
        {name: described(flag.sum(over), name, "keys", f"sink {name} at this step") for name, flag in changes.items()}
    )


@reads()
def jumps(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """How far the main sink jumps when it changes.

    Columns: prompt, layer, head, step (the later one), before and after (positions), distance = `|after - before|` in
    positions, at least 1 (1: to the next key; a main sink that stays makes no row). Only consecutive steps that both
    have a sink count. Source: arXiv 2510.15731, section 4.2 (step 38 to 39: position 62 to 88).
    Planted: "drifting" 15 jumps of 1, "jumping" 3, the others none.
    """
    main = main_sink(record, rule).transpose("prompt", "layer", "head", "step")
    before, after = main.to_numpy()[..., :-1], main.to_numpy()[..., 1:]
    changed = np.nonzero((before != after) & (before >= 0) & (after >= 0))
    table = {dim: main[dim].to_numpy()[index] for dim, index in zip(("prompt", "layer", "head"), changed, strict=False)}
    step = main["step"].to_numpy()[1:][changed[-1]]
    distance = np.abs(after[changed] - before[changed])
    return pd.DataFrame(
        {**table, "step": step, "before": before[changed], "after": after[changed], "distance": distance}
    )


@reads()
def drift(record: xr.Dataset, rule: SinkRule | None = None) -> xr.DataArray:
    """Least-squares slope of the main sink's position over steps, per prompt, layer and head.

    Unit: positions per step; positive = to the right. 0: no trend; 1: one key to the right per step. nan where fewer
    than 2 steps have a sink. Source: arXiv 2510.15731, section 4.2 (LLaDA drifts right, Dream left).
    Planted: "drifting" 1, "static" and "split" 0, "jumping" the slope through its positions; "none" nan.

    Example:
        >>> import sinklens as sl
        >>> sl.dynamics.drift(sl.planted("drifting").record).values.ravel()[:2].tolist()
        [1.0, 1.0]
    """
    main = main_sink(record, rule).astype(float)
    position = main.where(main >= 0)
    step = main["step"].astype(float).where(main >= 0)
    off = step - step.mean("step")
    spread = (off**2).sum("step")
    slope = (off * (position - position.mean("step"))).sum("step") / spread.where(spread > 0)
    return described(slope, "drift", "positions per step", "slope of the main sink's position over steps")


@reads()
def centroid_variance(record: xr.Dataset, rule: SinkRule | None = None) -> xr.Dataset:
    """How much the centre of the sinks moves, and how far they lie apart.

    Variables centroid [prompt, step, layer, head], mu_t = sum_j j w_j / sum_j w_j in positions, w = received attention
    of sinks; temporal = Var_t(mu_t) / S^2 and spatial = E_t[sum_j w_j (j - mu_t)^2 / sum_j w_j] / S^2 per prompt,
    layer and head, S the row's number of keys. Range [0, 1/4] (population variances; 1 cannot happen). 0: the centre
    stays (temporal), or there is one sink at a time (spatial). nan without sinks. Source: the diagnostics that arXiv
    2602.17664 motivates; the formulas are sinklens's, because the paper's were not sinks. Planted: temporal 0 for
    "static" and "split", (16^2 - 1) / 12 / 32^2 for "drifting"; spatial 0 but for "split", (distance / 2)^2 / 32^2.
    """
    values, sinks = flagged(record, rule)
    weight = values.where(sinks, 0).astype(float)
    total = weight.sum("key")
    total = total.where(total > 0)
    position = values["key"].astype(float)
    centroid = (weight * position).sum("key") / total
    within = (weight * (position - centroid) ** 2).sum("key") / total
    size = values.notnull().any(["step", "layer", "head"]).sum("key") ** 2
    temporal = ((centroid - centroid.mean("step")) ** 2).mean("step") / size
    return xr.Dataset(
        {
            "centroid": described(centroid, "centroid", "position", "centre of the sinks' received attention"),
            "temporal": described(temporal, "temporal", "share of S^2", "variance of the centroid over steps"),
            "spatial": described(within.mean("step") / size, "spatial", "share of S^2", "variance around the centroid"),
        }
    )


@reads()
def classify(record: xr.Dataset, rule: SinkRule | None = None, *, share: Share = 0.9) -> pd.DataFrame:
    """Which sink keys are static and which move.

    The rule: a key is "static" iff it is a sink in at least `share` of the steps in which it exists from its onset
    on, else "moving". A key that becomes a sink just before the run ends is therefore static; look at `steps`.

    Columns: prompt, layer, head, key, onset (step), steps (from the onset on), share (of them as a sink, in (0, 1];
    1: never interrupted) and type. Source: arXiv 2510.15731, section 4.2, which gives no number.
    Planted: "static" and "split" static, "jumping" moving, "drifting" moving but for the last key; "none" no row.
    """
    values, sinks = flagged(record, rule)
    last = ("prompt", "layer", "head", "key", "step")
    flags, exists = (array.transpose(*last).to_numpy() for array in (sinks, values.notnull()))
    ever = np.nonzero(flags.any(-1))
    flags, exists = flags[ever], exists[ever]
    after = np.maximum.accumulate(flags, -1) & exists
    steps = after.sum(-1)
    part = flags.sum(-1) / np.maximum(steps, 1)
    table = {dim: values[dim].to_numpy()[index] for dim, index in zip(last[:-1], ever, strict=True)}
    first = values["step"].to_numpy()[flags.argmax(-1)]
    kinds = np.where(part >= share, "static", "moving")
    return pd.DataFrame({**table, "onset": first, "steps": steps, "share": part, "type": kinds})
