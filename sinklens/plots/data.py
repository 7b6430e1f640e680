"""What figures share: checks with readable errors, one prompt of a record, and the uniform null beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinklens.analysis import rates as metrics
from sinklens.plots.theme import safe
from sinklens.sinks import SinkRule, uniform_null

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LABELLED = 64  # positions; more token texts than this do not fit on an axis
CELLS = 500_000  # cells in one figure; a browser stays quick and a page small
CELL = ("prompt", "step", "layer", "head", "key")


def need(record: xr.Dataset, *names: str) -> None:
    """Raise a ValueError that lists what there is, if the record lacks a variable or the dim of its prompts."""
    for name in names:
        if name not in record:
            probe = {"received": "ReceivedAttention", "key_norm": "KeyNorm", "pattern": "Pattern"}.get(name)
            hint = f"; measure with probes=[{probe}()]" if probe else ""
            raise ValueError(f"the record has no {name!r}; it has {', '.join(map(str, record.data_vars))}{hint}")
    if "prompt" not in record[names[0]].dims:
        raise ValueError("the record has no dim 'prompt'; choose one with isel(prompt=[0]), which keeps it")


def check_prompt(record: xr.Dataset, prompt: int) -> None:
    prompts = record.sizes["prompt"]
    if not 0 <= prompt < prompts:
        raise ValueError(f"prompt {prompt} does not exist; there are {prompts}: 0 to {prompts - 1}")


def place(values: xr.DataArray, dim: str, label: int) -> int:
    """Where a step, layer or head of this name stands; a ValueError lists the names that exist."""
    labels = [int(one) for one in values[dim].to_numpy()]
    if label in labels:
        return labels.index(label)
    every = len(labels) > 2 and labels == list(range(labels[0], labels[-1] + 1))
    listed = f"{labels[0]} to {labels[-1]}" if every else ", ".join(map(str, labels))
    raise ValueError(f"{dim} {label} does not exist; the record has {dim} {listed}")


def received_of(record: xr.Dataset) -> xr.DataArray:
    """Received attention by all queries, in the order of CELL."""
    need(record, "received")
    return metrics.received(record).transpose(*CELL)


def flags_of(record: xr.Dataset, values: xr.DataArray, rule: SinkRule) -> np.ndarray:
    """Which of `values` are sinks, bool, laid out alike."""
    return metrics.sinks(xr.Dataset({"received": values}, attrs=record.attrs), rule).to_numpy()


def null_of(record: xr.Dataset) -> xr.Dataset:
    """The record if every query spread its attention evenly over the keys that it sees, with one layer and head.

    Where the record measured some of the queries only, a bidirectional null is the mean over keys (rows sum to 1);
    a causal one would depend on which queries, and is nan.
    """
    values = received_of(record)
    exists = values.notnull().any(["layer", "head"]).to_numpy()
    causal, counts = metrics.is_causal(record), exists.sum(-1)
    null = np.full(exists.shape, np.nan, np.float32)
    for keys in np.unique(counts[counts > 0]):
        # Existing keys stand together at the beginning of a row, but nothing here relies on it.
        rows = exists & (counts == keys)[..., None]
        null[rows] = np.tile(uniform_null(int(keys), causal=causal).numpy(), int((counts == keys).sum()))
    if partly(record):
        mean = values.isel(layer=0, head=0).mean("key").to_numpy()[..., None]
        null = np.where(exists, np.nan if causal else mean, np.nan).astype(np.float32)
    one = values.isel(layer=[0], head=[0])
    return xr.Dataset({"received": one.copy(data=null[:, :, None, None])}, attrs=record.attrs)


def partly(record: xr.Dataset) -> bool:
    """Whether `received` sums over some of the queries only (`ReceivedAttention(Where(queries=...))`)."""
    return bool(re.match(r"sum over (?!all |the )\w+ valid queries", record["received"].attrs.get("definition", "")))


def null_words(record: xr.Dataset) -> str:
    """What uniform attention gives, as a sentence."""
    null = null_of(record)["received"].to_numpy()
    there = null[np.isfinite(null)]
    if not there.size:
        return "Uniform attention is not defined for some of the queries of a causal model."
    if metrics.is_causal(record):
        return f"Uniform causal attention gives between {there.min():.3g} (last key) and {there.max():.3g} (first key)."
    return f"Uniform attention gives every key {spread(there)}."


def null_counts(record: xr.Dataset, rule: SinkRule) -> np.ndarray:
    """How many keys the rule calls sinks under uniform attention [prompt, step]; nan where nothing was measured."""
    null = null_of(record)
    values = null["received"].isel(layer=0, head=0)
    flags = flags_of(record, null["received"], rule).sum(-1)[:, :, 0, 0]
    return np.where(values.notnull().any("key"), flags, np.nan)


def spread(values: np.ndarray) -> str:
    """One number, or the range and the mean."""
    there = values[np.isfinite(values)]
    if not there.size:
        return "an undefined number"
    low, high = float(there.min()), float(there.max())
    if high - low < 1e-3:
        return f"{low:.3g}"
    return f"{low:.3g} to {high:.3g} (mean {there.mean():.2f})"


@dataclass(frozen=True)
class Row:
    """One prompt of a record, cut to its own positions."""

    received: np.ndarray  # [step, layer, head, key]
    sinks: np.ndarray  # likewise, bool
    shown: list[list[str]]  # [step][key]: the token standing there at that step
    final: list[str]  # [key]; "" where nothing was ever written
    given: np.ndarray  # [key]
    steps: np.ndarray
    layers: np.ndarray
    heads: np.ndarray
    keys: np.ndarray


def row_of(record: xr.Dataset, prompt: int, rule: SinkRule) -> Row:
    """One prompt, cut to its own positions; errors name what is missing."""
    need(record, "received", "token", "text", "given", "masked", "commit_step")
    check_prompt(record, prompt)
    row = record.isel(prompt=prompt)
    row = row.isel(key=slice(0, int((row["token"] >= 0).sum())))
    received = metrics.received(row).transpose("step", "layer", "head", "key")
    masked = row["masked"].transpose("step", "key").to_numpy()
    text = [safe(token) for token in row["text"].to_numpy()]
    written = (row["given"].to_numpy() == 1) | (row["commit_step"].to_numpy() >= 0)
    return Row(
        received=received.to_numpy(),
        sinks=metrics.sinks(row, rule).transpose(*received.dims).to_numpy(),
        shown=[["[MASK]" if m == 1 else "" if m < 0 else t for m, t in zip(at, text, strict=True)] for at in masked],
        final=[
            token if done else "[MASK]" if ever else ""
            for token, done, ever in zip(text, written, (masked == 1).any(0), strict=True)
        ],
        given=row["given"].to_numpy() == 1,
        # Without coordinates xarray counts from 0.
        **{f"{dim}s": received[dim].to_numpy() for dim in ("step", "layer", "head", "key")},
    )


def largest(values: np.ndarray) -> float:
    """The largest number; 1 if there is none."""
    there = values[~np.isnan(values)]
    return float(there.max()) if there.size else 1.0


def on_canvas(figure: Figure, row: Row, /, **panel: Any) -> None:
    """Axes of position and step, and a line wherever given and filled positions meet; `panel`: row and col, if any."""
    steps, keys = len(row.steps), len(row.keys)
    figure.update_xaxes(title_text="position", showgrid=False, range=[row.keys[0] - 0.6, row.keys[-1] + 0.6], **panel)
    if keys <= LABELLED:
        figure.update_xaxes(
            title_text="position (final token)", tickvals=row.keys, ticktext=row.final, tickangle=-90, tickfont_size=11,
            **panel,
        )  # fmt: skip
    figure.update_yaxes(
        title_text="denoising step", range=[row.steps[-1] + 0.6, row.steps[0] - 0.6], showgrid=False, **panel
    )
    for key in np.flatnonzero(row.given[1:] != row.given[:-1]):
        for color, width in (("white", 4), ("black", 1.5)):  # seen on dark and on light cells
            figure.add_vline(x=(row.keys[key] + row.keys[key + 1]) / 2, line={"color": color, "width": width}, **panel)
    figure.update_layout(height=int(np.clip(230 + 15 * steps, 400, 1000)))
