"""docs/architecture.md names every file, in its room, with the file's own first sentence; rooms say what they are."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sinklens"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
LONGEST = 285  # lines of a file


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(".")


def listing() -> str:
    """The part of the page that lists the files, as it must be."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name.strip() for layer in layers for name in layer.split("|")]
    parts = []
    for name in names:
        if not (PACKAGE / name).is_dir():
            continue
        docstring = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
        files = [path for path in FILES if path.is_relative_to(PACKAGE / name)]
        lines = [f"- `{path.relative_to(PACKAGE / name)}`: {first_sentence(path)}" for path in files]
        parts.append("\n".join([f"### {name}/\n", " ".join(docstring.split()) + "\n", *lines]))
    alone = [path for path in FILES if path.parent == PACKAGE]
    parts.append("\n".join(["### beside the rooms\n", *(f"- `{path.name}`: {first_sentence(path)}" for path in alone)]))
    return "\n\n".join(parts) + "\n"


def test_the_page_lists_every_file_with_its_own_first_sentence() -> None:
    listed = PAGE.split("## The rooms, top to bottom\n\n")[1]
    assert listed == listing(), "write this into docs/architecture.md:\n" + listing()


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "twins"])
def test_a_room_says_what_belongs_there_and_what_does_not(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentences = re.findall(r"[.!](?:\s|$)", docstring)
    assert 2 <= len(sentences) <= 4, docstring


@pytest.mark.parametrize("path", re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", PAGE.split("## The rooms")[0]))
def test_what_the_page_points_at_is_there(path: str) -> None:
    assert (PACKAGE / path).exists() or (ROOT / path).exists(), path


@pytest.mark.parametrize("anchor", re.findall(r"CONTRIBUTING\.md#([\w-]+)\)", PAGE))
def test_links_into_contributing_meet_a_heading(anchor: str) -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
