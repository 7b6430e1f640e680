"""Rank correlations of arrays, over the entries that are there."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Average ranks from 0 among the kept entries of the last axis; 0 for the others."""
    order = np.argsort(np.where(keep, values, np.inf), -1)  # the kept ones are finite and come first
    ordered = np.take_along_axis(values, order, -1)
    place = np.broadcast_to(np.arange(values.shape[-1], dtype=np.float32), values.shape)
    new = np.ones(values.shape, bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    new |= place == keep.sum(-1, keepdims=True)  # what is not kept begins a tie of its own
    first = np.maximum.accumulate(np.where(new, place, 0), -1)
    ends = np.ones(values.shape, bool)
    ends[..., :-1] = new[..., 1:]
    last = np.minimum.accumulate(np.where(ends, place, np.inf)[..., ::-1], -1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, -1)
    return np.where(keep, ranks, 0)


def spearman(a: np.ndarray, b: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis among the kept entries; nan where fewer than 3, or all equal."""
    keep = np.broadcast_to(keep, a.shape)
    count = keep.sum(-1)
    x, y = ((ranks(v, keep) - (count[..., None] - 1) / 2) * keep for v in (a, b))  # ranks average (n - 1) / 2
    power = (x * x).sum(-1) * (y * y).sum(-1)
    defined = (count >= 3) & (power > 0)
    return np.where(defined, (x * y).sum(-1) / np.sqrt(np.where(defined, power, 1)), np.nan)


def partial(ab: np.ndarray, ac: np.ndarray, bc: np.ndarray) -> np.ndarray:
    """First-order partial correlation of a and b given c, of their three correlations; nan where c says all of one.

    `(r_ab - r_ac r_bc) / sqrt((1 - r_ac^2) (1 - r_bc^2))`: near 0 where a and b go together only because of c.
    """
    left = (1 - ac**2) * (1 - bc**2)
    defined = left > 1e-9
    return np.where(defined, (ab - ac * bc) / np.sqrt(np.where(defined, left, 1)), np.nan)
