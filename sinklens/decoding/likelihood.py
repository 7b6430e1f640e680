"""How likely a model finds a given answer, also under edits: Monte-Carlo for diffusion models, exact for baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.decoding.answers import Answered, answered_rows
from sinklens.decoding.forwards import forward, watch
from sinklens.decoding.loop import check_edits
from sinklens.decoding.prompts import left_padded, seeds_for
from sinklens.errors import PlanError, ScopeError
from sinklens.hooks import Canvas, Edit, Memory
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.norms import keep_watched
from sinklens.models.outline import Sketched
from sinklens.models.prompts import Given
from sinklens.values.kinds import read, whole_number


@torch.no_grad()
def log_likelihood(
    dlm: HookedDLM,
    prompts: Given,
    answers: Given,
    *,
    separator: str | None = " ",
    chat: bool = False,
    interventions: Sequence[Edit] = (),
    memories: Sequence[Memory] | None = None,
    samples: int = 16,
    seed: int | Sequence[int] = 0,
) -> Float[Tensor, " prompt"]:
    """Log-likelihood of each answer behind its prompt, in nats per answer token.

    Diffusion models: LLaDA's estimator. For `samples` draws, x of the L answer tokens are masked at random, and
    `(L / x) * sum over masked of log p(token)` is averaged; the x are stratified over 1..L as in its
    `get_log_likelihood`, but halves are rounded up: rounded to even, as there, even x come too often and the estimate
    is biased. The Monte-Carlo error falls with 1 / sqrt(samples). Autoregressive models: exact, from one forward.
    Source: LLaDA (arXiv 2502.09992) and its released code; dividing by L is sinklens's.

    An edit acts on each canvas by itself and remembers nothing of the others: one that looks at the step before is
    shown the same canvas first, unedited. What an edit draws at random differs from draw to draw.

    Args:
        dlm: The model.
        prompts: One prompt or several, in any form that `denoise` takes.
        answers: As many, as texts or token ids. A text is encoded together with its prompt (`answers.answered_rows`).
        separator: What stands between a prompt and an answer that are texts, where the prompt ends in no white space;
            None puts them together as they are written.
        chat: Put prompts that are texts into the chat template, as `Plan(chat=True)` does.
        interventions: Edits; their scope may name no steps, for a canvas that does not change has none.
        memories: One for each edit (`edit.memory()`), to which is added what it counts over all draws.
        samples: Monte-Carlo draws per prompt; the same masks under every edit.
        seed: One seed, or one per prompt.

    Raises:
        PlanError: what exceeds the context, or begins with nothing; another number of answers than of prompts.
        PromptError: a prompt or an answer that cannot be read; an empty answer.
        ScopeError: an edit that names steps, or edits that overlap.
    """
    samples = whole_number("samples", samples, 1, error=PlanError)
    interventions = read("interventions", interventions, Sequence[Edit])
    rows = answered_rows(dlm, prompts, answers, separator=separator, chat=chat)
    whole, answered = whole_canvas(dlm, rows, seed)
    for leaf in (leaf for edit in interventions for leaf in edit.leaves()):
        if leaf.where.steps is not None:
            raise ScopeError(f"{leaf!r} names steps, and a likelihood has none; use a metric of the denoising run")
    check_edits(dlm, whole, interventions)
    keep_watched(dlm)
    totals = [edit.memory() for edit in interventions] if memories is None else memories
    if dlm.is_causal:
        scored = _log_probabilities(dlm, whole, whole, interventions, totals)
        return scored.where(answered, 0.0).sum(-1) / answered.sum(-1)
    lengths = answered.sum(-1).tolist()
    masks = [_masks(samples, length, row_seed) for length, row_seed in zip(lengths, whole.seeds, strict=True)]
    total = torch.zeros(len(lengths), dtype=torch.float64, device=dlm.device)
    for draw in range(samples):
        hidden = torch.zeros_like(answered)
        for row, drawn in enumerate(masks):
            hidden[row, hidden.shape[1] - drawn.shape[1] :] = torch.from_numpy(drawn[draw]).to(hidden.device)
        tokens = whole.tokens.masked_fill(hidden, dlm.ids.mask or 0)
        canvas = replace(whole, tokens=tokens, masked=hidden, seeds=tuple(_seed(seed, draw) for seed in whole.seeds))
        scored = _log_probabilities(dlm, canvas, whole, interventions, totals)
        total += scored.where(hidden, 0.0).sum(-1).double() / hidden.sum(-1)
    return (total / samples).float()


def whole_canvas(
    dlm: Sketched, rows: Sequence[Answered], seed: int | Sequence[int]
) -> tuple[Canvas, Bool[Tensor, "prompt pos"]]:
    """Prompts with their answers, and where the answers are.

    Raises:
        PlanError: what cannot be scored.
    """
    empty = [index for index, row in enumerate(rows) if not row.prompt]
    if dlm.is_causal and empty:
        raise PlanError(f"prompt {empty[0]} is empty, and {dlm.name} has no BOS token to begin with")
    full = [[*row.prompt, *row.answer] for row in rows]
    width = max(map(len, full))
    if width > dlm.n_ctx:
        raise PlanError(f"the longest prompt and answer have {width} tokens, more than the context of {dlm.n_ctx}")
    tokens, valid, _ = left_padded(dlm, full)
    begin = torch.tensor([width - len(row.answer) for row in rows], device=tokens.device)
    answered = torch.arange(width, device=tokens.device) >= begin[:, None]
    none = torch.zeros_like(valid)
    return Canvas(tokens, valid, none, valid & ~answered, seeds=seeds_for(seed, len(rows))), answered


def _masks(samples: int, length: int, seed: int) -> np.ndarray:
    """Which answer tokens each draw masks [sample, token]; every count 1..L is as likely as any other."""
    rng = np.random.default_rng([0x11DE, seed % 2**63])
    first = int(rng.integers(1, length + 1))
    spread = np.floor(np.arange(samples) * length / samples + 0.5).astype(int)
    counts = (first + spread - 1) % length
    return np.stack([rng.permutation(length) <= count for count in counts])


def _seed(seed: int, draw: int) -> int:
    """The seed of a row at a draw, for edits that draw random numbers."""
    return int(np.random.default_rng([0x11DE, seed % 2**63, draw]).integers(2**62))


def _log_probabilities(
    dlm: HookedDLM, canvas: Canvas, whole: Canvas, interventions: Sequence[Edit], totals: Sequence[Memory]
) -> Float[Tensor, "prompt pos"]:
    """Log p of the token of `whole` at every position of a canvas, under edits that remember nothing."""
    memories = [edit.memory(None, whole) for edit in interventions]
    watch(dlm, canvas, interventions, memories)
    logits = dlm.by_position(forward(dlm, canvas, interventions, memories))[:, : whole.tokens.shape[1]]
    for total, memory in zip(totals, memories, strict=True):
        total.add(memory)
    return logits.float().log_softmax(-1).gather(-1, whole.tokens[..., None])[..., 0]
