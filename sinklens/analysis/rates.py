"""How many sinks there are, on which tokens, and how they change from step to step. Pure functions of a record.

Common to all: `rule` says which keys are sinks, `SinkRule()` when None. Its `queries` must have been measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.analysis.attention import CELL, existing, flags, measured, null, positions, received, texts_at
from sinklens.sinks import SinkRule
from sinklens.sinks.tokens import CLASSES, token_class
from sinklens.values.kinds import Count, reads


@reads()
def sinks(record: xr.Dataset, rule: SinkRule | None = None) -> xr.DataArray:
    """Which keys are sinks, per prompt, step, layer, head and key (bool; False where there is no key).

    The same rule object that edits use online. Unit: yes/no. Whose attention counts is the rule's `queries`, and the
    unit "share" counts those of them that can see each key.

    Raises:
        RecordError: no received attention, or not of the rule's queries.
    """
    rule = rule or SinkRule()
    values = received(record, rule.queries)
    part = measured(values)  # a rule may average heads, and those that were not measured are no heads without sinks
    if part.sizes == values.sizes:
        return flags(values, record, rule)
    return flags(part, record, rule).astype(float).reindex_like(values) == 1


@reads()
def flagged(record: xr.Dataset, rule: SinkRule | None = None) -> tuple[xr.DataArray, xr.DataArray]:
    """Received attention of what was measured [prompt, step, layer, head, key], and which keys are sinks."""
    rule = rule or SinkRule()
    values = measured(received(record, rule.queries)).transpose(*CELL, "key")
    return values, flags(values, record, rule)


def happened(values: xr.DataArray) -> xr.DataArray:
    """Which (prompt, step, layer, head) were measured: those of a row that is done were not."""
    return values.notnull().any("key")


@reads()
def per_layer(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """Sinks per layer, with the uniform null beside them.

    Columns: layer; sinks (sink keys per head and step, >= 0); not_sinks (share of keys that are no sinks, in
    [0, 1]; arXiv 2510.15731 asks for at least 0.96); null (the same count if attention were uniform: 0 for a
    bidirectional model, about 1 for a causal one, where the first key passes epsilon = 3 without being a sink).

    Example:
        >>> import sinklens as sl
        >>> sl.metrics.per_layer(sl.planted("static").record).sinks.tolist()
        [1.0, 1.0]
    """
    rule = rule or SinkRule()
    values, marked = flagged(record, rule)
    there = happened(values)
    counts, keys = marked.sum("key").where(there), values.notnull().sum("key").where(there)
    expected, at_null = flagged(null(record, rule.queries), rule)
    table = pd.DataFrame({"layer": values["layer"].to_numpy()})
    over = ["prompt", "step", "head"]
    table["sinks"] = counts.mean(over).to_numpy()
    table["not_sinks"] = 1 - (counts.sum("head") / keys.sum("head").where(there.any("head"))).mean(over[:2]).to_numpy()
    even = at_null.sum("key").where(happened(expected)).mean(over)
    table["null"] = float(even[0]) if even.sizes["layer"] == 1 else even.sel(layer=values["layer"]).to_numpy()
    return table


@reads()
def classes(record: xr.Dataset) -> xr.DataArray:
    """Class of the token that stands at each key at each step, as an index into CLASSES; -1 where there is none."""
    index = np.vectorize(lambda text: CLASSES.index(token_class(text)), otypes=[int])(texts_at(record).to_numpy())
    exists = existing(record)
    at_step = np.where(positions(record, "masked"), CLASSES.index("mask"), index)
    return exists.copy(data=np.where(exists, at_step, -1))


@reads()
def token_classes(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """On which token classes sinks fall, beside how common the classes are.

    Columns: token_class; share_of_sinks and share_of_keys, both in [0, 1] and summing to 1 over the classes
    (share_of_sinks is nan if there is no sink at all).
    """
    kind = classes(record)
    weight = sinks(record, rule).sum(["layer", "head"])
    total, keys = int(weight.sum()), int((kind >= 0).sum())
    rows = []
    for index, name in enumerate(CLASSES):
        here = kind == index
        share = float(weight.where(here).sum()) / total if total else float("nan")
        rows.append((name, share, int(here.sum()) / keys))
    return pd.DataFrame(rows, columns=["token_class", "share_of_sinks", "share_of_keys"])


PLACES = ("first", "last", "separator", "other")


@reads()
def places(record: xr.Dataset) -> xr.DataArray:
    """The place of each key at each step, as an index into PLACES; -1 where there is none [prompt, step, key].

    "first" and "last" are the first and last position of the row (as far as there is one at the step); "separator" is
    any other line break, BOS or EOS ([CLS], [SEP]); "other" the rest.
    """
    exists = existing(record).transpose("prompt", "step", "key")
    there = exists.to_numpy()
    kinds = classes(record).transpose("prompt", "step", "key").to_numpy()
    breaks = np.vectorize(lambda each: "\n" in each, otypes=[bool])(texts_at(record).to_numpy()) & (
        kinds != CLASSES.index("mask")
    )
    marks = breaks | (kinds == CLASSES.index("bos")) | (kinds == CLASSES.index("eos"))
    first = there & (there.cumsum(-1) == 1)
    last = there & (there[..., ::-1].cumsum(-1)[..., ::-1] == 1) & ~first
    found = np.select([~there, first, last, marks], [-1, *map(PLACES.index, PLACES[:3])], PLACES.index("other"))
    return exists.copy(data=found)


@reads()
def place_classes(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """On which places of a text sinks fall (`places`), beside how common the places are, whatever words stand there.

    Columns: place; share_of_sinks and share_of_keys, both in [0, 1] and summing to 1 over the places (share_of_sinks is
    nan if there is no sink at all).
    """
    place = places(record).to_numpy()
    weight = sinks(record, rule).sum(["layer", "head"]).transpose("prompt", "step", "key").to_numpy()
    rows = []
    for index, name in enumerate(PLACES):
        here = place == index
        share = float(weight[here].sum() / weight.sum()) if weight.sum() else float("nan")
        rows.append((name, share, float(here.sum() / (place >= 0).sum())))
    return pd.DataFrame(rows, columns=["place", "share_of_sinks", "share_of_keys"])


@reads()
def sink_tokens(record: xr.Dataset, rule: SinkRule | None = None, top: Count | None = 5) -> pd.DataFrame:
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
    weight = sinks(record, rule).sum(["layer", "head"]).transpose("prompt", "step", "key").to_numpy()
    exists = existing(record).to_numpy()
    text = np.where(positions(record, "masked"), "[MASK]", texts_at(record).to_numpy().astype(str))
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


@reads()
def movement(record: xr.Dataset, rule: SinkRule | None = None) -> pd.DataFrame:
    """How the set of sink keys changes from step to step, per layer.

    Columns: layer; jaccard (overlap of a head's sink sets at consecutive steps, in [0, 1]: 1 = the same keys,
    0 = all others; steps without sinks on both sides do not count; nan if none count); ever (keys that are ever a
    sink of a head in a run); always (keys that are sinks at every step of it).

    Example:
        >>> import sinklens as sl
        >>> sl.metrics.movement(sl.planted("drifting").record).jaccard.tolist()
        [0.0, 0.0]
    """
    values, marked = flagged(record, rule)
    there = happened(values)
    before, after = (marked.isel(step=part).to_numpy() for part in (slice(None, -1), slice(1, None)))
    both = there.isel(step=slice(None, -1)).to_numpy() & there.isel(step=slice(1, None)).to_numpy()
    union, shared = (before | after).sum(-1), (before & after).sum(-1)
    jaccard = xr.DataArray(np.where((union > 0) & both, shared / np.maximum(union, 1), np.nan), dims=CELL)
    over = ["prompt", "head"]
    counts = {"ever": marked.any("step").sum("key"), "always": (marked | ~there).all("step").sum("key")}
    table = pd.DataFrame({"layer": values["layer"].to_numpy(), "jaccard": jaccard.mean([*over, "step"]).to_numpy()})
    for name, count in counts.items():
        table[name] = count.where(there.any("step")).mean(over).to_numpy()
    return table
