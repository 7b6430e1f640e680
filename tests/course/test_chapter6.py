"""Chapter 6's exercises: a typical mistake is told from another, and the right answer passes, computed another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl


def reach(of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> type:
    """A probe of a pattern [batch, head, query, key] and of j - i [query, key]."""

    @dataclass(frozen=True)
    class Reach(sl.Probe):
        name, dims, unit, definition = "reach", ("layer", "head", "query"), "positions", "how far a query looks"

        def hooks(self, model: Any, canvas: Any, seen: Any) -> Any:
            def hook(pattern: torch.Tensor, *, hook: Any) -> None:
                places = torch.arange(pattern.shape[-1])
                seen[hook.layer()] = of(pattern, places - places[:, None])

            return [(f"blocks.{i}.attn.hook_pattern", hook) for i in range(model.cfg.n_layers)]

        def values(self, seen: Any) -> torch.Tensor:
            return torch.stack([seen[i] for i in sorted(seen)], 1)

    return Reach


def verdict(low: float, high: float, margin: float) -> set[str]:
    shown = {"different"} if low * high > 0 else set()
    return shown | ({"equivalent"} if max(abs(low), abs(high)) < margin else set())


def null() -> np.ndarray:
    return np.array([[abs(i - j) for j in range(32)] for i in range(32)]).mean(1)


RIGHT = {
    "6.1": lambda: reach(lambda pattern, away: torch.einsum("bhqk,qk->bhq", pattern, away.abs().float())),
    "6.2": null,
    "6.3": lambda: verdict,
    "6.4": lambda: "not needed",
    "6.5": lambda: [0.09, 0.20, 0.04, 0.09],
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_computed_another_way_is_right(name: str) -> None:
    assert sl.course.check(name, RIGHT[name]())


WRONG = [
    ("6.1", lambda: reach(lambda pattern, away: (pattern * away).sum(-1)), "has a sign"),
    ("6.1", lambda: reach(lambda pattern, away: (pattern * -away).sum(-1)), "the other way round"),
    ("6.1", lambda: reach(lambda pattern, away: (pattern * away**2).sum(-1)), "squares"),
    ("6.1", lambda: reach(lambda pattern, away: (pattern * away.abs()).mean(-1)), "mean over keys"),
    ("6.1", lambda: reach(lambda pattern, away: (pattern * away.abs()).sum(-2)), "summed over queries"),
    ("6.1", lambda: reach(lambda pattern, away: pattern.nothing), "raised AttributeError"),
    ("6.1", lambda: 3, "expected a class"),
    ("6.2", lambda: 10.67, "the ends look farther"),
    ("6.2", lambda: null() * 32 / 31, "left the query itself out"),
    ("6.2", lambda: null() * 32, "sum of distances"),
    ("6.2", lambda: null()[:31], "expected the shape (32,)"),
    ("6.3", lambda: lambda low, high, margin: {"equivalent"} if low < 0 < high else {"different"}, "a small loss"),
    ("6.3", lambda: lambda low, high, margin: verdict(low, high, margin) - {"different"}, "a large loss"),
    ("6.3", lambda: lambda low, high, margin: "different", "expected a set"),
    ("6.4", lambda: "needed", "what did the rule say"),
    ("6.4", lambda: "perhaps", "expected one of"),
    ("6.5", lambda: [0.12, 0.8, 0.04, 0.16], "Bonferroni"),
    ("6.5", lambda: [0.09, 0.20, 0.04, 0.08], "running maximum"),
    ("6.5", lambda: [0.04, 0.09, 0.09, 0.20], "old order"),
]


@pytest.mark.parametrize(("name", "answer", "says"), WRONG, ids=[f"{name}-{says[:18]}" for name, _, says in WRONG])
def test_a_mistake_is_named(name: str, answer: Any, says: str) -> None:
    verdict = sl.course.check(name, answer())
    assert not verdict
    assert says in verdict.says
