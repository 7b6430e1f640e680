"""Rules of single fields of a plan: what samplers know, and what needs more than a comparison."""

from __future__ import annotations

import math
from typing import Literal

from sinklens.errors import PlanError
from sinklens.models.outline import Sketched

Sampler = Literal["llada", "dream", "diffugpt", "ddpm_cache", "p2", "dplm"]
Remasking = Literal["low_confidence", "random", "margin", "entropy", "maskgit_plus", "origin"]
BY_CHANCE = ("diffugpt", "ddpm_cache")  # which positions these commit, and how many, is drawn
REMASKS = ("p2", "dplm")  # these may mask a committed position again
ANY_STEPS = (*BY_CHANCE, *REMASKS)  # these may take more steps than there are tokens
EPS = {"dream": 1e-3, "ddpm_cache": 1e-5}  # the last timestep, where a sampler has one
DRAWS = ("dream", *BY_CHANCE, "p2")  # from a nucleus
OWNERS = {  # whose a field is that not all samplers use
    "top_p": DRAWS,
    "top_k": DRAWS,
    "alg_temp": ("dream",),
    "eps": tuple(EPS),
    "resample": ("dplm",),
}
ONLY: dict[str, Remasking] = {
    **dict.fromkeys(BY_CHANCE, "origin"),
    **dict.fromkeys(REMASKS, "low_confidence"),
}  # the one remasking that a sampler knows


def check_residues(dlm: Sketched) -> None:
    """Raise for a model of which it is not known what DPLM's sampler never chooses."""
    never = dlm.family.never
    if not never:
        raise PlanError(
            f"sampler='dplm' draws residues, and {dlm.name} ({dlm.family.name}) is no protein model of its kind"
        )
    known = dlm.tokenizer.get_vocab() if dlm.tokenizer is not None else {}
    unknown = [token for token in never if token not in known]
    if unknown:
        raise PlanError(
            f"sampler='dplm' never chooses {', '.join(never)}, and the tokenizer of {dlm.name} does not say which "
            f"{'is' if len(unknown) == 1 else 'are'} {', '.join(unknown)}; set dlm.tokenizer, or say sampler='llada'"
        )


def reach(remasking: Remasking | None) -> str:
    """The thresholds that the confidence of a remasking can reach."""
    if remasking is None:
        return "in (0, 1], or below 0 for remasking='entropy'"
    if remasking == "entropy":
        return "below 0 for remasking='entropy', whose confidence is minus the entropy in nats"
    return f"in (0, 1] for remasking={remasking!r}"


def reachable(threshold: float | None, remasking: Remasking | None) -> bool:
    """Whether some confidence reaches a threshold and some does not; of any remasking where none is named."""
    if threshold is None:
        return True
    negative, positive = -math.inf < threshold < 0, 0 < threshold <= 1
    return negative or positive if remasking is None else negative if remasking == "entropy" else positive
