"""Chapter 3's exercises: a typical mistake is told from another, and the right answer passes, computed another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sinklens as sl
from sinklens.course.chapter3 import record, rows

RULE = sl.SinkRule()


def eos() -> Any:
    return sl.metrics.token_classes(record("tiny-dlm"), RULE).set_index("token_class").loc["eos"]


def lengths() -> np.ndarray:
    return sl.dynamics.dwell(record("tiny-dlm"), RULE)["length"].to_numpy()


def jaccard(a: np.ndarray, b: np.ndarray, *, empty: float = float("nan")) -> float:
    sets = set(np.flatnonzero(a)), set(np.flatnonzero(b))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else empty


def over_the_larger(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max(a.sum(), b.sum()) if (a | b).any() else float("nan")


def in_place(a: np.ndarray, b: np.ndarray) -> float:
    a &= b
    return jaccard(a, b)


def layer(number: int) -> Any:
    return sl.metrics.per_layer(record("tiny-arm"), RULE).set_index("layer").loc[number]


RIGHT = {
    "3.1": lambda: eos().share_of_sinks / eos().share_of_keys,
    "3.2": lambda: layer(1).sinks - layer(1).null,
    "3.3": lambda: jaccard,
    "3.4": lambda: np.mean(lengths() == 1),
    "3.5": lambda: 150,
    "3.6": lambda: "mask",
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_computed_another_way_is_right(name: str) -> None:
    assert sl.course.check(name, RIGHT[name]())


WRONG = [
    ("3.1", lambda: eos().share_of_sinks, "divide by the share of keys"),
    ("3.1", lambda: eos().share_of_keys / eos().share_of_sinks, "upside down"),
    ("3.1", lambda: "often", "expected numbers"),
    ("3.2", lambda: layer(1).sinks, "subtract the null"),
    ("3.2", lambda: layer(1).null, "the null itself"),
    ("3.2", lambda: layer(0).sinks - layer(0).null, "layer 0"),
    ("3.2", lambda: layer(1).null - layer(1).sinks, "null minus the count"),
    ("3.3", lambda: lambda a, b: jaccard(a, b, empty=1.0), "perfectly stable"),
    ("3.3", lambda: lambda a, b: jaccard(a, b, empty=0.0), "restless"),
    ("3.3", lambda: lambda a, b: float((a & b).sum()), "shared over either"),
    ("3.3", lambda: over_the_larger, "one of them in both, it returns 0.5"),
    ("3.3", lambda: lambda a, b: jaccard(a, b) if a.any() else np.nan, "an empty set and one that is not"),
    ("3.3", lambda: lambda a, b: jaccard(a, b) if (a & b).any() else np.nan, "without a common key"),
    ("3.3", lambda: lambda a, b: jaccard(a, b) if (a | b).any() else None, "returns nothing"),
    ("3.3", lambda: in_place, "changes the arrays"),
    ("3.3", lambda: lambda a: 1.0, "your function raised TypeError"),
    ("3.3", lambda: 1.0, "expected a function"),
    ("3.4", lambda: np.sum(lengths() == 1), "divide by the number of episodes"),
    ("3.4", lambda: (lengths() == 1).sum() / lengths().sum(), "a long stay counts once"),
    ("3.4", lambda: np.mean(lengths() > 1), "last longer"),
    ("3.4", lambda: lengths().mean(), "mean length"),
    ("3.5", lambda: 2, "has no update 2"),
    ("3.5", lambda: 4000, "too large"),
    ("3.6", lambda: "training", "look at the row between"),
    ("3.6", lambda: "neither", "it is gone"),
    ("3.6", lambda: "magic", "expected one of mask, training, neither"),
]


@pytest.mark.parametrize(("name", "answer", "says"), WRONG, ids=[f"{name}-{says[:18]}" for name, _, says in WRONG])
def test_a_mistake_is_named(name: str, answer: Any, says: str) -> None:
    verdict = sl.course.check(name, answer())
    assert not verdict
    assert says in verdict.says


def test_what_the_text_says_of_the_logs_is_in_them() -> None:
    update = next(row for row in rows("twins/tiny-arm/training.jsonl") if row["step"] == 150)
    assert update["mask_0.0"]["accuracy"] > 0.99
    causal, opened, trained = (np.mean(row["sinks"]["first_token"]) for row in np.array(rows(
        "adapted/smollm2-135m-diffusion/log.jsonl"), dtype=object)[[0, 1, -1]])  # fmt: skip
    assert opened < trained < 0.1 * causal


def test_what_the_text_says_of_rows_that_cannot_move() -> None:
    """Sinks and their overlap by hand: at step s the text ends with the block of position 16 + s."""
    task, probes = (
        sl.tasks.Echo(n=6, seed=1),
        [sl.probes.ReceivedAttention(queries=("all", "block")), sl.probes.Pattern()],
    )
    run = sl.denoise(
        sl.HookedDLM.from_pretrained("tiny-bdlm"), [task[i].prompt for i in range(6)], sl.Plan(new_tokens=32),
        probes=probes, progress=False,
    )  # fmt: skip
    patterns = run.record["pattern"].transpose("prompt", "step", "layer", "head", "query", "key").to_numpy()
    np.testing.assert_allclose(patterns[:, 28:31, ..., :44, :], patterns[:, 29:, ..., :44, :], atol=1e-6)
    found = {}
    for asked in ("all", "block"):
        flags = np.zeros((6, 32, 4, 48), bool)
        for step in range(32):
            end = 16 + 4 * (step // 4 + 1)
            seeing = end - 4 * (np.arange(end) // 4) if asked == "all" else 4
            rows = patterns[:, step, 0, :, (0 if asked == "all" else end - 4) : end, :end]
            flags[:, step, :, :end] = rows.sum(2) / seeing > 0.3
        pairs = [jaccard(flags[i, step, head], flags[i, step + 1, head]) for i, step, head in np.ndindex(6, 31, 4)]
        found[asked] = round(float(np.nanmean(pairs)), 2)
    assert found == {"all": 0.73, "block": 0.16}
