"""Plotly figures on pages: one local copy of plotly.js, nothing from a network."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SCRIPTS = re.compile(r'<script[^>]*src="https?://[^"]*"[^>]*></script>')
PLOTLY = "plotly.min.js"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", copy_plotly)
    app.connect("doctree-resolved", localise)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_plotly(app: Sphinx) -> None:
    """plotly.js, as the installed plotly ships it, beside the other static files."""
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    source = files("plotly").joinpath("package_data", PLOTLY)
    (static / PLOTLY).write_bytes(source.read_bytes())


def localise(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """The local script before a page's first figure, instead of those that figures would load from elsewhere."""
    local = f'<script src="{"../" * name.count("/")}_static/{PLOTLY}"></script>'
    for node in doctree.findall(nodes.raw):
        text = node.astext()
        if "html" in node.get("format", "") and "Plotly." in text:
            text = local + SCRIPTS.sub("", text)
            local = ""
            node.children = [nodes.Text(text)]
            node.rawsource = text
