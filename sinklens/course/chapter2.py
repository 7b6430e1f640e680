"""Exercises of chapter 2: what a diffusion language model does."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from sinklens.course.answers import Wrong, array, call, choice, near, number
from sinklens.course.checking import exercise
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import Echo

NEW = 16


@cache
def model() -> HookedDLM:
    """The chapter's model."""
    return HookedDLM.from_pretrained("tiny-dlm")


def written(prompt: str, new: int) -> np.ndarray:
    """What the library's own loop writes: [1, pos]."""
    return denoise(model(), prompt, Plan(new_tokens=new), progress=False).tokens.numpy()


@cache
def steps() -> np.ndarray:
    """The step at which each new position of the chapter's run was committed: [new]."""
    run = denoise(model(), Echo(n=8, seed=1)[0].prompt, Plan(new_tokens=NEW), progress=False)
    return run.commit_step[0, -NEW:].numpy()


@exercise("2.1", "the first canvas: token ids [1, prompt + 16]")
def canvas(answer: Any) -> str:
    """The prompt, and masks."""
    given = model().to_tokens(Echo(n=8, seed=1)[0].prompt).numpy()
    truth = np.concatenate([given, np.full((1, NEW), model().ids.mask)], 1)
    got = array(answer)
    if got.shape == truth.shape[1:]:
        raise Wrong(f"the shape {got.shape} has no batch: models want [batch, pos], here (1, {truth.shape[1]})")
    got = array(answer, truth.shape)
    if not (got[:, : given.shape[1]] == given).all():
        raise Wrong("the first tokens are not the prompt's; does the mask part come last?")
    near(got, truth, tolerance=0)
    return "this is all that the model knows before the first step"


@exercise("2.2", "the position committed at the first step: an integer")
def committed(answer: Any) -> str:
    """The surest one."""
    got, truth = number(answer), float(truth_of_first())
    if got == truth - NEW:
        raise Wrong(f"{got:g} counts from the first mask; count from the start of the canvas")
    if got < NEW:
        raise Wrong(f"position {got:g} is in the prompt: it is given, and not to be committed")
    if got != truth:
        raise Wrong(f"position {got:g} is not the surest of the masked ones")
    return "the surest position first, wherever it stands"


def truth_of_first() -> int:
    """The position that the library's loop commits first."""
    return NEW + int(steps().argmin())


@exercise("2.3", "a function (dlm, prompt, new_tokens) that returns the final canvas [1, prompt + new_tokens]")
def by_hand(answer: Any) -> str:
    """The same tokens as the library's loop, on three other prompts."""
    task = Echo(n=3, seed=5)
    for index, new in enumerate((4, 9, 16)):
        prompt = task[index].prompt
        truth = written(prompt, new)
        with torch.no_grad():
            got = array(call(answer, model(), prompt, new))
        if got.shape != truth.shape:
            raise Wrong(f"expected the shape {truth.shape} for new_tokens={new}, and got {got.shape}")
        if (got == model().ids.mask).any():
            raise Wrong(f"{int((got == model().ids.mask).sum())} masks are left; loop until there is none")
        off = np.flatnonzero(got[0] != truth[0])
        if off.size and off[0] < truth.shape[1] - new:
            raise Wrong(f"the prompt was changed at position {off[0]}: commit at masks only")
        if off.size:
            places = ", ".join(map(str, off[:5]))
            raise Wrong(
                f"{off.size} of {new} tokens differ on the prompt {prompt!r}, at {places}: is it the surest position "
                "that is committed, one per step, after a new forward each time?"
            )
    return "three prompts, every token the same: you have written the sampler of LLaDA at temperature 0"


@exercise("2.4", "the share of commits that go to the right neighbour of the one before: from 0 to 1")
def rightward(answer: Any) -> str:
    """Neighbours in the order of commits."""
    order = steps().argsort()
    mistakes = {
        "that is of the steps along positions; sort positions by their step first": (np.diff(steps()) == 1).mean(),
        "that counts steps to the left, too; only +1 is to the right": (np.abs(np.diff(order)) == 1).mean(),
        "that is a count; divide by the number of commits but the first": (np.diff(order) == 1).sum(),
        f"you divided by {NEW}; the first commit has none before it": (np.diff(order) == 1).sum() / NEW,
    }
    near(answer, (np.diff(order) == 1).mean(), tolerance=1e-3, mistakes=mistakes)
    return "an autoregressive model has 1; here the order is the model's own choice"


@exercise("2.5", 'one of "blind", "memory", "noise"')
def why(answer: Any) -> str:
    """Committed together, blind to each other."""
    said = choice(answer, ("blind", "memory", "noise"))
    if said == "memory":
        raise Wrong("the prompt is on the canvas in every forward, and one forward is enough for one right token")
    if said == "noise":
        raise Wrong("the temperature is 0: nothing is drawn")
    return "each token is likely by itself, and together they are no text"
