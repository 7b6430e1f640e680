"""Which tokens of an answer the draws of a Monte-Carlo likelihood mask, and how much each draw weighs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DREAM_EPS = 1e-3


class Noise(NamedTuple):
    """The draws of one answer: the likelihood is the mean over draws of weight * sum over masked of log p(token).

    Attributes:
        masks: Whether a draw masks a token [draw, token].
        weights: One over the chance that a token is masked [draw].
    """

    masks: np.ndarray
    weights: np.ndarray


def llada(samples: int, length: int, seed: int) -> Noise:
    """LLaDA's draws: x of the L tokens are masked at random, x stratified over 1..L; the weight is L / x.

    As in its `get_log_likelihood`, but halves are rounded up: rounded to even, as there, even x come too often and the
    estimate is biased. Every x is as likely as any other.
    Source: LLaDA (arXiv 2502.09992) and its released code.
    """
    rng = np.random.default_rng([0x11DE, seed % 2**63])
    first = int(rng.integers(1, length + 1))
    spread = np.floor(np.arange(samples) * length / samples + 0.5).astype(int)
    counts = (first + spread - 1) % length
    masks = np.stack([rng.permutation(length) <= count for count in counts])
    return Noise(masks, length / masks.sum(-1))


def dream(samples: int, length: int, seed: int) -> Noise:
    """Dream's draws: each token is masked with probability p = (1 - eps) t + eps, t stratified over [0, 1); weight 1/p.

    A draw may mask nothing, and is then worth 0. eps is 1e-3, as there.
    Source: Dream (arXiv 2508.15487), `_forward_process` of its released evaluation.
    """
    rng = np.random.default_rng([0xD8EA, seed % 2**63])
    times = (rng.random() + np.arange(samples) / samples) % 1
    chances = (1 - DREAM_EPS) * times + DREAM_EPS
    return Noise(rng.random((samples, length)) < chances[:, None], 1 / chances)
