"""Who shares sinks with whom: between steps, layers, heads, queries and rules. Pure functions of a record.

Common to all: `rule` and "Planted" as in `dynamics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sinklens.analysis.attention import received
from sinklens.analysis.dynamics import described
from sinklens.analysis.rates import flagged, happened
from sinklens.errors import RecordError
from sinklens.sinks import SinkRule
from sinklens.values.kinds import reads

Between = Literal["layer", "head", "queries"]


def _jaccard(sets: xr.DataArray, dim: str) -> xr.DataArray:
    """Pairwise Jaccard of sets of keys along `dim`, a matrix [..., dim, other_dim]; nan where both are empty."""
    sets = sets.transpose(..., dim, "key")
    members = torch.from_numpy(sets.to_numpy().astype(np.float32))
    shared, size = members @ members.mT, members.sum(-1)
    matrix = shared / (size[..., :, None] + size[..., None, :] - shared)
    coords = {name: sets[name].to_numpy() for name in sets.dims if name != "key"}
    return xr.DataArray(
        matrix.numpy(), dims=(*sets.dims[:-1], f"other_{dim}"), coords={**coords, f"other_{dim}": coords[dim]}
    )


@reads()
def jaccard(record: xr.Dataset, rule: SinkRule | None = None) -> xr.DataArray:
    """Overlap of a head's sink sets at each pair of steps, per layer [layer, step, other_step].

    Unit: Jaccard, in [0, 1], mean over prompts and heads; symmetric, 1 on the diagonal. 0: no shared key; 1: the same
    keys. Pairs without sinks on both sides do not count; nan if none counts. Source: sinklens; the first off-diagonal
    is `metrics.movement`. Planted: "static" and "split" 1, "drifting" the identity, "jumping" 1 for steps of one
    quarter or of the first and last and 0 else; "none" nan.
    """
    values, sinks = flagged(record, rule)
    alive = happened(values)
    both = alive & alive.rename(step="other_step")
    matrix = _jaccard(sinks, "step").where(both).mean(["prompt", "head"])
    return described(matrix, "jaccard", "Jaccard", "overlap of sink sets between steps")


@reads()
def overlap(record: xr.Dataset, between: Between, rule: SinkRule | None = None) -> xr.DataArray:
    """Do layers, heads or queries of several kinds use the same sinks?

    Unit: Jaccard, in [0, 1], mean over prompts and steps; 0: never a shared key; 1: always the same keys. Pairs of
    empty sets do not count; nan if none counts. A symmetric matrix with 1 on the diagonal: [layer, other_layer],
    where a layer's sinks are those of any of its heads (heads of different layers do not correspond); [layer, head,
    other_head]; or [layer, queries, other_queries], averaged over heads, where the rule's own `queries` are not used.
    Source: arXiv 2510.15731, section 4.2 (masked and unmasked queries use separate sinks in deep layers). Planted: 1;
    "split" between queries 0 for masked and committed and 1/2 for each of them and all; "none" nan.

    Raises:
        RecordError: between="queries", and the record has received attention by one set of queries only.
        ContentError: an unknown `between`.
    """
    if between == "queries":
        sinks = _by_queries(record, rule or SinkRule())
        matrix = _jaccard(sinks, between).mean(["prompt", "step", "head"])
    else:
        sinks = flagged(record, rule)[1]
        matrix = _jaccard(sinks.any("head") if between == "layer" else sinks, between).mean(["prompt", "step"])
    return described(matrix, "overlap", "Jaccard", f"overlap of sink sets between {between}")


def _by_queries(record: xr.Dataset, rule: SinkRule) -> xr.DataArray:
    """The sinks of each set of queries that was measured."""
    if "received" not in record or "queries" not in record["received"].dims:
        kind = record["received"].attrs.get("queries") if "received" in record else None
        received(record, kind or "all")  # says so if there is none
        raise RecordError(
            "this record has received attention by one set of queries only; run denoise with "
            'probes=[ReceivedAttention(queries=("all", "masked", "committed"))]'
        )
    names = record["received"]["queries"].to_numpy().tolist()
    sets = [flagged(record, replace(rule, queries=name))[1] for name in names]
    return xr.concat(sets, pd.Index(names, name="queries"), join="inner")


@reads()
def agreement(record: xr.Dataset, rules: Mapping[str, SinkRule]) -> pd.DataFrame:
    """Do several rules call the same keys sinks? A symmetric matrix, rule by rule.

    Unit: Jaccard, in [0, 1], mean over prompts, steps, layers and heads; 0: never a shared key; 1: always the same.
    Where neither rule finds a sink does not count; nan if nothing counts. Source: the rules of arXiv 2510.15731,
    2601.07894 and 2602.17664 differ (literature review). Planted: 1 for rules that find the planted key.
    """
    sinks = {name: flagged(record, rule)[1].to_numpy() for name, rule in rules.items()}
    table = pd.DataFrame(index=list(rules), columns=list(rules), dtype=float)
    for name, mine in sinks.items():
        for other, theirs in sinks.items():
            union = (mine | theirs).sum(-1)
            counts = union > 0
            mean = ((mine & theirs).sum(-1)[counts] / union[counts]).mean() if counts.any() else np.nan
            table.loc[name, other] = mean
    return table
