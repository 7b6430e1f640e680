"""A text, coloured by how long each token survives as the share of keys that a gate keeps falls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinklens.analysis import kept
from sinklens.plots.record_view import check_prompt, need, place
from sinklens.plots.theme import SCALE, safe, themed, titled, visible
from sinklens.values.kinds import Index, reads

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDTH = 62  # letters of a line, as many as fit half of a window
LONGEST = 18  # letters of a token that are shown
MOST = 400  # tokens
ROW = 46  # pixels of a line


@reads()
def survival(
    record: xr.Dataset, *, prompt: Index = 0, layer: Index | None = None, step: Index | None = None,
    title: str | None = None,
) -> Figure:  # fmt: skip
    """A text whose tokens are coloured, and numbered, by the lowest rate down to which a gate keeps them.

    Unit: rate, 0 to 1, written below each token: low (dark) is kept longest, 1 is dropped first
    (`analysis.kept.survival`). Boxed tokens were filled in, the others given; of the former the final token is shown,
    also for steps at which it was still masked.

    Args:
        record: Of a run with the probe `Kept`.
        prompt: Which prompt, counted from 0.
        layer: One layer, by its name; the mean over layers when None.
        step: One step, by its name; the mean over steps when None.
        title: Replaces the first line of the title.

    Raises:
        ValueError: a variable is missing, or there is no such prompt, layer or step.
    """
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    need(record, "text", "token", "given")
    check_prompt(record, prompt)
    lowest = kept.survival(record)
    returned = lowest.attrs["returned"]
    for dim, name in (("layer", layer), ("step", step)):
        labels = lowest[dim].to_numpy()
        lowest = lowest.mean(dim) if name is None else lowest.isel({dim: place(labels, dim, name)})
    values = lowest.isel(prompt=prompt).to_numpy()
    one = record.isel(prompt=prompt)
    texts = [_shown(str(text)) for text in one["text"].to_numpy()]
    there = np.flatnonzero((one["token"].to_numpy() >= 0) & ~np.isnan(values))
    drawn, given = there[:MOST], one["given"].to_numpy() == 1
    left, line = _laid_out([texts[key] for key in drawn])
    width = [max(len(texts[key]), 3) + 0.6 for key in drawn]
    colors = sample_colorscale(SCALE, values[drawn].clip(0, 1).tolist())
    figure = go.Figure()
    boxes = [
        {"type": "rect", "x0": left[index], "x1": left[index] + width[index], "y0": line[index] - 0.42,
         "y1": line[index] + 0.42, "fillcolor": colors[index], "layer": "below",
         "line": {"color": "#111", "width": 0 if given[key] else 2}}
        for index, key in enumerate(drawn)
    ]  # fmt: skip
    figure.update_layout(shapes=boxes)
    ink = ["white" if values[key] < 0.62 else "black" for key in drawn]
    middle = [x + w / 2 for x, w in zip(left, width, strict=True)]
    for shift, size, words in (
        (-0.12, 13, [safe(texts[key]) for key in drawn]),
        (0.22, 11, [_rate(float(values[key])) for key in drawn]),
    ):
        figure.add_scatter(
            x=middle, y=[y + shift for y in line], mode="text", text=words, showlegend=False,
            textfont={"family": "monospace", "size": size, "color": ink},
            customdata=[[int(key), safe(str(one["text"].to_numpy()[key])), float(values[key])] for key in drawn],
            hovertemplate="position %{customdata[0]}: <b>%{customdata[1]}</b><br>kept down to a rate of "
            "%{customdata[2]:.3f}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"color": [0], "cmin": 0, "cmax": 1, "colorscale": SCALE, "showscale": True,
                "colorbar": {"title": {"text": "rate at which it is dropped", "side": "right", "font_size": 13},
                             "lenmode": "pixels", "len": 190, "y": 1, "yanchor": "top"}},
    )  # fmt: skip
    lines = max(4, max(line, default=0) + 1)  # the colour bar needs some height
    themed(figure).update_xaxes(visible=False, range=[-0.5, WIDTH + 1])
    figure.update_yaxes(visible=False, range=[lines - 0.4, -0.6])
    where = [f"layer {layer}" if layer is not None else "mean over layers"]
    where.append(f"step {step}" if step is not None else "mean over steps")
    said = [
        "The lowest rate down to which the gate keeps the token as rates fall from 1, "
        f"{', '.join(where)}; the number below it. Dark: kept longest. Boxed: filled in; the others were given.",
        f"In {returned:.1%} of all cases (tokens, layers and steps) a token is kept again at a lower rate than the one "
        "at which it was dropped first, and the first counts.",
    ]
    if len(there) > MOST:
        said.append(f"Only the first {MOST} of {len(there)} tokens are shown.")
    titled(figure, title or f"How long each token survives (prompt {prompt})", *said)
    figure.update_layout(height=int((figure.layout.margin.t or 0) + 30 + ROW * lines), margin_b=20)  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def _shown(text: str) -> str:
    """A token on one line, not too long."""
    one = visible(text).strip(" ")
    return one if len(one) <= LONGEST else f"{one[: LONGEST - 1]}\u2026"


def _rate(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _laid_out(texts: list[str]) -> tuple[list[float], list[int]]:
    """Where each token begins, and in which line; a line break ends a line."""
    left, line, x, y = list[float](), list[int](), 0.0, 0
    for text in texts:
        width = max(len(text), 3) + 1.2
        if x and x + width > WIDTH:
            x, y = 0.0, y + 1
        left.append(x)
        line.append(y)
        x += width
        if "\\n" in text:
            x, y = 0.0, y + 1
    return left, line
