"""How likely a model finds a given answer, also under edits: Monte-Carlo for diffusion models, exact for baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding.answers import Answered, answered_rows
from sinklens.decoding.forwards import forward, watch
from sinklens.decoding.loop import check_edits
from sinklens.decoding.noising import llada
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

    Diffusion models: LLaDA's estimator (`noising.llada`). For `samples` draws, x of the L answer tokens are masked at
    random, and `(L / x) * sum over masked of log p(token)` is averaged. The Monte-Carlo error falls with
    1 / sqrt(samples). Autoregressive models: exact, from one forward.
    Source: LLaDA (arXiv 2502.09992) and its released code; dividing by L is sinklens's.

    An edit acts on each canvas by itself and remembers nothing of the others: one that looks at the step before is
    shown the same canvas first, unedited. What an edit draws at random differs from draw to draw.

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> sl.log_likelihood(dlm, "molma telme talko xa", "talko", samples=2)
        tensor([-0.0003])

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
    check_stepless(dlm, whole, interventions)
    keep_watched(dlm)
    totals = [edit.memory() for edit in interventions] if memories is None else memories
    if dlm.is_causal:
        scored = _scored(dlm, whole, whole, interventions, totals).log_p
        return scored.where(answered, 0.0).sum(-1) / answered.sum(-1)
    lengths = answered.sum(-1).tolist()
    draws = [llada(samples, length, row_seed) for length, row_seed in zip(lengths, whole.seeds, strict=True)]
    total = torch.zeros(len(lengths), dtype=torch.float64)
    for draw in range(samples):
        hidden = hidden_places(whole, [noise.masks[draw] for noise in draws])
        seeds = tuple(draw_seed(seed, draw) for seed in whole.seeds)
        total += masked_scores(dlm, whole, hidden, seeds, interventions, totals) / hidden.sum(-1).cpu()
    return (total / samples).float().to(dlm.device)


def hidden_places(whole: Canvas, masks: Sequence[np.ndarray]) -> Bool[Tensor, "prompt pos"]:
    """Where the masked tokens of answers stand on a canvas; answers end where rows end, masks may end before."""
    hidden = torch.zeros_like(whole.valid)
    for row, mask in enumerate(masks):
        hidden[row, hidden.shape[1] - len(mask) :] = torch.from_numpy(mask).to(hidden.device)
    return hidden


def draw_seed(seed: int, draw: int) -> int:
    """The seed of a row at a draw, for edits that draw random numbers."""
    return int(np.random.default_rng([0x11DE, seed % 2**63, draw]).integers(2**62))


def masked_scores(
    dlm: HookedDLM,
    whole: Canvas,
    hidden: Bool[Tensor, "prompt pos"],
    seeds: Sequence[int],
    interventions: Sequence[Edit],
    totals: Sequence[Memory],
) -> Float[Tensor, " prompt"]:
    """Sum of log p over the hidden tokens of each row, which stand masked, in float64 on the CPU: one draw."""
    canvas = replace(_masked(dlm, whole, hidden), seeds=tuple(seeds))
    scored = _scored(dlm, canvas, whole, interventions, totals).log_p
    return scored.where(hidden, 0.0).sum(-1).double().cpu()


def check_stepless(dlm: Sketched, whole: Canvas, interventions: Sequence[Edit]) -> None:
    """Raise for edits that cannot act on these canvases.

    Raises:
        ScopeError: one that names steps, or has a schedule of them; of a baseline one of the "last" position, which
            predicts nothing that is scored, or one that falls with what is left to commit; or as in `loop.check_edits`.
    """
    for leaf in (leaf for edit in interventions for leaf in edit.leaves()):
        if dlm.is_causal and "last" in (getattr(leaf, "queries", ""), getattr(leaf, "positions", "")):
            raise ScopeError(
                f"{leaf!r} is of the last position, and a likelihood reads a whole answer at once, whose last token "
                "predicts nothing that is scored; say 'all' or 'response', or use a metric of the denoising run"
            )
        if leaf.where.steps is not None:
            raise ScopeError(f"{leaf!r} names steps, and a likelihood has none; use a metric of the denoising run")
        schedule = getattr(leaf, "schedule", "constant")
        if isinstance(schedule, tuple):
            raise ScopeError(
                f"{leaf!r} has a schedule for {len(schedule)} steps, and a likelihood has none; say "
                "schedule='constant', or use a metric of the denoising run"
            )
        if schedule == "linear" and dlm.is_causal:
            raise ScopeError(
                f"{leaf!r} falls with what is left to be committed, and the likelihood of {dlm.name} reads a whole "
                "answer at once; say schedule='constant', or use a metric of the denoising run"
            )
    check_edits(dlm, whole, interventions)


def whole_canvas(
    dlm: Sketched, rows: Sequence[Answered], seed: int | Sequence[int], *, unread: int = 0
) -> tuple[Canvas, Bool[Tensor, "prompt pos"]]:
    """Prompts with their answers, and where the answers are. The last `unread` tokens need no place in the context.

    Raises:
        PlanError: what cannot be scored.
    """
    if dlm.in_blocks is not None:
        raise PlanError(
            f"{dlm.name} sees block by block: its likelihood is a sum over blocks, each behind the true ones before "
            "it, and that is not there yet. Use a metric of the denoising run"
        )
    empty = [index for index, row in enumerate(rows) if not row.prompt]
    if dlm.is_causal and empty:
        raise PlanError(f"prompt {empty[0]} is empty, and {dlm.name} has no BOS token to begin with")
    full = [[*row.prompt, *row.answer] for row in rows]
    width = max(map(len, full))
    if width - unread > dlm.n_ctx:
        raise PlanError(f"the longest prompt and answer have {width} tokens, more than the context of {dlm.n_ctx}")
    tokens, valid, _ = left_padded(dlm, full)
    begin = torch.tensor([width - len(row.answer) for row in rows], device=tokens.device)
    answered = torch.arange(width, device=tokens.device) >= begin[:, None]
    none = torch.zeros_like(valid)
    return Canvas(tokens, valid, none, valid & ~answered, seeds=seeds_for(seed, len(rows))), answered


def exact_scores(
    dlm: HookedDLM,
    whole: Canvas,
    answered: Bool[Tensor, "prompt pos"],
    interventions: Sequence[Edit],
    totals: Sequence[Memory],
) -> tuple[Float[Tensor, " prompt"], Bool[Tensor, " prompt"]]:
    """Of a baseline: the log-likelihood of each answer in nats, and whether each token of it is the likeliest.

    As in lm-evaluation-harness an answer's last token is predicted and not read.
    """
    names = ("tokens", "valid", "masked", "prompt")
    read = replace(whole, **{name: getattr(whole, name)[:, :-1] for name in names})
    scored = _scored(dlm, read, whole, interventions, totals)
    right = (scored.likeliest[0] == whole.tokens) | ~answered
    return scored.log_p.where(answered, 0.0).sum(-1), right.all(-1)


def is_greedy(
    dlm: HookedDLM, whole: Canvas, answered: Bool[Tensor, "prompt pos"], interventions: Sequence[Edit]
) -> Bool[Tensor, " prompt"]:
    """Of a diffusion model: whether it writes each answer when every forward commits the one token it is surest of.

    Every forward sees edits as in `log_likelihood`. A row that has committed another token than the answer's is done.
    Source: `suffix_greedy_prediction` of LLaDA's released evaluation.
    """
    hidden, right = answered.clone(), torch.ones_like(answered[:, 0])
    apart = [edit.memory() for edit in interventions]
    while bool(hidden.any()):
        token, sure = _scored(dlm, _masked(dlm, whole, hidden), whole, interventions, apart).likeliest
        place = sure.masked_fill(~hidden, -torch.inf).argmax(-1, keepdim=True)
        wrong = (token != whole.tokens).gather(-1, place)[:, 0] & hidden.any(-1)
        right &= ~wrong
        hidden = hidden.scatter(-1, place, False) & ~wrong[:, None]
    return right


class Scored(NamedTuple):
    """What a forward says of the tokens of a whole canvas.

    Attributes:
        log_p: Log-probability of each [prompt, pos].
        likeliest: The token that it would write there [prompt, pos], and that one's log-probability.
    """

    log_p: Float[Tensor, "prompt pos"]
    likeliest: tuple[Int[Tensor, "prompt pos"], Float[Tensor, "prompt pos"]]


def _masked(dlm: HookedDLM, whole: Canvas, hidden: Bool[Tensor, "prompt pos"]) -> Canvas:
    return replace(whole, tokens=whole.tokens.masked_fill(hidden, dlm.ids.mask or 0), masked=hidden)


def _scored(
    dlm: HookedDLM, canvas: Canvas, whole: Canvas, interventions: Sequence[Edit], totals: Sequence[Memory]
) -> Scored:
    """What a forward of a canvas says of the tokens of `whole`, under edits that remember nothing."""
    memories = [edit.memory(None, whole) for edit in interventions]
    watch(dlm, canvas, interventions, memories)
    logits = dlm.by_position(forward(dlm, canvas, interventions, memories))[:, : whole.tokens.shape[1]]
    for total, memory in zip(totals, memories, strict=True):
        total.add(memory)
    log_p = logits.float().log_softmax(-1)
    best, token = log_p.max(-1)
    return Scored(log_p.gather(-1, whole.tokens[..., None])[..., 0], (token, best))
