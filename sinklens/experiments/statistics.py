"""Paired statistics over prompts: intervals, permutation tests, Holm's correction, equivalence. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.statistics import (
    bootstrap_ci,
    derive_generator,
    sign_flip_permutation_pvalue,
)

RESAMPLES = 2000


def mean_and_interval(values: Float[Tensor, " n"], confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Mean and percentile-bootstrap interval of it, over independent values (prompts). The same at every call."""
    low, high = bootstrap_ci(values, n_resamples=RESAMPLES, confidence=confidence, generator=derive_generator(0))
    return float(values.mean()), (float(low), float(high))


def rate_and_interval(values: Float[Tensor, " n"]) -> tuple[float, tuple[float, float]]:
    """As above for shares in [0, 1]; where all are alike a bootstrap would claim certainty, so exact.

    Exact is Clopper and Pearson's interval where all are 0 or all 1, and its like between them: if the mean over all
    prompts were below c * .025^(1 / n), then by Markov's inequality at most .025^(1 / n) of them would have c or more,
    and n independent ones would all have c with a probability of .025 at most; from above likewise, with 1 - c.
    """
    if bool((values == values[0]).all()):
        return float(values[0]), _of_alike(float(values[0]), len(values), 0.0, 0.025)
    return mean_and_interval(values)


def difference_and_interval(
    differences: Float[Tensor, " n"], share: bool, confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """As `mean_and_interval` for paired differences, of shares where `share` is true.

    Where every pair of shares differs by the same amount a bootstrap would claim certainty. Then, as in
    `rate_and_interval`, of numbers between -1 and 1: 12 prompts without a difference show that the mean is within .27
    of 0.
    """
    mean, interval = mean_and_interval(differences, confidence)
    if not share or not bool((differences == differences[0]).all()):
        return mean, interval
    return mean, _of_alike(mean, len(differences), -1.0, (1 - confidence) / 2)


def _of_alike(level: float, n: int, least: float, tail: float) -> tuple[float, float]:
    """Where the mean lies of numbers from `least` to 1, n of which are the same; `tail`: how often an end is wrong."""
    other = 1 - tail ** (1 / n)
    return max(least, level - other * (level - least)), min(1.0, level + other * (1 - level))


def permutation_p(differences: Float[Tensor, " n"], permutations: int = 10_000) -> float:
    """Two-sided p-value that paired differences average 0: their signs are flipped in every way (or in many)."""
    generator = derive_generator(0, "permutation")
    return float(sign_flip_permutation_pvalue(differences, n_permutations=permutations, generator=generator))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for all comparisons together, in the given order.

    The smallest of m is multiplied by m, the next by m - 1, and so on; never falling, at most 1. nan stays nan and is
    not counted.
    """
    given = [(p, index) for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected, worst = [float("nan")] * len(p_values), 0.0
    for rank, (p, index) in enumerate(sorted(given)):
        worst = max(worst, min(1.0, p * (len(given) - rank)))
        corrected[index] = worst
    return corrected


def equivalent(differences: Float[Tensor, " n"], margin: float, share: bool = False) -> bool:
    """Whether differences are shown to be smaller than a margin: two one-sided tests at 5 %.

    Both must reject, by sign-flip permutation (exact up to 12 prompts): that the mean is at or below -margin, and that
    it is at or above margin. Fewer than 5 prompts can never show it; an interval that merely contains 0 shows nothing.
    Flipping signs says nothing of shares that all differ by the same amount: there the exact 90 % interval of
    `difference_and_interval` must lie within the margin, too.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be above 0: the largest difference that would not matter")
    _, (low, high) = difference_and_interval(differences, share, 0.9)
    if share and bool((differences == differences[0]).all()) and not -margin < low <= high < margin:
        return False
    return all(
        float(
            sign_flip_permutation_pvalue(
                sided, n_permutations=10_000, generator=derive_generator(0, "equivalence"), alternative="greater"
            )
        )
        < 0.05
        for sided in (differences + margin, margin - differences)
    )
