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
    app.connect("html-page-context", load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_plotly(app: Sphinx) -> None:
    """plotly.js, as the installed plotly ships it, beside the other static files."""
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    source = files("plotly").joinpath("package_data", PLOTLY)
    (static / PLOTLY).write_bytes(source.read_bytes())


def localise(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Take the scripts that a figure would load from elsewhere out of it."""
    for node in doctree.findall(nodes.raw):
        if "html" in node.get("format", "") and SCRIPTS.search(node.astext()):
            text = SCRIPTS.sub("", node.astext())
            node.children = [nodes.Text(text)]
            node.rawsource = text


def load(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """plotly.js on pages that have a figure, and on no others."""
    if doctree is not None and any("plotly" in node.astext() for node in doctree.findall(nodes.raw)):
        app.add_js_file(PLOTLY, priority=200)
