"""Log-likelihoods of many continuations, in batches of rows of about one length: exact, or by Monte-Carlo draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from sinklens.decoding import noising
from sinklens.decoding.answers import Answered
from sinklens.decoding.likelihood import (
    check_stepless,
    draw_seed,
    exact_scores,
    hidden_places,
    is_greedy,
    masked_scores,
    whole_canvas,
)
from sinklens.errors import PlanError
from sinklens.harness.arguments import Setting
from sinklens.harness.met import Met
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.norms import keep_watched

T = TypeVar("T")
ESTIMATORS: dict[str, Callable[[int, int, int], noising.Noise]] = {"llada": noising.llada, "dream": noising.dream}


class Likelihood(NamedTuple):
    """What is said of a continuation: its log-likelihood in nats, and whether the model would write it by itself."""

    log_p: float
    greedy: bool


class _Draw(NamedTuple):
    """A row of a forward: which request it is of, its mask, what it weighs, and the seed of its edits."""

    request: int
    mask: np.ndarray
    weight: float
    seed: int


def check(dlm: HookedDLM, rows: Sequence[Answered], setting: Setting) -> None:
    """Raise for rows that cannot be scored, before any forward.

    Raises:
        PlanError: a continuation without tokens, what exceeds the context, guidance.
        ScopeError: edits that name steps, or that cannot act.
    """
    if setting.edits and setting.plan.editing == "local":
        raise PlanError(
            "plan: editing='local' needs steps, and a likelihood has none: it reads an answer at once, every position "
            "edited; leave it out, or choose a task that generates"
        )
    if setting.plan.cfg_scale:
        raise PlanError(
            f"cfg_scale={setting.plan.cfg_scale:g}: likelihoods are computed without guidance; leave it out"
        )
    for index, row in enumerate(rows):
        if not row.answer:
            raise PlanError(f"request {index}: its continuation has no tokens of its own, and nothing can be scored")
        if dlm.is_causal and not row.prompt:
            raise PlanError(f"request {index}: its context has no tokens, and {dlm.name} has no BOS to begin with")
    longest = max(rows, key=lambda row: len(row.prompt) + len(row.answer))
    longest = longest if dlm.is_causal else Answered(longest.prompt, [*longest.answer, *_end(dlm, setting)])
    whole, _ = whole_canvas(dlm, [longest], setting.seed, unread=int(dlm.is_causal))
    check_stepless(dlm, whole, setting.edits)


@torch.no_grad()
def scored(
    dlm: HookedDLM, rows: Sequence[Answered], setting: Setting, batch_size: int, met: Met
) -> Iterator[dict[int, Likelihood]]:
    """Likelihoods by the index of their row, as soon as each batch is finished; the longest rows first.

    Args:
        dlm: The model.
        rows: Contexts and continuations as token ids.
        setting: Edits, estimator, draws, seed.
        batch_size: Rows of a forward.
        met: Is told which rows edits have met.
    """
    keep_watched(dlm)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].prompt) - len(rows[index].answer))
    for chunk in chunked(order, batch_size):
        yield (_exact if dlm.is_causal else _estimated)(dlm, rows, chunk, setting, batch_size, met)


def chunked(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Items in order, `size` at a time."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def _exact(
    dlm: HookedDLM, rows: Sequence[Answered], chunk: Sequence[int], setting: Setting, batch_size: int, met: Met
) -> dict[int, Likelihood]:
    whole, answered = whole_canvas(dlm, [rows[index] for index in chunk], setting.seed, unread=1)
    totals = [edit.memory() for edit in setting.edits]
    values, greedy = exact_scores(dlm, whole, answered, setting.edits, totals)
    met.add(chunk, totals)
    said = map(Likelihood, values.tolist(), greedy.tolist())
    return dict(zip(chunk, said, strict=True))


def _estimated(
    dlm: HookedDLM, rows: Sequence[Answered], chunk: Sequence[int], setting: Setting, batch_size: int, met: Met
) -> dict[int, Likelihood]:
    end, total = _end(dlm, setting), dict.fromkeys(chunk, 0.0)
    closed = {index: Answered(rows[index].prompt, [*rows[index].answer, *end]) for index in chunk}
    draws = [draw for index in chunk for draw in _draws(closed[index], index, setting, len(end))]
    for batch in chunked(draws, batch_size):
        whole, _ = whole_canvas(dlm, [closed[draw.request] for draw in batch], setting.seed)
        hidden = hidden_places(whole, [draw.mask for draw in batch])
        totals = [edit.memory() for edit in setting.edits]
        scores = masked_scores(dlm, whole, hidden, [draw.seed for draw in batch], setting.edits, totals)
        met.add([draw.request for draw in batch], totals)
        for draw, score in zip(batch, scores.tolist(), strict=True):
            total[draw.request] += draw.weight * score
    whole, answered = whole_canvas(dlm, [rows[index] for index in chunk], setting.seed)
    greedy = is_greedy(dlm, whole, answered, setting.edits).tolist()
    return {index: Likelihood(total[index], said) for index, said in zip(chunk, greedy, strict=True)}


def _end(dlm: HookedDLM, setting: Setting) -> list[int]:
    """What Dream's evaluation puts behind a continuation, and never masks."""
    return [dlm.tokenizer.eos_token_id] if setting.estimator == "dream" else []


def _draws(row: Answered, index: int, setting: Setting, end: int) -> list[_Draw]:
    """The draws of a row that mask something, each with its share of the mean. Unedited, equal masks are one draw."""
    noise = ESTIMATORS[setting.estimator](setting.mc_num, len(row.answer) - end, setting.seed)
    mask = np.concatenate([noise.masks, np.zeros((len(noise.masks), end), bool)], 1)
    found = [
        _Draw(index, mask[number], weight / len(mask), draw_seed(setting.seed, number))
        for number, weight in enumerate(noise.weights.tolist())
        if mask[number].any()
    ]
    if setting.edits:
        return found
    alike = groupby(sorted(found, key=lambda draw: draw.mask.tobytes()), key=lambda draw: draw.mask.tobytes())
    groups = [list(group) for _, group in alike]
    return [group[0]._replace(weight=sum(draw.weight for draw in group)) for group in groups]
