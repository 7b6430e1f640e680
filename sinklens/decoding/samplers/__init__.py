"""What one step chooses, one file per sampler: a token for every position, and which positions to commit."""

from __future__ import annotations

from sinklens.decoding.prompts import Start
from sinklens.decoding.samplers.base import Choice, Diffusion, Sampler
from sinklens.decoding.samplers.causal import Causal
from sinklens.decoding.samplers.ddpm_cache import DDPMCache
from sinklens.decoding.samplers.diffugpt import DiffuGPT
from sinklens.decoding.samplers.dplm import DPLM
from sinklens.decoding.samplers.dream import Dream
from sinklens.decoding.samplers.llada import LLaDA
from sinklens.decoding.samplers.p2 import P2
from sinklens.decoding.samplers.sdar import SDAR
from sinklens.models.hooked_dlm import HookedDLM

DIFFUSION: dict[str, type[Diffusion]] = {
    "llada": LLaDA,
    "dream": Dream,
    "diffugpt": DiffuGPT,
    "ddpm_cache": DDPMCache,
    "p2": P2,
    "dplm": DPLM,
    "dllm": LLaDA,
    "sdar": SDAR,
}


def sampler_for(dlm: HookedDLM, start: Start) -> Sampler:
    """The sampler that a prepared run asks for, with random numbers of its own."""
    return Causal(dlm, start) if dlm.is_causal else DIFFUSION[start.plan.sampler or "llada"](dlm, start)


__all__ = ["DIFFUSION", "Causal", "Choice", "Diffusion", "Sampler", "sampler_for"]
