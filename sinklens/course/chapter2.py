"""Exercises of chapter 2: what a diffusion language model does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
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
OTHER_ORDERS = {
    "these are the tokens of committing from left to right; commit the surest position, wherever it stands": {
        "block_length": 1
    },
    "these are the tokens of one single forward; run a new one after each commit": {"steps": 1},
}


@cache
def model() -> HookedDLM:
    """The chapter's model."""
    return HookedDLM.from_pretrained("tiny-dlm")


def written(prompt: str, new: int, **plan: Any) -> np.ndarray:
    """What the library's own loop writes: [1, pos]."""
    return denoise(model(), prompt, Plan(new_tokens=new, **plan), progress=False).tokens.numpy()


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
    if got.shape == (1, truth.shape[1] - 1):
        raise Wrong(f"one token is missing in {got.shape}; dlm.to_tokens puts BOS before the prompt")
    got = array(answer, truth.shape)
    if not (got[:, : given.shape[1]] == given).all():
        raise Wrong("the first tokens are not the prompt's; does the mask part come last?")
    if not (got == truth).all():
        raise Wrong(f"the last {NEW} are not all the mask's id, which is {model().ids.mask}")
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
        with torch.no_grad(), stopped(model(), 4 * new):
            got = array(call(answer, model(), prompt, new))
        if got.shape != truth.shape:
            raise Wrong(f"expected the shape {truth.shape} for new_tokens={new}, and got {got.shape}")
        if (got == model().ids.mask).any():
            raise Wrong(f"{int((got == model().ids.mask).sum())} masks are left; loop until there is none")
        off = np.flatnonzero(got[0] != truth[0])
        if off.size and off[0] < truth.shape[1] - new:
            raise Wrong(f"the prompt was changed at position {off[0]}: commit at masks only")
        for says, plan in OTHER_ORDERS.items():
            if off.size and (got == written(prompt, new, **plan)).all():
                raise Wrong(says)
        if off.size:
            places = ", ".join(map(str, off[:5]))
            raise Wrong(
                f"{off.size} of {new} tokens differ on the prompt {prompt!r}, at {places}: is it the surest position "
                "that is committed, one per step, after a new forward each time?"
            )
    return "three prompts, every token the same: you have written the sampler of LLaDA at temperature 0"


@contextmanager
def stopped(dlm: HookedDLM, most: int) -> Iterator[None]:
    """End a loop that commits nothing: more forwards than a right answer could need are an error."""
    seen = count(1)

    def counted(*_: Any) -> None:
        if next(seen) > most:
            raise Wrong(
                f"your loop was stopped after {most} forwards: does it choose the same position again and again? "
                "Positions that hold no mask must never be chosen, nor the mask as a token"
            )

    hook = dlm.register_forward_pre_hook(counted)
    try:
        yield
    finally:
        hook.remove()


@exercise("2.4", "the mean distance between positions committed one after the other: one number, in tokens")
def jump(answer: Any) -> str:
    """Neighbours in the order of commits."""
    order = steps().argsort()
    distances = np.abs(np.diff(order))
    mistakes = {
        "that is between steps of neighbouring positions; sort positions by their step first": np.abs(
            np.diff(steps())
        ).mean(),
        "here jumps to the left cancel those to the right; take absolute values": np.diff(order).mean(),
        "that is the sum of all distances; divide by the number of pairs": distances.sum(),
        f"you divided by {NEW}; the first commit has none before it, so there are {NEW - 1} pairs": distances.sum()
        / NEW,
        "that is an autoregressive model, or neighbouring positions in order; sort positions by their step": 1.0,
    }
    near(answer, distances.mean(), tolerance=1e-3, mistakes=mistakes)
    return "an autoregressive model has 1; here the order is the model's own choice"


@exercise("2.5", "the position whose logits decide tiny-arm's token at position 20: one integer")
def place(answer: Any) -> str:
    """The one before."""
    mistakes = {
        "that is so in a masked diffusion model; an autoregressive one has no position 20 before it writes it": 20.0,
        "position 21 does not exist yet when position 20 is written": 21.0,
        "the prompt's last position decides position 16 alone; by position 20, four more tokens are written": 15.0,
        "count from the start of the text": -1.0,
    }
    near(answer, 19.0, tolerance=0, mistakes=mistakes)
    return "the one before: autoregressive logits are shifted by one"


@exercise("2.6", 'one of "blind", "memory", "noise"')
def why(answer: Any) -> str:
    """Committed together, blind to each other."""
    said = choice(answer, ("blind", "memory", "noise"))
    if said == "memory":
        raise Wrong("the prompt is on the canvas in every forward, and one forward is enough for one right token")
    if said == "noise":
        raise Wrong("the temperature is 0: nothing is drawn")
    return "each token is likely by itself, and together they are no text"
