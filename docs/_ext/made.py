"""Pages that are made from the code itself, below docs/made/: models, API, gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import api
import gallery
import models
from sphinx.application import Sphinx

BESIDE = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    app.connect("source-read", point)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(app: Sphinx) -> None:
    """Write all of them; a page whose text is the same is not touched."""
    folder = Path(app.srcdir) / "made"
    folder.mkdir(exist_ok=True)
    for name, text in api.pages().items():
        keep(folder / "api" / f"{name}.rst", text)
    keep(folder / "models.md", models.page())
    keep(folder / "gallery.md", gallery.page(draw=app.config.nb_execution_mode != "off"))
    keep(folder / "picture.html", gallery.picture())
    for file, page in BESIDE.items():
        text = (folder.parents[1] / file).read_text(encoding="utf-8")
        keep(folder / f"{page}.md", text.replace("](docs/", "](/"))


def point(app: Sphinx, name: str, source: list[str]) -> None:
    """Files beside docs/ that pages point at are pages here."""
    for file, page in BESIDE.items():
        source[0] = source[0].replace(f"](../{file}", f"](/made/{page}.md")


def keep(path: Path, text: str) -> None:
    """Write a page if its text is another one than before, so that Sphinx reads again only what changed."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
