"""The gallery: the figures of `shown`, executed, and the page of them."""

from __future__ import annotations

import html
from typing import Any

from shown import GALLERY, NORMS, SETUP, Shown


def figures(*, real: bool = True) -> dict[str, Any]:
    """Every figure by its name, made by the lines that are shown; without `real`, not those that ask a real model."""
    names: dict[str, Any] = {}
    exec(compile(SETUP, "gallery: setup", "exec"), names)
    done, made = set(), {}
    for shown in GALLERY:
        if shown.before == NORMS and not real:
            continue
        if shown.before not in done:
            done.add(shown.before)
            exec(compile(shown.before, f"gallery: before {shown.name}", "exec"), names)
        made[shown.name] = eval(compile(f"({shown.code})", f"gallery: {shown.name}", "eval"), names)
    return made


def picture() -> str:
    """The first thing on the site: two models write behind one prompt, and a slider over the steps."""
    names: dict[str, Any] = {}
    exec(compile(SETUP, "gallery: setup", "exec"), names)
    models = {"tiny-dlm, a diffusion model": names["record"], "tiny-arm, its autoregressive twin": names["causal"]}
    return names["sl"].plots.text_timeline(models, prompt=1).fragment()


def _html(figure: Any, shown: Shown) -> str:
    """What draws a figure: its own fragment, or what a local plotly.js reads."""
    if hasattr(figure, "fragment"):
        return figure.fragment()
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{shown.name}")
    return f'<div role="img" aria-label="{html.escape(shown.alt)}">{drawn}</div>'


def page(*, draw: bool = True) -> str:
    """The page, as MyST; figures as HTML that a local plotly.js draws."""
    made = figures() if draw else {}
    parts = [
        "# Gallery",
        "Every figure of `sinklens.plots`, the question that it answers, and the lines that make it. All begin with:",
        f"```python\n{SETUP}```",
    ]
    for shown in GALLERY:
        drawn = "(not drawn in this build)"
        if draw:
            drawn = _html(made[shown.name], shown)
        frame = f'<div class="figure">{drawn}</div>'
        parts += [
            f"## {shown.name}",
            f"{shown.asks} [`sl.plots.{shown.name}`](api/plots.rst)",
            f"```python\n{shown.before}{shown.code}\n```",
            f"```{{raw}} html\n{frame}\n```",
            f"*{shown.alt}*",
        ]
    return "\n\n".join(parts) + "\n"
