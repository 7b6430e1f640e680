"""Rules of single fields of a plan, where they need more than a comparison."""

from __future__ import annotations

import math
from typing import Literal

from sinklens.errors import PlanError
from sinklens.models.outline import Sketched

Remasking = Literal["low_confidence", "random", "margin", "entropy", "maskgit_plus", "origin"]


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
