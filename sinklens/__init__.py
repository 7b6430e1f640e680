"""sinklens: measure and edit attention sinks in diffusion language models, on TransformerLens hook points."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinklens.version import __version__

if TYPE_CHECKING:
    from sinklens import (
        analysis,
        course,
        directions,
        interventions,
        patching,
        plots,
        probes,
        report,
        selection,
        sinks,
        tasks,
    )
    from sinklens.analysis import dynamics, norms, overlap
    from sinklens.analysis import rates as metrics
    from sinklens.autoencoders import Autoencoder
    from sinklens.decoding.likelihood import log_likelihood
    from sinklens.decoding.loop import Step, denoising_steps
    from sinklens.decoding.plan import Plan
    from sinklens.decoding.replay import replay
    from sinklens.decoding.run import Run, denoise
    from sinklens.experiments.ablation import ablate, doses
    from sinklens.experiments.budget_table import breaking_point, budget_table
    from sinklens.experiments.budgets import budget_curve
    from sinklens.experiments.l2 import L2
    from sinklens.experiments.l2_diffusion import l2_in_diffusion
    from sinklens.experiments.l2_run import l2
    from sinklens.experiments.reconstruction import delta_loss
    from sinklens.experiments.results import AblationResult, Effect
    from sinklens.ground_truth.models import planted_model
    from sinklens.ground_truth.records import planted
    from sinklens.hooks import Canvas, Edit, Probe, Scope
    from sinklens.hooks import Scope as Where
    from sinklens.interventions import Feature, MaskSinks, PreviousStep, SameStep, Splice, Steer, ZeroSinks
    from sinklens.models.hooked_dlm import HookedDLM
    from sinklens.patching import Patches, patch
    from sinklens.probes.estimate import estimate
    from sinklens.records import concat, from_frame, open, save, to_frame
    from sinklens.report.hub import pull, push
    from sinklens.sinks.named import rule
    from sinklens.sinks.rule import SinkRule
    from sinklens.values.content import named

# Where each public name lives. Resolved on first use, so that `import sinklens` and `sinklens --help` stay quick.
_HOMES = {
    "autoencoders": ("Autoencoder",),
    "decoding.likelihood": ("log_likelihood",),
    "decoding.loop": ("Step", "denoising_steps"),
    "decoding.plan": ("Plan",),
    "decoding.replay": ("replay",),
    "decoding.run": ("Run", "denoise"),
    "experiments.ablation": ("ablate", "doses"),
    "experiments.budget_table": ("breaking_point", "budget_table"),
    "experiments.budgets": ("budget_curve",),
    "experiments.l2": ("L2",),
    "experiments.l2_diffusion": ("l2_in_diffusion",),
    "experiments.l2_run": ("l2",),
    "experiments.reconstruction": ("delta_loss",),
    "experiments.results": ("AblationResult", "Effect"),
    "values": ("named",),
    "hooks": ("Canvas", "Edit", "Probe", "Scope"),
    "interventions": ("Feature", "MaskSinks", "PreviousStep", "SameStep", "Splice", "Steer", "ZeroSinks"),
    "models.hooked_dlm": ("HookedDLM",),
    "ground_truth.models": ("planted_model",),
    "ground_truth.records": ("planted",),
    "patching": ("Patches", "patch"),
    "probes.estimate": ("estimate",),
    "records": ("concat", "from_frame", "open", "save", "to_frame"),
    "report.hub": ("pull", "push"),
    "sinks.named": ("rule",),
    "sinks.rule": ("SinkRule",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
# Rooms, and modules of `analysis`, under their public names.
_MODULES = {
    "analysis": "analysis",
    "course": "course",
    "directions": "directions",
    "dynamics": "analysis.dynamics",
    "interventions": "interventions",
    "metrics": "analysis.rates",
    "norms": "analysis.norms",
    "overlap": "analysis.overlap",
    "patching": "patching",
    "plots": "plots",
    "probes": "probes",
    "report": "report",
    "selection": "selection",
    "sinks": "sinks",
    "tasks": "tasks",
}

__all__ = [
    "L2",
    "AblationResult",
    "Autoencoder",
    "Canvas",
    "Edit",
    "Effect",
    "Feature",
    "HookedDLM",
    "MaskSinks",
    "Patches",
    "Plan",
    "PreviousStep",
    "Probe",
    "Run",
    "SameStep",
    "Scope",
    "SinkRule",
    "Splice",
    "Steer",
    "Step",
    "Where",
    "ZeroSinks",
    "__version__",
    "ablate",
    "analysis",
    "breaking_point",
    "budget_curve",
    "budget_table",
    "concat",
    "course",
    "delta_loss",
    "denoise",
    "denoising_steps",
    "directions",
    "doses",
    "dynamics",
    "estimate",
    "from_frame",
    "interventions",
    "l2",
    "l2_in_diffusion",
    "log_likelihood",
    "metrics",
    "named",
    "norms",
    "open",
    "overlap",
    "patch",
    "patching",
    "planted",
    "planted_model",
    "plots",
    "probes",
    "pull",
    "push",
    "replay",
    "report",
    "rule",
    "save",
    "selection",
    "sinks",
    "tasks",
    "to_frame",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "Where":  # the scope's other name, as in `where=sl.Where(layers=[1])`
        value = importlib.import_module("sinklens.hooks").Scope
    elif name in _HOME:
        value = getattr(importlib.import_module(f"sinklens.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"sinklens.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'sinklens' has no attribute {name!r}; its names are {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
