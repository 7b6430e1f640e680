"""Key and value norms beside received attention: do small keys attract, are sinks drained? Functions of a record."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.analysis.rates import received, sinks
from sinklens.errors import RecordError
from sinklens.sinks import SinkRule
from sinklens.sinks.tokens import token_class

KEY_TYPES = ("prompt", "committed", "mask", "eos")
CELL = ("prompt", "step", "layer", "head")
_PROBES = {"key_norm": "KeyNorm", "value_norm": "ValueNorm"}


def key_types(record: xr.Dataset) -> xr.DataArray:
    """Type of each key at each step, as an index into KEY_TYPES; -1 where there is no key [prompt, step, key].

    "mask": still to be committed; "prompt": given; "eos": a committed token that is an end of sequence or of turn;
    "committed": any other committed token.
    """
    masked, given = record["masked"], record["given"]
    texts, index = np.unique(record["text"].to_numpy().astype(str), return_inverse=True)
    is_eos = np.array([token_class(text) == "eos" for text in texts])[index.reshape(record["text"].shape)]
    settled = xr.where(given == 1, 0, xr.where(given.copy(data=is_eos), 3, 1))
    types = xr.where(masked == 1, 2, xr.where(masked == 0, settled, -1))
    return types.transpose(*masked.dims)


def key_norm_correlation(
    record: xr.Dataset, by: Literal["key_type"] | None = None, *, query_set: str | None = None
) -> xr.DataArray:
    """Spearman correlation over keys between -key_norm and received attention, per layer.

    Unit: rank correlation, in [-1, 1], mean over prompts, steps and heads; ties get their average rank; each query
    head's attention is compared with the keys of its key head. 1: the smaller the key, the more attention it
    receives; 0: unrelated. nan where fewer than 3 keys or all equal. With QK-norm key norms are nearly constant and
    say little. Source: arXiv 2406.11430 (autoregressive models: low norm, high attention), per step here. Planted: 1;
    "none" nan.

    Args:
        record: With `received` and `key_norm`.
        by: "key_type": separately for prompt, committed, mask and eos keys [key_type, layer], ranked within the type.
        query_set: Whose attention.

    Raises:
        RecordError: a variable is missing; the message names its probe.
    """
    if by not in (None, "key_type"):
        raise ValueError(f"by={by!r} is unknown; choose None or 'key_type'")
    values, norms = _beside(record, "key_norm", query_set)
    types = None if by is None else key_types(record).sel(step=values["step"]).transpose("prompt", "step", "key")
    layers = []
    for layer in values["layer"]:  # one at a time: ranks of a whole record take several times its memory
        attention, smallness = values.sel(layer=layer).to_numpy(), -norms.sel(layer=layer).to_numpy()
        keep = np.isfinite(attention) & np.isfinite(smallness)
        groups = (
            [keep] if types is None else [keep & (types.to_numpy() == i)[:, :, None] for i in range(len(KEY_TYPES))]
        )
        layers.append([_mean(_spearman(attention, smallness, group)) for group in groups])
    table = xr.DataArray(np.array(layers).T, dims=("key_type", "layer"), coords={"layer": values["layer"].to_numpy()})
    table = table.isel(key_type=0) if by is None else table.assign_coords(key_type=list(KEY_TYPES))
    table.attrs = {
        "units": "rank correlation",
        "definition": "Spearman correlation of -key_norm and received attention",
    }
    return table.rename("key_norm_correlation")


def kind(
    record: xr.Dataset,
    rule: SinkRule | None = None,
    *,
    low: float = 0.75,
    high: float = 1.25,
    query_set: str | None = None,
) -> pd.DataFrame:
    """Are sinks resting places or do they carry information? By value norm, counted per layer.

    A sink key is "drained" when its value norm is below `low` x the median value norm of its head's keys at that step,
    "informative" when above `high` x, else "unclear". The two bounds are a convention of sinklens.

    Columns: layer, drained, informative, unclear; sink flags, summed over prompts, steps and heads, at least 0. 0: no
    sink of that kind; 1: a single one. Sinks whose value norm was not measured count nowhere. Source: value-state
    drains, Guo et al., arXiv 2410.13835. Planted: all sinks are drained.

    Raises:
        RecordError: a variable is missing; the message names its probe.
    """
    rule = rule or SinkRule()
    values, norms = _beside(record, "value_norm", query_set or rule.queries)
    more = {name: record[name] for name in ("masked", "given") if name in record}
    found = sinks(xr.Dataset({"received": values, **more}, attrs=record.attrs), rule, query_set="all").to_numpy()
    relative = norms.to_numpy() / _median(norms.to_numpy())
    measured = found & np.isfinite(relative)
    flags = {"drained": measured & (relative < low), "informative": measured & (relative > high)}
    flags["unclear"] = measured & ~flags["drained"] & ~flags["informative"]
    counts = {name: flag.sum((0, 1, 3, 4)) for name, flag in flags.items()}
    return pd.DataFrame({"layer": values["layer"].to_numpy(), **counts})


def qk_at_sinks(record: xr.Dataset, rule: SinkRule | None = None, *, query_set: str | None = None) -> pd.DataFrame:
    """Is it the angle or the length? Factors of `q.k = ||q|| ||k|| cos` at sinks and at other keys, per layer.

    Columns: layer, part ("cosine", "key_norm"), at_sinks, elsewhere: means over prompts, steps, heads and keys. The
    cosine is in [-1, 1], the norm in [0, inf) of the model's activations; equal columns: that factor does not make
    sinks. nan where there is none. Source: arXiv 2601.07894 (shallow layers: angle and norm; deep ones: the angle).

    Raises:
        RecordError: a variable is missing; the message names its probe.
    """
    if "qk" not in record:
        raise RecordError("this record has no qk; run denoise with probes=[ReceivedAttention(), QKDecomposition()]")
    rule = rule or SinkRule()
    found = sinks(record, rule, query_set=query_set)
    measured = received(record, query_set or rule.queries).notnull()
    rows = []
    for layer in found["layer"].to_numpy():
        flags = found.sel(layer=layer)
        for part in ("cosine", "key_norm"):
            values = record["qk"].sel(layer=layer, part=part).where(measured.sel(layer=layer))
            rows.append((int(layer), part, float(values.where(flags).mean()), float(values.where(~flags).mean())))
    return pd.DataFrame(rows, columns=["layer", "part", "at_sinks", "elsewhere"])


def _beside(record: xr.Dataset, name: str, query_set: str | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Received attention and the norms of the keys of each query head, both [prompt, step, layer, head, key]."""
    if name not in record:
        raise RecordError(
            f"this record has no {name}; run denoise with probes=[ReceivedAttention(), {_PROBES[name]}()]"
        )
    values = received(record, query_set or "all").transpose(*CELL, "key")
    groups, extra = divmod(values.sizes["head"], record.sizes["kv_head"])
    if extra or not groups:
        raise RecordError(
            f"{values.sizes['head']} query heads cannot share {record.sizes['kv_head']} key heads evenly; select whole "
            "groups of heads"
        )
    norms = record[name].transpose("prompt", "step", "layer", "kv_head", "key")
    order = np.repeat(np.arange(norms.sizes["kv_head"]), groups)
    return values, norms.isel(kv_head=order).drop_vars("kv_head", errors="ignore").rename(kv_head="head")


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the last axis without the nans (np.nanmedian calls Python for each row)."""
    ordered, count = np.sort(values, -1), np.isfinite(values).sum(-1, keepdims=True)
    lower, upper = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)
    return (np.take_along_axis(ordered, lower, -1) + np.take_along_axis(ordered, upper, -1)) / 2


def _ranks(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Average ranks from 0 among the kept entries of the last axis; 0 for the others."""
    order = np.argsort(np.where(keep, values, np.inf), -1)  # the kept ones are finite and come first
    ordered = np.take_along_axis(values, order, -1)
    place = np.broadcast_to(np.arange(values.shape[-1], dtype=np.float32), values.shape)
    new = np.ones(values.shape, bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    new |= place == keep.sum(-1, keepdims=True)  # what is not kept begins a tie of its own
    first = np.maximum.accumulate(np.where(new, place, 0), -1)
    ends = np.ones(values.shape, bool)
    ends[..., :-1] = new[..., 1:]
    last = np.minimum.accumulate(np.where(ends, place, np.inf)[..., ::-1], -1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, -1)
    return np.where(keep, ranks, 0)


def _spearman(a: np.ndarray, b: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis among the kept entries; nan where fewer than 3, or all equal."""
    keep = np.broadcast_to(keep, a.shape)
    count = keep.sum(-1)
    x, y = ((_ranks(v, keep) - (count[..., None] - 1) / 2) * keep for v in (a, b))  # ranks average (n - 1) / 2
    power = (x * x).sum(-1) * (y * y).sum(-1)
    defined = (count >= 3) & (power > 0)
    return np.where(defined, (x * y).sum(-1) / np.sqrt(np.where(defined, power, 1)), np.nan)
