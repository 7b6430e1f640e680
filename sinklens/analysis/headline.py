"""What is remarkable about the sinks of a record, in one sentence: how many, where, and whether they move."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinklens.analysis.rates import classes, flagged, happened, movement, per_layer, sinks
from sinklens.sinks import SinkRule
from sinklens.sinks.tokens import CLASSES

KEEPS, MOVES = 0.9, 0.5  # mean Jaccard of consecutive steps from which sinks stay, and below which they move


def headline(record: xr.Dataset, rule: SinkRule | None = None) -> str:
    """One sentence about the sinks of a record; the tables of `rates` hold what it is made of.

    A layer is said to have exactly one sink if the median number of sinks over its heads, steps and prompts is 1. Where
    they are: the share of all sinks (over prompts, steps, layers and heads) that is the first token of its row, or else
    the commonest class of tokens. Whether they move: the mean Jaccard overlap of a head's sinks at consecutive steps,
    over layers.

    Args:
        record: With `received`.
        rule: `SinkRule()` when None.
    """
    values, marked = flagged(record, rule)
    counts = marked.sum("key").where(happened(values))
    typical = counts.median(["prompt", "step", "head"]).to_numpy()
    if not bool(marked.any()):
        return f"No head of the {len(typical)} layers has a sink by this rule."
    one, none = int((typical == 1).sum()), int((typical < 1).sum())
    others = [f"in {number} {what}" for number, what in ((none, "none"), (len(typical) - one - none, "more")) if number]
    beside = f" ({', '.join(others)})" if others else ""
    many = f"In {one or 'none'} of {len(typical)} layers the typical head has exactly one sink{beside}"
    return f"{many}; {_where(record, rule)}; {_moves(record, rule)}."


def _where(record: xr.Dataset, rule: SinkRule | None) -> str:
    marked = sinks(record, rule).transpose("prompt", "step", "layer", "head", "key").to_numpy()
    first = float(marked[..., 0].sum() / marked.sum())
    if first >= 0.5:
        null = float(per_layer(record, rule)["null"].iloc[0])
        why = ", which uniform attention alone would make one in a causal model" if null >= 0.5 else ""
        return f"{first:.0%} of all sinks are the first token{why}"
    weight = marked.sum((2, 3))
    kinds = classes(record).transpose("prompt", "step", "key").to_numpy()
    shares = np.array([weight[kinds == index].sum() for index in range(len(CLASSES))]) / weight.sum()
    best = int(shares.argmax())
    common = (kinds == best).sum() / (kinds >= 0).sum()
    return f"{shares[best]:.0%} of all sinks are of the class {CLASSES[best]} (of all keys {common:.0%})"


def _moves(record: xr.Dataset, rule: SinkRule | None) -> str:
    overlap = float(np.nanmean(each)) if len(each := movement(record, rule)["jaccard"].dropna().to_numpy()) else np.nan
    if np.isnan(overlap):
        return "there are no two steps with sinks to compare"
    what = "they stay where they are" if overlap >= KEEPS else "they move" if overlap < MOVES else "some of them move"
    return f"{what} from step to step (Jaccard {overlap:.2f})"
