"""Figures of patching: where, in which layer and at which step a patch restores the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinklens.plots.record_view import CELLS, LABELLED, place
from sinklens.plots.theme import safe, themed, titled
from sinklens.values.kinds import Index, reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DIVERGING = "RdBu_r"  # white at 0; a cell of a half or more is printed in numbers, where there is room
PRINTED = 600  # cells of a step in which numbers can be read


@reads()
def patching(
    record: xr.Dataset,
    prompt: Index = 0,
    *,
    step: Index | None = None,
    head: Index | None = None,
    title: str | None = None,
) -> Figure:
    """Heat map of the effect of each patch, by layer (y, layer 0 on top) and place (x): a position, or a head.

    Unit: 1, the share of what clean and corrupt differ by: 0 (white) is no effect, 1 (red) as in the run that the
    patches come from, below 0 (blue) away from it. All steps have one colour range, -1 to 1; effects beyond look
    like its ends, and the title says so. A slider goes through the steps. Blank: not patched. Where single heads were
    patched at single positions, one head is shown.

    Args:
        record: Of `sinklens.patch`.
        prompt: Which pair, counted from 0.
        step: The step that is shown first; the first one when None.
        head: Which head, where heads were patched at single positions; the first one when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: no record of `patch`, or a pair, step or head that it does not have.
    """
    import plotly.graph_objects as go

    if "effect" not in record or "site" not in record.attrs:
        raise ValueError(f"this is no record of sinklens.patch; it has {', '.join(map(str, record.data_vars))}")
    lacking = [dim for dim in ("prompt", "step", "layer", "position") if dim not in record.dims]
    if lacking:
        raise ValueError(f"the record has lost its dim {lacking[0]!r}; choose with lists, as in isel({lacking[0]}=[0])")
    record = record.isel(prompt=[place(record["prompt"].to_numpy(), "prompt", prompt)])
    effect = record["effect"].isel(prompt=0)
    of_head = next((str(dim) for dim in effect.dims if dim in ("head", "kv_head")), None)
    said = ""
    if of_head and "position" in effect.dims:
        head = int(effect[of_head][0]) if head is None else head
        effect = effect.isel({of_head: place(effect[of_head].to_numpy(), of_head, head)})
        said = f", {of_head.replace('_', ' ').replace('kv', 'key')} {head}"
    along = "position" if "position" in effect.dims else str(of_head)
    effect = effect.transpose("step", "layer", along)
    effect = effect.dropna(along, how="all") if bool(effect.notnull().any()) else effect
    if effect.size > CELLS:
        raise ValueError(f"{effect.size} cells do not fit into a figure, at most {CELLS}; choose with record.sel(...)")
    steps, layers, places = (effect[dim].to_numpy() for dim in effect.dims)
    values = effect.to_numpy()
    first = 0 if step is None else place(steps, "step", step)
    figure = go.Figure()
    for at, (z, number) in enumerate(zip(values, steps, strict=True)):
        printed = z.size <= PRINTED
        texts = [[f"{cell:.2f}" if np.isfinite(cell) and abs(cell) >= 0.1 else "" for cell in row] for row in z]
        figure.add_heatmap(
            x=np.arange(len(places)), y=np.arange(len(layers)), z=z, zmin=-1, zmax=1, colorscale=DIVERGING,
            visible=at == first, hoverongaps=False, xgap=1, ygap=1, text=texts if printed else None,
            texttemplate="%{text}" if printed else None, textfont_size=11,
            customdata=_about(record, int(number), along, places, len(layers)),
            colorbar={"title": {"text": "effect", "side": "right", "font_size": 13}},
            hovertemplate=f"layer %{{y}}, {along} %{{customdata}}<br>effect %{{z:.4f}}<extra>step {number}</extra>",
        )  # fmt: skip
    themed(figure).update_xaxes(
        title_text=along.replace("kv_head", "key head"), showgrid=False, tickangle=-60 if along == "position" else 0,
        **_ticks(record, along, places),
    )  # fmt: skip
    last = len(layers) - 1
    figure.update_yaxes(
        title_text="layer", showgrid=False, range=[last + 0.5, -0.5],
        tickvals=np.arange(len(layers)), ticktext=[_layer(record, int(layer)) for layer in layers],
    )  # fmt: skip
    figure.update_layout(sliders=[_slider(steps, first)], height=int(np.clip(330 + 26 * len(layers), 400, 1000)))
    ends = {
        "denoising": "Into the corrupt run, activations of the clean",
        "noising": "Into the clean run, activations of the corrupt",
    }
    kind = "the forward of the step itself" if record.attrs["outcome"] == "step" else "the end of the run that goes on"
    figure = titled(
        figure,
        title or f"Patching {record.attrs['site']}{said}, step by step (prompt {prompt})",
        f"{ends[record.attrs['direction']]} one are put, at one {along} of one layer, at as many masks; asked: {kind}.",
        "0: no effect; 1: as in the run that the patch comes from."
        + _beyond(values)
        + (" Texts at the end of the runs, clean / corrupt where they differ." if along == "position" else ""),
    )
    return figure.update_layout(margin_b=150 if along == "position" else 110)


def _beyond(values: np.ndarray) -> str:
    """What the colours do not tell, if there is such a thing."""
    found = values[np.isfinite(values)]
    if not found.size or np.abs(found).max() <= 1:
        return ""
    return f" Effects reach from {found.min():.2g} to {found.max():.2g}; beyond -1 and 1 they look like these."


def _layer(record: xr.Dataset, layer: int) -> str:
    """A layer's name; the residual stream has one more, behind the last."""
    return f"{layer} (end)" if layer == record.attrs["n_layers"] else str(layer)


def _texts(record: xr.Dataset) -> dict[int, str]:
    """The text at each position of the one pair: of both runs where they differ."""
    pair = [record[f"text_{name}"].isel(prompt=0).to_numpy() for name in ("clean", "corrupt")]
    texts = [safe(a) if a == b else f"{safe(a)} / {safe(b)}" for a, b in zip(*pair, strict=True)]
    return dict(zip(record["position"].to_numpy().tolist(), texts, strict=True))


def _ticks(record: xr.Dataset, along: str, places: np.ndarray) -> dict[str, Any]:
    if along != "position" or len(places) > LABELLED:
        every = max(1, len(places) // 32)
        return {"tickvals": np.arange(len(places))[::every], "ticktext": [str(p) for p in places[::every]]}
    texts = _texts(record)
    return {"tickvals": np.arange(len(places)), "ticktext": [f"{p} {texts[p]}" for p in places], "tickfont_size": 11}


def _about(record: xr.Dataset, step: int, along: str, places: np.ndarray, layers: int) -> list[list[str]]:
    """What hovering says of each place: for positions whether they are masked there."""
    if along != "position":
        return [[str(p) for p in places]] * layers
    texts, of_step = _texts(record), record.isel(prompt=0).sel(step=step, position=places)
    masked = [of_step[f"masked_{name}"].to_numpy() == 1 for name in ("clean", "corrupt")]
    states = {
        (True, True): ", masked in both",
        (True, False): ", masked in clean",
        (False, True): ", masked in corrupt",
    }
    told = zip(places, *masked, strict=True)
    return [[f"{p} {texts[int(p)]}{states.get((bool(a), bool(b)), '')}" for p, a, b in told]] * layers


def _slider(steps: np.ndarray, first: int) -> dict[str, Any]:
    """One place of the slider per step."""
    entries = [
        {
            "label": str(step),
            "method": "update",
            "args": [{"visible": [other == at for other in range(len(steps))]}],
        }
        for at, step in enumerate(steps)
    ]
    return {
        "active": first, "steps": entries, "currentvalue": {"prefix": "denoising step "},
        "pad": {"t": 90}, "len": 0.95, "x": 0.02,
    }  # fmt: skip
