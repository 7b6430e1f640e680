"""The API, a page per public namespace, from `__all__` and docstrings."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import sinklens

# What stands directly in `sinklens`, by what one does with it. A test holds this to `sinklens.__all__`.
TOP = {
    "Models and the denoising loop": ["HookedDLM", "Plan", "denoise", "denoising_steps", "replay", "Run", "Step"],
    "Hooks, probes and edits of your own": ["Probe", "Edit", "Canvas", "Scope", "Where", "named"],
    "Sinks": ["SinkRule", "rule"],
    "Edits": ["MaskSinks", "PreviousStep", "SameStep", "ZeroSinks", "Steer", "Splice", "Feature"],
    "Experiments": ["ablate", "doses", "AblationResult", "Effect", "patch", "Patches", "log_likelihood", "delta_loss"],
    "Budgets of keys": ["budget_curve", "budget_table", "breaking_point", "l2", "L2", "l2_in_diffusion"],
    "Records": ["open", "save", "concat", "to_frame", "from_frame", "push", "pull", "estimate"],
    "Autoencoders": ["Autoencoder"],
    "Known answers": ["planted", "planted_model"],
}
NAMESPACES = {
    "probes": "sinklens.probes",
    "interventions": "sinklens.interventions",
    "sinks": "sinklens.sinks",
    "metrics": "sinklens.metrics",
    "dynamics": "sinklens.dynamics",
    "norms": "sinklens.norms",
    "overlap": "sinklens.overlap",
    "analysis": "sinklens.analysis",
    "plots": "sinklens.plots",
    "tasks": "sinklens.tasks",
    "directions": "sinklens.directions",
    "patching": "sinklens.patching",
    "selection": "sinklens.selection",
    "autoencoders": "sinklens.autoencoders",
    "report": "sinklens.report",
    "course": "sinklens.course",
    "hooks": "sinklens.hooks",
    "harness": "sinklens.harness",
    "errors": "sinklens.errors",
}


def pages() -> dict[str, str]:
    """Text of each page by its name: reStructuredText, which autodoc's directives are made for."""
    seen: dict[int, str] = {}
    top = [_heading("sinklens", "="), "``import sinklens as sl``; every name below is ``sl.NAME``.\n"]
    for title, names in TOP.items():
        top += [_heading(title, "-"), *(_entry("sinklens", name, getattr(sinklens, name), seen) for name in names)]
    made = {"sinklens": "\n".join(top)}
    for short, path in NAMESPACES.items():
        module = namespace(path)
        head = [_heading(path, "="), inspect.cleandoc(module.__doc__ or "") + "\n"]
        made[short] = "\n".join([*head, *(_entry(path, name, getattr(module, name), seen) for name in public(module))])
    return made


def namespace(path: str) -> ModuleType:
    """A namespace under its public path, which may not be where the module lies."""
    short = path.removeprefix("sinklens.")
    return getattr(sinklens, short) if short in sinklens.__all__ else importlib.import_module(path)


def public(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or what it defines itself."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return [name for name in names if not inspect.ismodule(getattr(module, name))]
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in own if not name.startswith("_")]


def _entry(path: str, name: str, value: Any, seen: dict[int, str]) -> str:
    """One directive; a reference where the same thing stands elsewhere already."""
    if callable(value):
        first = seen.setdefault(id(value), f"{path}.{name}")
        if first != f"{path}.{name}":
            return f"``{path}.{name}``: :py:obj:`{first}`.\n"
    if inspect.isclass(value):
        return f".. autoclass:: {path}.{name}\n   :members:\n   :show-inheritance:\n"
    if callable(value):
        return f".. autofunction:: {path}.{name}\n"
    return f".. py:data:: {path}.{name}\n   :value: {_value(value)}\n   :no-index-entry:\n"


def _value(value: Any) -> str:
    said = " ".join(repr(value).split())
    return said if len(said) <= 100 else said[:97] + "..."


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"
