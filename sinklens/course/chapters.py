"""The chapters' sources (percent scripts), and their copies as notebooks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sinklens.errors import CourseError


def chapters() -> list[Path]:
    """The sources of all chapters, in order: inside of an installed package, or of a checkout."""
    inside = Path(__file__).parent
    for folder in (inside / "chapters", inside.parents[1] / "docs" / "course"):
        if found := sorted(folder.glob("[0-9][0-9]_*.py")):
            return found
    raise CourseError("the chapters of the course did not come with this installation; install sinklens again")


def copy(folder: str | Path) -> list[Path]:
    """Write all chapters into a folder, as Jupyter notebooks without outputs.

    Raises:
        CourseError: jupytext is not installed, or a notebook of that name is there (someone's answers may be in it):
            nothing is written then.
    """
    if find_spec("jupytext") is None:
        raise CourseError("writing notebooks needs the package jupytext: pip install 'sinklens[course]'")
    import jupytext
    import nbformat

    folder = Path(folder)
    written = {folder / f"{source.stem}.ipynb": source for source in chapters()}
    if there := [str(path) for path in written if path.exists()]:
        raise CourseError(f"{', '.join(there)} is there already, perhaps with answers in it; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, source in written.items():
        notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return list(written)
