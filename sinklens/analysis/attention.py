"""What a record knows of its attention: whose it is, which positions existed, who could see whom, and the null.

Everything else in this room asks these functions, and nobody else: they take it from the record, or raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinklens.analysis.blocks import being_decided, blocks_of, is_autoregressive
from sinklens.errors import RecordError
from sinklens.records import VARIABLES, made
from sinklens.sinks import Positions, Sight, SinkRule
from sinklens.sinks.rule import Queries
from sinklens.values.kinds import reads

CELL = ("prompt", "step", "layer", "head")
_PLACE = ("prompt", "step", "key")


def counting(record: xr.Dataset, queries: Queries) -> Positions:
    """Whose attention counts; "auto" as `hooks.usual_queries` has it of models."""
    if queries != "auto":
        return queries
    return "block" if blocks_of(record) is not None else "last" if is_autoregressive(record) else "all"


@reads()
def received(record: xr.Dataset, queries: Queries = "all") -> xr.DataArray:
    """Received attention by some queries, as it was measured.

    Args:
        record: Of a run with the probe `ReceivedAttention`.
        queries: Whose attention; a record holds that of one set (its attribute "queries") or of several (a dim).

    Raises:
        RecordError: no received attention, or not by these queries; the message says what to measure.
    """
    which, values = counting(record, queries), _received(record)
    if "queries" in values.dims:
        measured = [str(name) for name in values["queries"].to_numpy()]
    else:
        known = values["queries"].item() if "queries" in values.coords else values.attrs.get("queries")
        if known is None:
            raise RecordError(
                'this record does not say whose attention was received: "received" has neither a dim nor an attribute '
                '"queries"'
            )
        measured = [str(known)]
    if which not in measured:
        raise RecordError(
            f"attention received from {which} queries was not measured, only from {', '.join(measured)}; say "
            f"SinkRule(queries={measured[0]!r}), or run denoise with probes=[ReceivedAttention(queries={which!r})]"
        )
    values = values.sel(queries=which) if "queries" in values.dims else values
    values = values.drop_vars("queries", errors="ignore").assign_attrs(queries=which)
    return values.assign_coords({dim: values[dim] for dim in values.dims})  # a dim without labels counts from 0


def existing(record: xr.Dataset) -> xr.DataArray:
    """Which positions stood on the canvas at the steps whose attention was measured, bool [prompt, step, key].

    Raises:
        RecordError: the run had no ReceivedAttention probe.
    """
    there = _received(record).notnull()
    return positions(record, "all") & there.any([dim for dim in there.dims if dim not in ("prompt", "step")])


@reads()
def positions(record: xr.Dataset, which: Positions) -> xr.DataArray:
    """Which positions are of one kind at each step, bool [prompt, step, key]; as `Canvas.positions`, from a record.

    Raises:
        RecordError: the record lacks what tells the kinds apart.
        ValueError: an unknown kind.
    """
    record = _layout(record)
    layout = record["masked"].transpose(*_PLACE)
    masked, given = layout.to_numpy(), record["given"].transpose("prompt", "key").to_numpy()[:, None] == 1
    exists = masked >= 0
    kinds = {
        "all": exists,
        "masked": masked == 1,
        "committed": masked == 0,
        "prompt": exists & given,
        "response": exists & ~given,
        "last": exists & (exists[..., ::-1].cumsum(-1)[..., ::-1] == 1),
    }
    if which == "block":
        kinds["block"] = exists & being_decided(record, masked, given)
    return layout.copy(data=kinds[which])


def sight(record: xr.Dataset, window: int | None = None) -> Sight:
    """Who could see whom at each prompt and step, which are the rows of the batch, in this order.

    Args:
        record: Says who existed, and which way its model sees.
        window: Of the layers that are asked about (`windows`).
    """
    direction, blocks = "causal" if is_autoregressive(record) else "bidirectional", blocks_of(record)
    there = _flat(positions(record, "all"))
    if blocks is None:
        return Sight(there, direction, window)
    return Sight(there, levels=blocks.levels(torch.ones_like(there), _flat(positions(record, "prompt")).sum(-1)))


def windows(record: xr.Dataset) -> dict[int, int | None]:
    """Of each layer, by name: only keys closer than this many positions were seen; None where all were.

    Raises:
        RecordError: the provenance says it for other layers.
    """
    said, layers = made(record).get("windows"), _labels(_received(record), "layer")
    if said is None:
        return dict.fromkeys(layers)
    if not isinstance(said, list) or not all(each is None or type(each) is int for each in said):
        raise RecordError(f'this record\'s provenance has "windows"={str(said)[:60]}; expected one for each layer')
    if max(layers) >= len(said):
        raise RecordError(f"this record's provenance names the windows of {len(said)} layers, and not of {max(layers)}")
    return {layer: said[layer] for layer in layers}


def _of_layers(record: xr.Dataset, layers: Sequence[int], ask: Callable[[Sight], Tensor]) -> Tensor:
    """What sight answers for each layer [prompt x step, layer, key]; one that stands for all if they see alike."""
    every = windows(record)
    near = [every[layer] for layer in layers]
    answers = {window: ask(sight(record, window)) for window in dict.fromkeys(near)}
    return torch.stack([answers[window] for window in (near if len(answers) > 1 else near[:1])], 1)


def flags(values: xr.DataArray, record: xr.Dataset, rule: SinkRule) -> xr.DataArray:
    """Which keys a rule calls sinks, given what they receive [prompt, step, layer, head, key]; laid out alike.

    Args:
        values: Received attention by the rule's queries, at all steps of the record or some.
        record: What the rule's queries and keys are, and who could see whom, is taken from here.
        rule: What a sink is. One that can never fire is a ValueError.
    """
    rule.must_fire(counting(record, rule.queries))
    sinks = rule(*evidence(values, record, rule))
    return values.transpose(*CELL, "key").copy(data=sinks.numpy()).transpose(*values.dims)


def evidence(values: xr.DataArray, record: xr.Dataset, rule: SinkRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a rule wants to know (`SinkRule.__call__`), in the order of CELL: for several rules that differ in epsilon.

    Returns:
        received, eligible keys, how many queries counted, how many of them could see each key.
    """
    if values.sizes["step"] != record.sizes["step"]:
        record = record.sel(step=values["step"])
    numbers = torch.tensor(values.transpose(*CELL, "key").to_numpy())
    queries = _flat(positions(record, counting(record, rule.queries)))
    visible = _of_layers(record, _labels(values, "layer"), lambda sight: sight.seen_by(queries))
    shape = (*numbers.shape[:2], 1, 1)
    keys = ~numbers.isnan() & _flat(positions(record, rule.keys)).view(*shape, -1)
    return (
        numbers.nan_to_num(0.0),
        keys,
        queries.sum(-1).float().view(shape),
        visible[:, :, None].view(*shape[:2], -1, 1, numbers.shape[-1]),
    )


def measured(values: xr.DataArray) -> xr.DataArray:
    """The steps, layers and heads of which anything was measured: a probe's scope may leave some out."""
    there = values.notnull()
    kept = {dim: np.flatnonzero(there.any([d for d in values.dims if d != dim])) for dim in ("step", "layer", "head")}
    return values.isel({dim: index for dim, index in kept.items() if len(index) < values.sizes[dim]})


@reads()
def null(record: xr.Dataset, queries: Queries = "all") -> xr.Dataset:
    """The same record if its queries had spread their attention evenly over the keys that they may see.

    One head, which stands for all, and one layer, unless some see their neighbourhood only. What a function says of it
    is what it would say without any sink.
    """
    which, exists = counting(record, queries), existing(record)
    counted, layers = _flat(positions(record, which)), _labels(record["received"], "layer")
    even = _of_layers(record, layers, lambda sight: sight.null(counted))
    cell = {"layer": layers[: even.shape[1]], "head": record["received"]["head"].to_numpy()[:1]}
    values = exists.expand_dims(cell).transpose(*CELL, "key")
    values = values.copy(data=even.reshape(values.shape).numpy()).where(values).assign_attrs(queries=which)
    about = record.drop_dims(["layer", "head"]).drop_vars(["received", "queries"], errors="ignore")
    return about.assign(received=values)


def _labels(values: xr.DataArray, dim: str) -> list[int]:
    return [int(label) for label in values[dim].to_numpy()]


def texts(record: xr.Dataset) -> xr.DataArray:
    """The final token of each position as text [prompt, key].

    Raises:
        RecordError: the record does not hold it.
    """
    text = _variable(record, "text")
    if text.dtype.kind not in "OUT" or not all(isinstance(each, str) for each in text.to_numpy().flat):
        raise RecordError(f"this record's text holds no texts but {text.dtype}")
    return text.transpose(*VARIABLES["text"].dims)


def texts_at(record: xr.Dataset) -> xr.DataArray:
    """The token of each position before each step as text [prompt, step, key]; the final one where it is masked.

    One step stands for all of them where no commit was undone.

    Raises:
        RecordError: the record does not hold it.
    """
    final = texts(record).expand_dims("step", 1)
    undone = made(record).get("undone")
    if not undone:
        return final
    if not isinstance(undone, dict):
        raise RecordError(
            f"the provenance of this record names undone tokens by {undone!r}; expected texts by token id"
        )
    canvas, masked = (_variable(record, name).transpose(*_PLACE) for name in ("canvas", "masked"))
    token = _variable(record, "token").transpose("prompt", "key").to_numpy()[:, None]
    out = np.broadcast_to(final.to_numpy(), canvas.shape).astype(object)
    ids = canvas.to_numpy()
    other = (masked.to_numpy() == 0) & (ids != token)
    out[other] = [str(undone.get(str(number), f"<{number}>")) for number in ids[other].tolist()]
    return canvas.copy(data=out).drop_attrs()


def _received(record: xr.Dataset) -> xr.DataArray:
    if "received" not in record:
        raise RecordError("this record has no received attention; run denoise with probes=[ReceivedAttention()]")
    values = record["received"]
    if values.dtype.kind != "f":
        raise RecordError(f"this record's received attention is {values.dtype}; attention is a fraction, float32 say")
    missing = [dim for dim in (*CELL, "key") if dim not in values.dims]
    if missing:
        name = missing[0]
        raise RecordError(f"the record has no dim {name!r}; choose a {name} with isel({name}=[0]), which keeps the dim")
    empty = [str(dim) for dim, size in values.sizes.items() if not size]
    if empty:
        raise RecordError(f"this record has no {empty[0]} at all: there is nothing to count")
    return values


def _layout(record: xr.Dataset) -> xr.Dataset:
    """What stood where: "masked" and "given" alone."""
    for name in ("masked", "given"):
        _variable(record, name)
    return record[["masked", "given"]]


def _variable(record: xr.Dataset, name: str) -> xr.DataArray:
    """A variable that every record has, with its dims."""
    dims = VARIABLES[name].dims
    if name not in record:
        raise RecordError(f"this record has no {name!r}, which says what stood where; keep it when you select")
    if set(record[name].dims) != set(dims):
        raise RecordError(
            f"this record's {name!r} has the dims {list(map(str, record[name].dims))} instead of {list(dims)}; choose "
            "one of several with isel(prompt=[0]), which keeps the dim"
        )
    return record[name]


def _flat(places: xr.DataArray) -> Tensor:
    """[prompt, step, key] as [prompt x step, key]."""
    return torch.tensor(places.transpose(*_PLACE).to_numpy().reshape(-1, places.sizes["key"]))
