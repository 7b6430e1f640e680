"""Chapter 2's exercises: a typical mistake is told from another, and the right answer passes, computed another way."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens as sl
from sinklens.course import chapter2


@cache
def steps() -> np.ndarray:
    """The order of the chapter's run, from its record: [new]."""
    run = sl.denoise(chapter2.model(), sl.tasks.Echo(n=8, seed=1)[0].prompt, sl.Plan(new_tokens=16), progress=False)
    return run.record["commit_step"][0, -16:].values


def prompt() -> Tensor:
    return chapter2.model().to_tokens(sl.tasks.Echo(n=8, seed=1)[0].prompt)


def masks(count: int) -> Tensor:
    return torch.full((1, count), chapter2.model().ids.mask)


def loop(place: Callable[[Tensor, Tensor], int], *, most: int | None = None) -> Callable[..., Tensor]:
    """A loop by hand that commits where `place(confidence, masked)` says, at most so many times."""

    def by_hand(dlm: sl.HookedDLM, prompt: str, new_tokens: int) -> Tensor:
        canvas = torch.cat([dlm.to_tokens(prompt), masks(new_tokens)], 1)
        done = 0
        while (canvas == dlm.ids.mask).any() and (most is None or done < most):
            logits = dlm(canvas)[0]
            confidence = logits.softmax(-1).max(-1).values
            at = place(confidence, canvas[0] == dlm.ids.mask)
            canvas[0, at] = logits[at].argmax()
            done += 1
        return canvas

    return by_hand


def surest(confidence: Tensor, masked: Tensor) -> int:
    return max(masked.nonzero().flatten().tolist(), key=lambda at: float(confidence[at]))


def at_once(dlm: sl.HookedDLM, prompt: str, new_tokens: int) -> Tensor:
    canvas = torch.cat([dlm.to_tokens(prompt), masks(new_tokens)], 1)
    canvas[:, -new_tokens:] = dlm(canvas)[:, -new_tokens:].argmax(-1)
    return canvas


def rewritten(dlm: sl.HookedDLM, prompt: str, new_tokens: int) -> Tensor:
    return dlm(torch.cat([dlm.to_tokens(prompt), masks(new_tokens)], 1)).argmax(-1)


def in_the_order_of_commits() -> list[int]:
    return [int(np.flatnonzero(steps() == step)[0]) for step in range(16)]


def first_canvas() -> Tensor:
    """What the loop in the open shows to the model at its first step."""
    plan = sl.Plan(new_tokens=16)
    steps = sl.denoising_steps(chapter2.model(), [sl.tasks.Echo(n=8, seed=1)[0].prompt], plan)
    return next(iter(steps)).canvas.tokens


RIGHT = {
    "2.1": first_canvas,
    "2.2": lambda: 16 + in_the_order_of_commits()[0],
    "2.3": lambda: loop(surest),
    "2.4": lambda: sum(abs(a - b) for a, b in pairwise(in_the_order_of_commits())) / 15,
    "2.5": lambda: 19,
    "2.6": lambda: " Blind",
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_computed_another_way_is_right(name: str) -> None:
    assert sl.course.check(name, RIGHT[name]())


WRONG = [
    ("2.1", lambda: torch.cat([prompt(), masks(16)], 1)[0], "has no batch"),
    ("2.1", lambda: torch.cat([masks(16), prompt()], 1), "does the mask part come last"),
    ("2.1", lambda: torch.cat([prompt()[:, 1:], masks(16)], 1), "puts BOS before the prompt"),
    ("2.1", lambda: torch.cat([prompt(), torch.zeros(1, 16)], 1), "not all the mask's id"),
    ("2.1", prompt, r"expected the shape \(1, 32\), and got \(1, 16\)"),
    ("2.1", lambda: "molma <mask>", "expected numbers, and got 'molma <mask>'"),
    ("2.2", lambda: int(steps().argmin()), "counts from the first mask"),
    ("2.2", lambda: 10, "position 10 is in the prompt"),
    ("2.2", lambda: 16, "position 16 is not the surest"),
    ("2.2", steps, "expected one number, and got 16"),
    ("2.3", lambda: loop(lambda confidence, _: int(confidence.argmax())), "stopped after 16 forwards"),
    ("2.3", lambda: loop(lambda _, masked: int(masked.nonzero()[0])), "from left to right"),
    ("2.3", lambda: at_once, "one single forward"),
    ("2.3", lambda: rewritten, "the prompt was changed at position"),
    ("2.3", lambda: loop(surest, most=3), "1 masks are left"),
    ("2.3", lambda: loop(lambda _, masked: int(masked.nonzero()[-1])), "is it the surest position"),
    ("2.3", lambda: lambda dlm, prompt, new: loop(surest)(dlm, prompt, new)[0], r"expected the shape \(1, 20\)"),
    ("2.3", lambda: lambda dlm: dlm, "your function raised TypeError"),
    ("2.3", lambda: torch.zeros(1, 32), "expected a function"),
    ("2.4", lambda: np.abs(np.diff(steps())).mean(), "sort positions by their step"),
    ("2.4", lambda: np.diff(steps().argsort()).mean(), "cancel"),
    ("2.4", lambda: np.abs(np.diff(steps().argsort())).sum(), "divide by the number of pairs"),
    ("2.4", lambda: np.abs(np.diff(steps().argsort())).sum() / 16, "there are 15 pairs"),
    ("2.4", lambda: 1, "an autoregressive model"),
    ("2.4", steps, "expected one number"),
    ("2.5", lambda: 20, "masked diffusion model"),
    ("2.5", lambda: 15, "decides position 16 alone"),
    ("2.5", lambda: -1, "from the start of the text"),
    ("2.5", lambda: "before", "expected numbers, and got 'before'"),
    ("2.6", lambda: "memory", "the prompt is on the canvas"),
    ("2.6", lambda: "noise", "nothing is drawn"),
    ("2.6", lambda: "deaf", "expected one of blind, memory, noise, and got 'deaf'"),
]


@pytest.mark.parametrize(("name", "answer", "says"), WRONG, ids=[f"{name}-{says}" for name, _, says in WRONG])
def test_a_typical_mistake_is_told_what_is_wrong(name: str, answer: Any, says: str) -> None:
    verdict = sl.course.check(name, answer())
    assert not verdict
    with pytest.raises(ValueError, match=says):
        raise ValueError(verdict.says)


def test_the_model_counts_no_forwards_after_a_check() -> None:
    hooks = len(chapter2.model()._forward_pre_hooks)
    sl.course.check("2.3", loop(lambda confidence, _: int(confidence.argmax())))
    assert len(chapter2.model()._forward_pre_hooks) == hooks
