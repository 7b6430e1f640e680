"""The parts that make the site, docs/_ext/*.py, for tests."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"


def part(name: str) -> ModuleType:
    """One of them, loaded by its path: their names are short, and other modules have the same."""
    if f"docs_ext_{name}" in sys.modules:
        return sys.modules[f"docs_ext_{name}"]
    spec = spec_from_file_location(f"docs_ext_{name}", DOCS / "_ext" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    if str(DOCS / "_ext") not in sys.path:
        sys.path.append(str(DOCS / "_ext"))  # they ask each other
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
