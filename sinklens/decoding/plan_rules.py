"""Rules of single fields of a plan: what samplers know, and what needs more than a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from sinklens.errors import PlanError
from sinklens.models.outline import Sketched

if TYPE_CHECKING:
    from sinklens.decoding.plan import Plan

Sampler = Literal["llada", "dream", "diffugpt", "ddpm_cache", "p2", "dplm", "dllm", "sdar"]
Remasking = Literal["low_confidence", "random", "margin", "entropy", "maskgit_plus", "origin", "sequential"]
BY_CHANCE = ("diffugpt", "ddpm_cache")  # which positions these commit, and how many, is drawn
REMASKS = ("p2", "dplm")  # these may mask a committed position again
ANY_STEPS = (*BY_CHANCE, *REMASKS)  # these may take more steps than there are tokens
EPS = {"dream": 1e-3, "ddpm_cache": 1e-5}  # the last timestep, where a sampler has one
DRAWS = ("dream", *BY_CHANCE, "p2", "sdar")  # from a nucleus
IN_BLOCKS = ("llada", "dllm", "sdar")  # of models that see block by block; the last two of no others
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


def checked(plan: Plan) -> Plan:
    """A plan whose fields fit its sampler.

    Raises:
    PlanError: they do not.
    """
    if plan.sampler not in IN_BLOCKS and plan.block_length not in (None, plan.new_tokens):
        raise PlanError(
            f"block_length={plan.block_length}: the sampler {plan.sampler!r} has no blocks; use sampler='llada'"
        )
    if plan.sampler == "dream" and plan.remasking == "random":
        raise PlanError("remasking='random' belongs to sampler='llada'; 'dream' has 'origin'")
    if plan.remasking == "sequential" and plan.sampler != "sdar":
        raise PlanError("remasking='sequential' needs sampler='sdar', which goes from left to right in a block")
    if plan.sampler == "sdar" and plan.remasking not in ("low_confidence", "sequential"):
        raise PlanError(f"remasking={plan.remasking!r}: the sampler 'sdar' knows 'low_confidence' and 'sequential'")
    if plan.sampler == "llada" and plan.remasking == "origin":
        raise PlanError("remasking='origin' needs sampler='dream' (its timesteps)")
    if plan.sampler in BY_CHANCE and plan.remasking != "origin":
        raise PlanError(
            f"remasking={plan.remasking!r}: the sampler {plan.sampler!r} reveals by chance, remasking='origin', "
            "and knows nothing else"
        )
    if plan.sampler in REMASKS and plan.remasking != "low_confidence":
        raise PlanError(
            f"remasking={plan.remasking!r}: the sampler {plan.sampler!r} masks the least confident again by the "
            "probability of the token that it draws, remasking='low_confidence', and knows nothing else; say "
            "sampler='llada' or 'dream'"
        )
    if plan.sampler in REMASKS and plan.threshold is not None:
        raise PlanError(
            f"threshold={plan.threshold}: with sampler={plan.sampler!r} the step says how many positions are "
            "masked; use 'llada' or 'dream'"
        )
    for name, of in OWNERS.items():
        if getattr(plan, name) is not None and plan.sampler not in of:
            raise PlanError(
                f"{name}={getattr(plan, name)} needs sampler={' or '.join(map(repr, of))}; {plan.sampler!r} does "
                "not use it"
            )
    if plan.resample is not None and (plan.temperature == 0 or plan.cfg_scale):
        raise PlanError(
            f"resample={plan.resample} needs a temperature and no guidance: temperature={plan.temperature:g}, "
            f"cfg_scale={plan.cfg_scale:g}"
        )
    if plan.sampler != "llada" and plan.suppress_eos in ("confidence", "both"):
        raise PlanError(
            f"suppress_eos={plan.suppress_eos!r} needs sampler='llada'; {plan.sampler!r} knows only 'logits'"
        )
    if plan.threshold is not None and plan.remasking in ("random", "origin"):
        raise PlanError(f"threshold={plan.threshold} compares confidences, and remasking={plan.remasking!r} has none")
    return plan
