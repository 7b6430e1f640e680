"""Key and value norms beside received attention: do small keys attract, are sinks drained? Functions of a record."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.analysis.attention import CELL, flags, measured, null, positions, received, texts_at
from sinklens.analysis.ranks import partial, spearman
from sinklens.analysis.rates import flagged
from sinklens.errors import RecordError
from sinklens.records import made
from sinklens.sinks import SinkRule
from sinklens.sinks.rule import Queries
from sinklens.sinks.tokens import token_class
from sinklens.values.kinds import AtLeastZero, reads

KEY_TYPES = ("prompt", "committed", "mask", "eos")
_PROBES = {"key_norm": "KeyNorm", "value_norm": "ValueNorm"}


@reads()
def key_types(record: xr.Dataset) -> xr.DataArray:
    """Type of each key at each step, as an index into KEY_TYPES; -1 where there is no key [prompt, step, key].

    "mask": still to be committed; "prompt": given; "eos": a committed token that is an end of sequence or of turn;
    "committed": any other committed token.
    """
    text = texts_at(record).to_numpy()
    every, index = np.unique(text.astype(str), return_inverse=True)
    ends = np.array([token_class(one) == "eos" for one in every])[index.reshape(text.shape)]
    kinds = {name: positions(record, name) for name in ("committed", "prompt", "masked")}
    is_eos = kinds["masked"].copy(data=np.broadcast_to(ends, kinds["masked"].shape))
    types = xr.where(kinds["committed"], xr.where(kinds["prompt"], 0, xr.where(is_eos, 3, 1)), -1)
    return xr.where(kinds["masked"], 2, types).transpose("prompt", "step", "key")


@reads()
def key_norm_correlation(
    record: xr.Dataset, by: Literal["key_type"] | None = None, queries: Queries = "all"
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
        queries: Whose attention.

    Raises:
        RecordError: a variable is missing; the message names its probe.
    """
    if by not in (None, "key_type"):
        raise ValueError(f"by={by!r} is unknown; choose None or 'key_type'")
    values, norms = beside(record, "key_norm", queries)
    types = None if by is None else key_types(record).sel(step=values["step"]).transpose("prompt", "step", "key")
    layers = []
    for layer in values["layer"]:  # one at a time: ranks of a whole record take several times its memory
        attention, smallness = values.sel(layer=layer).to_numpy(), -norms.sel(layer=layer).to_numpy()
        keep = np.isfinite(attention) & np.isfinite(smallness)
        groups = (
            [keep] if types is None else [keep & (types.to_numpy() == i)[:, :, None] for i in range(len(KEY_TYPES))]
        )
        layers.append([_mean(spearman(attention, smallness, group)) for group in groups])
    table = xr.DataArray(np.array(layers).T, dims=("key_type", "layer"), coords={"layer": values["layer"].to_numpy()})
    table = table.isel(key_type=0) if by is None else table.assign_coords(key_type=list(KEY_TYPES))
    table.attrs = {
        "units": "rank correlation",
        "definition": "Spearman correlation of -key_norm and received attention",
    }
    return table.rename("key_norm_correlation")


@reads()
def predictors(record: xr.Dataset, queries: Queries = "all") -> pd.DataFrame:
    """Is it the key norm or the position that predicts received attention? Partial rank correlations, per prompt.

    Attention is taken relative to what uniform attention would give the key (`attention.null`), so that in an
    autoregressive model early keys do not lead because more queries see them. Columns: layer; prompt; small_norm and
    early (Spearman correlation over keys with -key_norm, and with -position); small_norm_given_position and
    early_given_norm (the same with the other one held constant: first-order partial correlations of ranks); all in
    [-1, 1], means over steps and heads; nan where fewer than 3 keys or all equal. 1: the smaller (the earlier) the key,
    the more attention; 0: unrelated. Position counts from the start, so a sink in the middle is neither early nor late.
    Source: arXiv 2406.11430 for the norm; the comparison is sinklens's.

    Raises:
        RecordError: a variable is missing; the message names its probe.
    """
    values, norms = beside(record, "key_norm", queries)
    even = null(record, queries)["received"].isel(head=0, drop=True).sel(step=values["step"])
    even = even.transpose("prompt", "step", "layer", "key")
    place = np.arange(values.sizes["key"], dtype=float)
    rows = []
    for index, layer in enumerate(values["layer"].to_numpy()):
        uniform = even.isel(layer=index if even.sizes["layer"] > 1 else 0).to_numpy()[:, :, None]
        attention, small = values.isel(layer=index).to_numpy() / uniform, -norms.isel(layer=index).to_numpy()
        keep = np.isfinite(attention) & np.isfinite(small)
        early = np.broadcast_to(-place, attention.shape)
        pairs = ((attention, small), (attention, early), (small, early))
        by_norm, by_place, between = (spearman(one, other, keep) for one, other in pairs)
        found = [by_norm, by_place, partial(by_norm, by_place, between), partial(by_place, by_norm, between)]
        for prompt in range(values.sizes["prompt"]):
            rows.append((int(layer), prompt, *(_mean(each[prompt]) for each in found)))
    columns = ["layer", "prompt", "small_norm", "early", "small_norm_given_position", "early_given_norm"]
    return pd.DataFrame(rows, columns=columns)


@reads()
def kind(
    record: xr.Dataset,
    rule: SinkRule | None = None,
    *,
    low: AtLeastZero = 0.75,
    high: AtLeastZero = 1.25,
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
    values, norms = beside(record, "value_norm", rule.queries)
    sinks = flags(values, record, rule).to_numpy()
    relative = norms.to_numpy() / _median(norms.to_numpy())
    known = sinks & np.isfinite(relative)
    kinds = {"drained": known & (relative < low), "informative": known & (relative > high)}
    kinds["unclear"] = known & ~kinds["drained"] & ~kinds["informative"]
    counts = {name: flag.sum((0, 1, 3, 4)) for name, flag in kinds.items()}
    return pd.DataFrame({"layer": values["layer"].to_numpy(), **counts})


@reads()
def qk_at_sinks(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """Is it the angle or the length? Factors of `q.k = ||q|| ||k|| cos` at sinks and at other keys, per layer.

    Columns: layer, part ("cosine", "key_norm"), at_sinks, elsewhere: means over prompts, steps, heads and keys. The
    cosine is in [-1, 1], the norm in [0, inf) of the model's activations; equal columns: that factor does not make
    sinks. nan where there is none. Source: arXiv 2601.07894 (shallow layers: angle and norm; deep ones: the angle).

    Raises:
        RecordError: a variable is missing; the message names its probe.
    """
    if "qk" not in record:
        raise RecordError("this record has no qk; run denoise with probes=[ReceivedAttention(), QKDecomposition()]")
    attention, sinks = flagged(record, rule)
    rows = []
    for layer in sinks["layer"].to_numpy():
        at_sinks, known = sinks.sel(layer=layer), attention.sel(layer=layer).notnull()
        for part in ("cosine", "key_norm"):
            values = record["qk"].sel(layer=layer, part=part)
            elsewhere = values.where(known & ~at_sinks)
            rows.append((int(layer), part, float(values.where(at_sinks).mean()), float(elsewhere.mean())))
    return pd.DataFrame(rows, columns=["layer", "part", "at_sinks", "elsewhere"])


def beside(record: xr.Dataset, name: str, queries: Queries) -> tuple[xr.DataArray, xr.DataArray]:
    """Received attention and the norms of the keys of each query head, both [prompt, step, layer, head, key]."""
    if name not in record:
        raise RecordError(
            f"this record has no {name}; run denoise with probes=[ReceivedAttention(), {_PROBES[name]}()]"
        )
    values = measured(received(record, queries)).transpose(*CELL, "key")
    shared = record[name]
    shared = shared.assign_coords({dim: shared[dim] for dim in shared.dims})
    used = values["head"] // group_size(record)
    gone = sorted(set(used.to_numpy().tolist()) - set(shared["kv_head"].to_numpy().tolist()))
    if gone:
        raise RecordError(f"the query heads of this record use key head {gone[0]}, whose {name} it does not have")
    norms = shared.sel(step=values["step"], layer=values["layer"], kv_head=used)
    return values, norms.drop_vars("kv_head").transpose(*CELL, "key")


def group_size(record: xr.Dataset) -> int:
    """How many query heads share a key head in the model of a record.

    Raises:
        RecordError: its provenance does not say.
    """
    said = made(record)
    heads, key_heads = said.get("heads"), said.get("key_heads")
    if not heads or not key_heads:
        raise RecordError(
            'this record does not say which query heads share a key head: its provenance lacks "heads" or "key_heads"'
        )
    return heads // key_heads


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the last axis without the nans (np.nanmedian calls Python for each row)."""
    ordered, count = np.sort(values, -1), np.isfinite(values).sum(-1, keepdims=True)
    lower, upper = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)
    return (np.take_along_axis(ordered, lower, -1) + np.take_along_axis(ordered, upper, -1)) / 2
