"""sinklens: measure and edit attention sinks in diffusion language models, on TransformerLens hook points."""

from sinklens import interventions, metrics, probes, sinks, tasks
from sinklens.denoise import Run, Step, denoise, denoising_steps
from sinklens.experiment import AblationResult, ablate
from sinklens.hooks import Canvas, Where
from sinklens.interventions import MaskSinks, PreviousStep, SameStep, ZeroSinks
from sinklens.model import HookedDLM
from sinklens.plan import Plan
from sinklens.records import open, save
from sinklens.sinks import SinkRule
from sinklens.version import __version__

__all__ = [
    "AblationResult",
    "Canvas",
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
    "denoise",
    "denoising_steps",
    "interventions",
    "metrics",
    "open",
    "probes",
    "save",
    "sinks",
    "tasks",
]
