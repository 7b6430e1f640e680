"""sinklens: measure and edit attention sinks in diffusion language models, on TransformerLens hook points."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinklens.version import __version__

if TYPE_CHECKING:
    from sinklens import dynamics, interventions, metrics, norms, plots, probes, report, sharing, sinks, tasks
    from sinklens.denoising import Step, denoising_steps
    from sinklens.experiment import ablate, doses
    from sinklens.hooks import Canvas, Where
    from sinklens.interventions import MaskSinks, PreviousStep, SameStep, ZeroSinks
    from sinklens.likelihood import log_likelihood
    from sinklens.model import HookedDLM
    from sinklens.plan import Plan
    from sinklens.planted_models import planted_model
    from sinklens.planting import planted
    from sinklens.probes.estimate import estimate
    from sinklens.records import concat, open, save
    from sinklens.replaying import replay
    from sinklens.results import AblationResult, Effect
    from sinklens.rules import rule
    from sinklens.running import Run, denoise
    from sinklens.sinks import SinkRule

# Where each public name lives. Resolved on first use, so that `import sinklens` and `sinklens --help` stay quick.
_HOMES = {
    "denoising": ("Step", "denoising_steps"),
    "experiment": ("ablate", "doses"),
    "hooks": ("Canvas", "Where"),
    "interventions": ("MaskSinks", "PreviousStep", "SameStep", "ZeroSinks"),
    "model": ("HookedDLM",),
    "likelihood": ("log_likelihood",),
    "plan": ("Plan",),
    "planted_models": ("planted_model",),
    "planting": ("planted",),
    "probes.estimate": ("estimate",),
    "records": ("concat", "open", "save"),
    "replaying": ("replay",),
    "results": ("AblationResult", "Effect"),
    "rules": ("rule",),
    "running": ("Run", "denoise"),
    "sinks": ("SinkRule",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = (
    "dynamics",
    "interventions",
    "metrics",
    "norms",
    "plots",
    "probes",
    "report",
    "sharing",
    "sinks",
    "tasks",
)

__all__ = [
    "AblationResult",
    "Canvas",
    "Effect",
    "HookedDLM",
    "MaskSinks",
    "Plan",
    "PreviousStep",
    "Run",
    "SameStep",
    "SinkRule",
    "Step",
    "Where",
    "ZeroSinks",
    "__version__",
    "ablate",
    "concat",
    "denoise",
    "denoising_steps",
    "doses",
    "dynamics",
    "estimate",
    "interventions",
    "log_likelihood",
    "metrics",
    "norms",
    "open",
    "planted",
    "planted_model",
    "plots",
    "probes",
    "replay",
    "report",
    "rule",
    "save",
    "sharing",
    "sinks",
    "tasks",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"sinklens.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"sinklens.{name}")
    else:
        raise AttributeError(f"module 'sinklens' has no attribute {name!r}; its names are {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
