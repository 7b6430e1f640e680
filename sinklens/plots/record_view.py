"""What figures read from a record: its attention and sinks, the uniform null, one prompt; with readable errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinklens.analysis import rates
from sinklens.analysis.attention import CELL, counting, is_autoregressive, measured, null, received, texts_at, windows
from sinklens.analysis.blocks import blocks_of
from sinklens.plots.theme import safe
from sinklens.sinks import SinkRule

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LABELLED = 64  # positions; more token texts than this do not fit on an axis
CELLS = 500_000  # cells in one figure; a browser stays quick and a page small


def need(record: xr.Dataset, *names: str) -> None:
    """Raise a ValueError that lists what there is, if the record lacks a variable or the dim of its prompts or keys."""
    for name in names:
        if name not in record:
            probe = {"received": "ReceivedAttention", "key_norm": "KeyNorm", "pattern": "Pattern"}.get(name)
            hint = f"; measure with probes=[{probe}()]" if probe else ""
            raise ValueError(f"the record has no {name!r}; it has {', '.join(map(str, record.data_vars))}{hint}")
    for dim in ("prompt", "key"):
        if dim not in record[names[0]].dims:
            raise ValueError(f"the record has no dim {dim!r}; choose one with isel({dim}=[0]), which keeps it")


def check_prompt(record: xr.Dataset, prompt: int) -> None:
    prompts = record.sizes["prompt"]
    if not 0 <= prompt < prompts:
        raise ValueError(f"prompt {prompt} does not exist; there are {prompts}: 0 to {prompts - 1}")


def place(names: np.ndarray, dim: str, name: int) -> int:
    """Where a step, layer or head of this name stands; a ValueError lists the names that exist."""
    labels = [int(one) for one in names]
    if name in labels:
        return labels.index(name)
    every = len(labels) > 2 and labels == list(range(labels[0], labels[-1] + 1))
    listed = f"{labels[0]} to {labels[-1]}" if every else ", ".join(map(str, labels))
    raise ValueError(f"{dim} {name} does not exist; the record has {dim} {listed}")


def rule_of(record: xr.Dataset, rule: SinkRule | None) -> SinkRule:
    """The rule of a figure, `SinkRule()` when None; queries "auto" as this record's model has them."""
    rule = rule or SinkRule()
    return replace(rule, queries=counting(record, rule.queries))


def attention_of(record: xr.Dataset, rule: SinkRule) -> tuple[xr.DataArray, xr.DataArray]:
    """Received attention by the rule's queries, and the sinks, both [prompt, step, layer, head, key].

    All steps, blank where nothing was measured; of layers and heads those that were measured.

    Raises:
        ValueError: what is missing; the message says how to get it.
    """
    need(record, "received", "masked", "given")
    values = received(record, rule.queries).transpose(*CELL, "key")
    kept = {dim: measured(values)[dim] for dim in ("layer", "head")}
    return values.sel(kept), rates.sinks(record, rule).transpose(*CELL, "key").sel(kept)


def null_words(record: xr.Dataset, rule: SinkRule) -> str:
    """What uniform attention gives, as a sentence."""
    values = null(record, rule.queries)["received"].to_numpy()
    there = values[np.isfinite(values)]
    if rule.queries == "all" and is_autoregressive(record):
        return f"Uniform causal attention gives between {there.min():.3g} (last key) and {there.max():.3g} (first key)."
    if rule.queries == "all" and blocks_of(record) is not None:
        return (
            f"Uniform attention, block by block, gives between {there.min():.3g} (last block) and {there.max():.3g} "
            "(first block)."
        )
    near = [each for each in windows(record).values() if each is not None]
    local = f" In {len(near)} layers no key is seen from further than {near[0] - 1} positions." if near else ""
    return f"Uniform attention gives every key {spread(there)}.{local}"


def null_counts(record: xr.Dataset, rule: SinkRule) -> np.ndarray:
    """How many keys the rule calls sinks under uniform attention [prompt, step]; nan where nothing was measured."""
    even = null(record, rule.queries)
    counts = rates.sinks(even, rule).sum("key").where(even["received"].notnull().any("key"))
    return counts.mean(["layer", "head"]).transpose("prompt", "step").to_numpy()


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
class PromptView:
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


def alone(record: xr.Dataset, prompt: int) -> xr.Dataset:
    """The record of one prompt, cut to its own positions; errors name what is missing."""
    need(record, "received", "token", "text", "given", "masked", "commit_step")
    check_prompt(record, prompt)
    one = record.isel(prompt=[prompt])
    return one.isel(key=slice(0, int((one["token"] >= 0).sum())))


def view_of(record: xr.Dataset, prompt: int, rule: SinkRule) -> PromptView:
    """One prompt, cut to its own positions; errors name what is missing."""
    one = alone(record, prompt)
    values, sinks = (array.isel(prompt=0) for array in attention_of(one, rule))
    about = one.isel(prompt=0)
    masked = about["masked"].transpose("step", "key").to_numpy()
    text = [safe(token) for token in about["text"].to_numpy()]
    written = (about["given"].to_numpy() == 1) | (about["commit_step"].to_numpy() >= 0)
    return PromptView(
        received=values.to_numpy(),
        sinks=sinks.to_numpy(),
        shown=[
            [
                "[MASK]" if hidden == 1 else "" if hidden < 0 else safe(token)
                for hidden, token in zip(*each, strict=True)
            ]
            for each in zip(masked, np.broadcast_to(texts_at(one).to_numpy()[0], masked.shape), strict=True)
        ],
        final=[
            token if done else "[MASK]" if ever else ""
            for token, done, ever in zip(text, written, (masked == 1).any(0), strict=True)
        ],
        given=about["given"].to_numpy() == 1,
        **{f"{dim}s": values[dim].to_numpy() for dim in ("step", "layer", "head", "key")},
    )


def largest(values: np.ndarray) -> float:
    """The largest number; 1 if there is none."""
    there = values[~np.isnan(values)]
    return float(there.max()) if there.size else 1.0


def on_canvas(figure: Figure, view: PromptView, /, **panel: Any) -> None:
    """Axes of position and step, and a line wherever given and filled positions meet; `panel`: row and col, if any."""
    steps, keys = len(view.steps), len(view.keys)
    figure.update_xaxes(title_text="position", showgrid=False, range=[view.keys[0] - 0.6, view.keys[-1] + 0.6], **panel)
    if keys <= LABELLED:
        figure.update_xaxes(
            title_text="position (final token)", tickvals=view.keys, ticktext=view.final, tickangle=-90,
            tickfont_size=11, **panel,
        )  # fmt: skip
    figure.update_yaxes(
        title_text="denoising step", range=[view.steps[-1] + 0.6, view.steps[0] - 0.6], showgrid=False, **panel
    )
    for key in np.flatnonzero(view.given[1:] != view.given[:-1]):
        for color, width in (("white", 4), ("black", 1.5)):  # seen on dark and on light cells
            figure.add_vline(
                x=(view.keys[key] + view.keys[key + 1]) / 2, line={"color": color, "width": width}, **panel
            )
    figure.update_layout(height=int(np.clip(230 + 15 * steps, 400, 1000)))
