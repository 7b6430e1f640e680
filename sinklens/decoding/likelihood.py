"""How likely a model finds a given answer, also under edits: Monte-Carlo for diffusion models, exact for baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.decoding.prompts import Prompt, as_list
from sinklens.errors import PlanError, ScopeError
from sinklens.hooks import Canvas, Intervention, attached, leaves
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.records import seeds_for


@torch.no_grad()
def log_likelihood(
    dlm: HookedDLM,
    prompts: Prompt | Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    *,
    interventions: Sequence[Intervention] = (),
    samples: int = 16,
    seed: int | Sequence[int] = 0,
) -> Float[Tensor, " prompt"]:
    """Log-likelihood of each answer behind its prompt, in nats per answer token.

    Diffusion models: LLaDA's estimator. For `samples` draws, x of the L answer tokens are masked at random, and
    `(L / x) * sum over masked of log p(token)` is averaged; the x are stratified over 1..L as in its
    `get_log_likelihood`, but halves are rounded up: rounded to even, as there, even x come too often and the estimate
    is biased. The Monte-Carlo error falls with 1 / sqrt(samples). Autoregressive models: exact, from one forward.
    Source: LLaDA (arXiv 2502.09992) and its released code; dividing by L is sinklens's.

    An edit acts on each canvas by itself: one whose detector looks at the step before is shown the same canvas first,
    unedited.

    Args:
        dlm: The model.
        prompts: One prompt or several.
        answers: Token ids of each answer, at least one.
        interventions: Edits; their scope may name no steps, for a canvas that does not change has none.
        samples: Monte-Carlo draws per prompt; the same masks under every edit.
        seed: One seed, or one per prompt.

    Raises:
        PlanError: an empty answer, or a number of answers other than that of prompts.
        ScopeError: an edit that names steps.
    """
    rows = [dlm.encode(prompt) for prompt in as_list(prompts)]
    if samples < 1:
        raise PlanError(f"samples={samples} must be at least 1")
    if not all(rows):
        raise PlanError(f"prompt {rows.index([])} is empty; give at least one token, for example the BOS token")
    wrong = [token for answer in answers for token in answer if not 0 <= token < dlm.cfg.d_vocab]
    if wrong:
        raise PlanError(f"token id {wrong[0]} of an answer is outside the vocabulary of {dlm.cfg.d_vocab}")
    if len(rows) != len(answers) or not all(len(answer) for answer in answers):
        raise PlanError(
            f"{len(rows)} prompts need as many answers, of at least one token each; there are {len(answers)}"
        )
    for edit in (leaf for whole in interventions for leaf in leaves(whole)):
        edit.where.validate(dlm.n_layers, dlm.n_heads, None)
        if edit.where.steps is not None:
            raise ScopeError(f"{edit!r} names steps, and a likelihood has none; use a metric of the denoising run")
    seeds = seeds_for(seed, len(rows))
    full = [[*row, *answer] for row, answer in zip(rows, answers, strict=True)]
    width = max(map(len, full))
    if width > dlm.n_ctx:
        raise PlanError(f"the longest prompt and answer have {width} tokens, more than the context of {dlm.n_ctx}")
    pad = dlm.ids.pad if dlm.ids.pad is not None else 0
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in full], device=dlm.device)
    place = torch.arange(width, device=dlm.device)
    lengths = torch.tensor([len(answer) for answer in answers], device=dlm.device)
    starts = torch.tensor([width - len(row) for row in full], device=dlm.device)
    valid, answered = place >= starts[:, None], place >= (width - lengths)[:, None]
    clean = Canvas(tokens, valid, torch.zeros_like(valid), valid & ~answered, seeds=seeds)
    for edit in interventions:
        getattr(edit, "check", lambda *_: None)(dlm, clean)
        edit.reset(None)
    if dlm.is_causal:
        scored = _log_probabilities(dlm, clean, interventions, tokens)
        return (scored * answered).sum(-1) / lengths
    masks = [_masks(samples, int(length), row_seed) for length, row_seed in zip(lengths, seeds, strict=True)]
    total = torch.zeros(len(rows), dtype=torch.float64, device=dlm.device)
    for draw in range(samples):
        hidden = torch.zeros_like(valid)
        for row, drawn in enumerate(masks):
            hidden[row, width - len(drawn[draw]) :] = torch.from_numpy(drawn[draw]).to(hidden.device)
        canvas = replace(clean, tokens=tokens.masked_fill(hidden, dlm.ids.mask or 0), masked=hidden, step=3 * draw)
        scored = _log_probabilities(dlm, canvas, interventions, tokens)
        total += (scored * hidden).sum(-1).double() / hidden.sum(-1)
    return (total / samples).float()


def _masks(samples: int, length: int, seed: int) -> np.ndarray:
    """Which answer tokens each draw masks [sample, token]; every count 1..L is as likely as any other."""
    rng = np.random.default_rng([0x11DE, seed % 2**63])
    first = int(rng.integers(1, length + 1))
    spread = np.floor(np.arange(samples) * length / samples + 0.5).astype(int)
    counts = (first + spread - 1) % length
    return np.stack([rng.permutation(length) <= count for count in counts])


def _log_probabilities(
    dlm: HookedDLM, canvas: Canvas, interventions: Sequence[Intervention], targets: Tensor
) -> Float[Tensor, "prompt pos"]:
    """Log p(target) at every position, under the edits."""
    looks_back = any(getattr(leaf, "watches_before", False) for edit in interventions for leaf in leaves(edit))
    logits = None
    for step in range(canvas.step + 1 - looks_back, canvas.step + 2):
        # Before the step that counts edits may look but not act: no row is active.
        looks = step == canvas.step
        now = replace(canvas, step=step, active=torch.zeros_like(canvas.valid[:, 0]) if looks else None)
        beside = [part for edit in interventions for part in getattr(edit, "clean", ())]
        if beside:
            with attached(dlm, beside, now, {}):
                dlm(now.tokens, now.valid)
        with attached(dlm, interventions, now, {}):
            logits = dlm(now.tokens, now.valid)
    scores = logits.float().log_softmax(-1) if logits is not None else torch.zeros(0)
    if dlm.is_causal:  # row i scores token i + 1
        scores = torch.cat([torch.zeros_like(scores[:, :1]), scores[:, :-1]], 1)
    return scores.gather(-1, targets[..., None])[..., 0]
