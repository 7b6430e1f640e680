"""Who shares sinks with whom: between steps, layers, heads, query sets and rules. Pure functions of a record.

Common to all: `rule`, `query_set` and "Planted" as in `dynamics`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sinklens.analysis.dynamics import described, flagged, happened, query_sets
from sinklens.analysis.rates import received
from sinklens.sinks import SinkRule


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


def jaccard(record: xr.Dataset, rule: SinkRule | None = None, *, query_set: str | None = None) -> xr.DataArray:
    """Overlap of a head's sink sets at each pair of steps, per layer [layer, step, other_step].

    Unit: Jaccard, in [0, 1], mean over prompts and heads; symmetric, 1 on the diagonal. 0: no shared key; 1: the same
    keys. Pairs without sinks on both sides do not count; nan if none counts. Source: sinklens; the first off-diagonal
    is `metrics.movement`. Planted: "static" and "split" 1, "drifting" the identity, "jumping" 1 for steps of one
    quarter or of the first and last and 0 else; "none" nan.
    """
    values, found = flagged(record, rule, query_set)
    alive = happened(values)
    both = alive & alive.rename(step="other_step")
    matrix = _jaccard(found, "step").where(both).mean(["prompt", "head"])
    return described(matrix, "jaccard", "Jaccard", "overlap of sink sets between steps")


def overlap(
    record: xr.Dataset,
    between: Literal["layer", "head", "query_set"],
    rule: SinkRule | None = None,
    *,
    query_set: str | None = None,
) -> xr.DataArray:
    """Do layers, heads or query sets use the same sinks?

    Unit: Jaccard, in [0, 1], mean over prompts and steps; 0: never a shared key; 1: always the same keys. Pairs of
    empty sets do not count; nan if none counts. A symmetric matrix with 1 on the diagonal: [layer, other_layer],
    where a layer's sinks are those of any of its heads (heads of different layers do not correspond); [layer, head,
    other_head]; or [layer, query_set, other_query_set], averaged over heads. Source: arXiv 2510.15731, section 4.2
    (masked and unmasked queries use separate sinks in deep layers). Planted: 1; "split" between query sets 0 for
    masked and committed and 1/2 for each of them and all; "none" nan.
    """
    if between not in ("layer", "head", "query_set"):
        raise ValueError(f"between={between!r} is unknown; choose layer, head or query_set")
    if between == "query_set":
        received(record)  # says so if there is none
        names = query_sets(record)
        sets = [flagged(record, rule, name)[1] for name in names]
        found = xr.concat(sets, pd.Index(names, name="query_set"), join="inner")
        matrix = _jaccard(found, between).mean(["prompt", "step", "head"])
    else:
        found = flagged(record, rule, query_set)[1]
        matrix = _jaccard(found.any("head") if between == "layer" else found, between).mean(["prompt", "step"])
    return described(matrix, "overlap", "Jaccard", f"overlap of sink sets between {between}s")


def agreement(record: xr.Dataset, rules: dict[str, SinkRule], *, query_set: str | None = None) -> pd.DataFrame:
    """Do several rules call the same keys sinks? A symmetric matrix, rule by rule.

    Unit: Jaccard, in [0, 1], mean over prompts, steps, layers and heads; 0: never a shared key; 1: always the same.
    Where neither rule finds a sink does not count; nan if nothing counts. Source: the rules of arXiv 2510.15731,
    2601.07894 and 2602.17664 differ (literature review). Planted: 1 for rules that find the planted key.
    """
    found = {name: flagged(record, rule, query_set)[1].to_numpy() for name, rule in rules.items()}
    table = pd.DataFrame(index=list(rules), columns=list(rules), dtype=float)
    for at, (name, mine) in enumerate(found.items()):
        for other, theirs in list(found.items())[at:]:
            union = (mine | theirs).sum(-1)
            counts = union > 0
            mean = ((mine & theirs).sum(-1)[counts] / union[counts]).mean() if counts.any() else np.nan
            table.loc[name, other] = table.loc[other, name] = mean
    return table
