"""What records say: pure functions of a record."""

from __future__ import annotations

import json
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from sinklens.errors import RecordError
from sinklens.sinks import Positions, SinkRule, seeing
from sinklens.sinks.tokens import CLASSES, token_class


def received(record: xr.Dataset, query_set: str = "all") -> xr.DataArray:
    """The received attention of a record, by one of its query sets if it has several.

    Raises:
        RecordError: the run had no ReceivedAttention probe.
    """
    if "received" not in record:
        raise RecordError("this record has no received attention; run denoise with probes=[ReceivedAttention()]")
    values = record["received"]
    if "query_set" not in values.dims:
        if query_set != "all":
            raise RecordError(
                f"query set {query_set!r} was not measured; run denoise with ReceivedAttention(query_sets=[...])"
            )
        return values
    if query_set not in values["query_set"]:
        raise RecordError(f"query set {query_set!r} was not measured; there are {list(values['query_set'].to_numpy())}")
    return values.sel(query_set=query_set, drop=True)


def sinks(record: xr.Dataset, rule: SinkRule | None = None, *, query_set: str | None = None) -> xr.DataArray:
    """Which keys are sinks, per prompt, step, layer, head and key (bool; False where there is no key).

    The same rule object that edits use online. Unit: yes/no. In a record of a causal model the unit "share" counts
    the queries that can see each key.

    Args:
        record: With `received`.
        rule: `SinkRule()` when None.
        query_set: Whose attention; the rule's own `queries` when None.

    Raises:
        RecordError: no received attention, or not of that query set.
    """
    rule = rule or SinkRule()
    whose = query_set or rule.queries
    values = received(record, whose)
    tensor = torch.tensor(values.to_numpy())
    keys = ~tensor.isnan()
    visible = None
    if is_causal(record):  # a key is seen by the queries at or after it; the last one sees every key
        members = keys
        if whose in get_args(Positions) and whose != "all":
            members = keys & _spread(key_set(record, cast(Positions, whose)), values)
        visible = seeing(members)
    if rule.keys != "all":
        keys = keys & _spread(key_set(record, rule.keys), values)
    flags = rule(tensor.nan_to_num(0.0), keys, visible=visible)
    return values.copy(data=flags.numpy())


def _spread(keys: xr.DataArray, values: xr.DataArray) -> Tensor:
    """A set of keys [prompt, step, key] in the shape of `values`."""
    return torch.tensor(keys.sel(step=values["step"]).broadcast_like(values).transpose(*values.dims).to_numpy())


def key_set(record: xr.Dataset, which: Positions) -> xr.DataArray:
    """Which keys are of a set at each step, bool [prompt, step, key]; as `Canvas.where`, from a record."""
    masked = record["masked"]
    exists, given = masked >= 0, (record["given"] == 1).broadcast_like(masked).transpose(*masked.dims)
    if which == "last":
        return exists & (exists.isel(key=slice(None, None, -1)).cumsum("key").isel(key=slice(None, None, -1)) == 1)
    kinds = {
        "all": exists,
        "masked": masked == 1,
        "committed": masked == 0,
        "prompt": exists & given,
        "response": exists & ~given,
    }
    return kinds[which]


def is_causal(record: xr.Dataset) -> bool:
    """Whether the record is of an autoregressive model (False where it does not say)."""
    return bool(json.loads(record.attrs.get("provenance", "{}")).get("causal", False))


def real(record: xr.Dataset) -> xr.DataArray:
    """Which (prompt, step, key) existed at the measured steps, bool."""
    there = received_at_all(record)
    if "masked" not in record:
        return there.any([dim for dim in there.dims if dim not in ("prompt", "step", "key")])
    return (record["masked"] >= 0) & there.any([dim for dim in there.dims if dim not in ("prompt", "step")])


def received_at_all(record: xr.Dataset) -> xr.DataArray:
    """Where received attention was measured, for any query set.

    Raises:
        RecordError: the run had no ReceivedAttention probe.
    """
    if "received" not in record:
        received(record)
    return record["received"].notnull()


def _layers(record: xr.Dataset) -> list[int]:
    """The layers whose attention was measured."""
    there = received_at_all(record)
    there = there.any([dim for dim in there.dims if dim != "layer"])
    return [int(layer) for layer in there["layer"].to_numpy()[there.to_numpy()]]


def per_layer(record: xr.Dataset, rule: SinkRule | None = None, *, causal: bool) -> pd.DataFrame:
    """Sinks per layer, with the uniform null beside them.

    Columns: layer; sinks (sink keys per head and step, >= 0); not_sinks (share of keys that are no sinks, in
    [0, 1]; arXiv 2510.15731 asks for at least 0.96); null (the same count if attention were uniform: 0 for a
    bidirectional model, about 1 for a causal one, where the first key passes epsilon = 3 without being a sink).
    """
    rule = rule or SinkRule()
    flags, exists = sinks(record, rule), real(record)
    keys = exists.sum("key")
    happened = keys > 0
    counts = flags.sum("key").where(happened)
    null = _null(record, rule, causal=causal)
    rows = []
    for layer in _layers(record):
        here = counts.sel(layer=layer)
        share = 1 - here.sum(["head"]) / (keys.where(happened) * record.sizes["head"])
        rows.append((layer, float(here.mean()), float(share.mean()), float(null.where(happened).mean())))
    return pd.DataFrame(rows, columns=["layer", "sinks", "not_sinks", "null"])


def classes(record: xr.Dataset) -> xr.DataArray:
    """Class of the token that stands at each key at each step, as an index into CLASSES; -1 where there is none."""
    final = record["text"].to_numpy()
    index = np.vectorize(lambda text: CLASSES.index(token_class(text)), otypes=[int])(final)
    at_step = np.where(record["masked"] == 1, CLASSES.index("mask"), index[:, None, :])
    return record["masked"].copy(data=np.where(real(record), at_step, -1))


def token_classes(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """On which token classes sinks fall, beside how common the classes are.

    Columns: token_class; share_of_sinks and share_of_keys, both in [0, 1] and summing to 1 over the classes
    (share_of_sinks is nan if there is no sink at all).
    """
    flags, kind = sinks(record, rule), classes(record)
    weight = flags.sum(["layer", "head"])
    total, keys = int(weight.sum()), int((kind >= 0).sum())
    rows = []
    for index, name in enumerate(CLASSES):
        here = kind == index
        share = float(weight.where(here).sum()) / total if total else float("nan")
        rows.append((name, share, int(here.sum()) / keys))
    return pd.DataFrame(rows, columns=["token_class", "share_of_sinks", "share_of_keys"])


def _null(record: xr.Dataset, rule: SinkRule, *, causal: bool) -> xr.DataArray:
    """Sinks per (prompt, step) if every query spread its attention evenly over the keys that it sees."""
    exists = real(record).transpose("prompt", "step", "key")
    there = torch.tensor(exists.to_numpy())
    queries, keys = (
        there if which == "all" else there & torch.tensor(key_set(record, which).transpose(*exists.dims).to_numpy())
        for which in (rule.queries, rule.keys)
    )
    seen = there.cumsum(-1) if causal else there.sum(-1, keepdim=True).expand(there.shape)
    each = (queries.double() / seen.clamp(min=1))[..., None, :]  # one head stands for all
    even = each.flip(-1).cumsum(-1).flip(-1) if causal else each.sum(-1, keepdim=True).expand(each.shape)
    visible = seeing(queries)[..., None, :] if causal else None
    flags = rule(even.float() * there[..., None, :], keys[..., None, :], visible=visible)
    return exists.isel(key=0, drop=True).copy(data=flags[..., 0, :].sum(-1).double().numpy())


def sink_tokens(record: xr.Dataset, rule: SinkRule | None = None, top: int | None = 5) -> pd.DataFrame:
    """Which tokens are sinks: the relative frequency of each token among the sinks (arXiv 2510.15731, table 2).

    A position counts as the mask token until it is committed. Columns: token (text); share_of_sinks, in [0, 1], 1 over
    all tokens together (0: never a sink; 1: no other token is one), counted over prompts, steps, layers and heads;
    share_of_keys, in [0, 1], how common the token is on the canvas; ratio of the two (1: no preference), which the
    paper does not print. Largest share of sinks first; empty if there is no sink. Planted: the token at the planted
    key, share 1.

    Args:
        record: With `received`.
        rule: `SinkRule()` when None.
        top: How many tokens; all when None.
    """
    flags = sinks(record, rule)
    weight = flags.sum(["layer", "head"]).transpose("prompt", "step", "key").to_numpy()
    exists = real(record).transpose("prompt", "step", "key").to_numpy()
    masked = record["masked"].sel(step=flags["step"]).transpose("prompt", "step", "key").to_numpy() == 1
    text = np.where(masked, "[MASK]", record["text"].to_numpy().astype(str)[:, None, :])
    each = pd.DataFrame({"token": text[exists], "sinks": weight[exists]}).groupby("token", as_index=False)
    table: Any = each.agg(sinks=("sinks", "sum"), keys=("sinks", "size"))
    table = table[table["sinks"] > 0].sort_values(["sinks", "keys"], ascending=False, kind="stable")
    shares = pd.DataFrame(
        {
            "token": table["token"],
            "share_of_sinks": table["sinks"] / max(int(weight.sum()), 1),
            "share_of_keys": table["keys"] / int(exists.sum()),
        }
    )
    shares["ratio"] = shares["share_of_sinks"] / shares["share_of_keys"]
    return shares.head(top if top is not None else len(shares)).reset_index(drop=True)


def movement(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """How the set of sink keys changes from step to step, per layer.

    Columns: layer; jaccard (overlap of a head's sink sets at consecutive steps, in [0, 1]: 1 = the same keys,
    0 = all others; steps without sinks on both sides do not count; nan if none count); ever (keys that are ever a
    sink of a head in a run); always (keys that are sinks at every step of it).
    """
    flags, exists = sinks(record, rule), real(record)
    steps = exists.any("key")
    now, after = flags.isel(step=slice(None, -1)).to_numpy(), flags.isel(step=slice(1, None)).to_numpy()
    both = (steps.isel(step=slice(None, -1)).to_numpy() & steps.isel(step=slice(1, None)).to_numpy())[:, :, None, None]
    union, shared = (now | after).sum(-1), (now & after).sum(-1)
    jaccard = np.where((union > 0) & both, shared / np.maximum(union, 1), np.nan)
    ever = flags.any("step").sum("key")
    always = (flags | ~steps).all("step").sum("key")
    rows = []
    for layer in _layers(record):
        values = jaccard[:, :, flags["layer"].to_numpy().tolist().index(layer)]
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        rows.append((layer, mean, float(ever.sel(layer=layer).mean()), float(always.sel(layer=layer).mean())))
    return pd.DataFrame(rows, columns=["layer", "jaccard", "ever", "always"])
