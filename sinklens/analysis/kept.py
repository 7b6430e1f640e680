"""What a gate keeps: sinks beside chance, key norms, classes of tokens, and how long a token survives as rates fall.

Pure functions of a record of a run with the probes `Kept` and `ReceivedAttention`. Common to all: numbers are of single
keys at single steps, counted together over prompts and whatever is not named in `by`; a key that did not stand on the
canvas at a step is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from sinklens.analysis.dynamics import described
from sinklens.analysis.norms import KEY_TYPES, key_types
from sinklens.analysis.rates import PLACES, classes, flagged, places
from sinklens.errors import RecordError
from sinklens.sinks import SinkRule
from sinklens.sinks.tokens import CLASSES
from sinklens.values.kinds import reads

Kind = Literal["token_class", "place", "key_type"]
By = Literal["prompt", "step", "layer"]
DIMS = ("prompt", "step", "layer", "rate", "key")


@reads()
def kept(record: xr.Dataset) -> xr.DataArray:
    """Which keys a gate keeps: 1 or 0 [prompt, step, layer, rate, key], nan where there is no key; as it was measured.

    Steps and layers that the probe left out are left out.

    Raises:
        RecordError: the run had no `Kept` probe, or a dim of it was dropped.
    """
    if "kept" not in record:
        raise RecordError(
            "this record does not say what a gate keeps: it has no 'kept'; run denoise with probes=[Kept(gate)]"
        )
    values = record["kept"]
    lacking = [dim for dim in DIMS if dim not in values.dims]
    if lacking:
        raise RecordError(
            f"this record's 'kept' has no dim {lacking[0]!r}; choose one with isel({lacking[0]}=[0]), which keeps it"
        )
    there = values.notnull()
    for dim in ("step", "layer"):
        values = values.isel({dim: np.flatnonzero(there.any([other for other in DIMS if other != dim]))})
    return values.transpose(*DIMS)


@reads()
def sinks_kept(record: xr.Dataset, rule: SinkRule | None = None, by: Sequence[By] = ("layer",)) -> pd.DataFrame:
    """Does a gate keep the sinks? The share of them that it keeps, beside the share that chance would.

    Chance is the same number of keys drawn evenly from those that stand on the canvas: of s sinks among n keys, of
    which k are kept, s k / n are kept on average (the mean of the hypergeometric distribution), for each prompt, step,
    layer and head by itself. In an autoregressive model few keys stand there early, so that chance keeps more of them.
    Sinks are those of the same forward; each head's count.

    Columns: rate; those of `by`; sinks (how many there are); kept and chance (shares of them, in [0, 1]; nan where
    there is no sink); ratio of the two (1: as chance would); of_keys (share of all keys that is kept).

    Args:
        record: With `received`.
        rule: What a sink is; `SinkRule()` when None.
        by: What is told apart beside the rates: any of "prompt", "step", "layer".

    Raises:
        RecordError: a variable is missing; no layer or step in which both were measured.
    """
    chosen = kept(record)
    values, sinks = flagged(record, rule)
    values, sinks, chosen = xr.align(values, sinks, chosen, join="inner", exclude=["prompt", "key"])
    if not all(chosen.sizes.values()):
        raise RecordError("this record's 'kept' and 'received' have no step and layer in common")
    there = (chosen.notnull() & values.notnull().any("head")).astype(np.int64)
    mine = (chosen == 1).astype(np.int64)
    flags = sinks.astype(np.int64)
    number, size = (mine * there).sum("key"), there.sum("key")
    each = xr.Dataset(
        {
            "sinks": (flags * there).sum("key").sum("head"),
            "both": (flags.sum("head") * mine * there).sum("key"),
            "chance": (flags * there).sum("key").sum("head") * number / size.where(size > 0),
            "number": number,
            "size": size,
        }
    )
    total = each.sum([dim for dim in ("prompt", "step", "layer") if dim not in by])
    frame = _frame(total, by)
    some: Any = frame["sinks"].where(frame["sinks"] > 0)
    shares = {"kept": frame["both"] / some, "chance": frame["chance"] / some}
    frame = frame.assign(**shares, of_keys=frame["number"] / frame["size"].where(frame["size"] > 0))
    frame["ratio"] = frame["kept"] / frame["chance"]
    return frame[["rate", *by, "sinks", "kept", "chance", "ratio", "of_keys"]]


@reads()
def kept_by(record: xr.Dataset, kind: Kind, by: Sequence[By] = ()) -> pd.DataFrame:
    """What a gate keeps, by the kind of token: its text, its place, or its state.

    Columns: rate; those of `by`; the kind, "token_class" (`sinks.tokens`; a position is "mask" until it is committed),
    "place" (`rates.places`) or "key_type" ("prompt", "committed", "mask" and "eos"; `norms.key_types`); keys (how many
    of the kind there were); kept (the share of these that was kept, in [0, 1]; nan of none); of_kept and of_keys (the
    kind's share of all that was kept, and of all keys, each 1 over the kinds; equal where the gate does not care).

    Args:
        record: With `received`, which says what stood on the canvas.
        kind: What tells tokens apart.
        by: As in `sinks_kept`.
    """
    chosen = kept(record)
    names, which = {
        "token_class": lambda: (CLASSES, classes(record)),
        "place": lambda: (PLACES, places(record)),
        "key_type": lambda: (KEY_TYPES, key_types(record)),
    }[kind]()
    which = which.sel(step=chosen["step"])
    there = chosen.notnull() & (which >= 0)
    mine = chosen == 1
    over = ["key", *(dim for dim in ("prompt", "step", "layer") if dim not in by)]
    total = xr.Dataset({"all": there.sum(over), "of_all": (mine & there).sum(over)})
    parts = []
    for index, name in enumerate(names):
        here = there & (which == index)
        part = _frame(total.assign(keys=here.sum(over), mine=(here & mine).sum(over)), by)
        part[kind] = name
        parts.append(part)
    frame: Any = pd.concat(parts, ignore_index=True)
    for name, part, whole in (("kept", "mine", "keys"), ("of_kept", "mine", "of_all"), ("of_keys", "keys", "all")):
        frame[name] = frame[part] / frame[whole].where(frame[whole] > 0)
    frame = frame.sort_values(["rate", *by], kind="stable").reset_index(drop=True)
    return frame[["rate", *by, kind, "keys", "kept", "of_kept", "of_keys"]]


@reads()
def norms_kept(record: xr.Dataset, by: Sequence[By] = ("layer",)) -> pd.DataFrame:
    """Does a gate keep small keys? Mean key norm of what it keeps and of what it drops.

    Columns: rate; those of `by`; kept and dropped (mean L2 norm over keys and key heads, in the model's own
    activations; nan of none); ratio of the two (below 1: smaller keys are kept).

    Args:
        record: With `key_norm` (`probes.KeyNorm`).
        by: As in `sinks_kept`. Norms of several layers are of several sizes: name "layer" to compare within one.

    Raises:
        RecordError: a variable is missing.
    """
    if "key_norm" not in record:
        raise RecordError("this record has no 'key_norm'; run denoise with probes=[Kept(gate), KeyNorm()]")
    chosen = kept(record)
    norms = record["key_norm"].sel(step=chosen["step"]).reindex(layer=chosen["layer"]).mean("kv_head")
    over = ["key", *(dim for dim in ("prompt", "step", "layer") if dim not in by)]
    means = {name: norms.where(chosen == flag).mean(over) for name, flag in (("kept", 1), ("dropped", 0))}
    frame = _frame(xr.Dataset(means), by)
    frame["ratio"] = frame["kept"] / frame["dropped"]
    return frame[["rate", *by, "kept", "dropped", "ratio"]]


@reads()
def survival(record: xr.Dataset) -> xr.DataArray:
    """The lowest rate down to which each token is kept, as rates fall from 1 [prompt, step, layer, key].

    Unit: rate, one of those that were measured, or 1 for a token that is dropped at the highest of them; nan where
    there is no key. Low: kept longest. A token that is kept again at a lower rate, after it was dropped at a higher
    one, counts as dropped there: what it is given is where it was dropped first. The attribute "returned" is the share
    of tokens of which that is so.
    """
    chosen = kept(record).sortby("rate", ascending=False)
    there, mine = chosen.notnull().any("rate"), chosen == 1
    still = mine.cumprod("rate") == 1
    rates = np.concatenate([[1.0], chosen["rate"].to_numpy()])
    lowest = xr.apply_ufunc(lambda number: rates[number], still.sum("rate")).where(there)
    returned = ((mine & ~still).any("rate") & there).sum() / there.sum()
    out = described(lowest, "survival", "rate", "lowest rate down to which the gate keeps the token, as rates fall")
    out.attrs["returned"] = float(returned)
    return out


def _frame(totals: xr.Dataset, by: Sequence[str]) -> Any:
    """A line per rate and whatever else is told apart."""
    order = ["rate", *by]
    return totals.transpose(*order).to_dataframe(dim_order=order).reset_index()
