"""The parts that make the site, docs/_ext/*.py, for tests."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"


def part(name: str) -> ModuleType:
    """One of them, loaded by its path: their names are short, and other modules have the same."""
    spec = spec_from_file_location(f"docs_ext_{name}", DOCS / "_ext" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
