"""From prompts to the canvas of the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.decoding.blocks import counts
from sinklens.decoding.plan import Plan
from sinklens.decoding.plan_rules import ANY_STEPS
from sinklens.errors import PlanError
from sinklens.hooks import Canvas
from sinklens.models.outline import Sketched
from sinklens.models.padding import padded
from sinklens.models.prompts import Given, read_prompts, rows_beside
from sinklens.sinks.tokens import in_vocabulary
from sinklens.values.kinds import Seed, read


@dataclass(frozen=True)
class Start:
    """Prompts, tokenised and laid out once, with the plan that is carried out: what a run begins with.

    Attributes:
        plan: With its defaults filled in.
        canvas: Before the first step.
        starts: Where each row begins on the canvas.
        limits: The most steps that each row can take.
    """

    plan: Plan
    canvas: Canvas
    starts: list[int]
    limits: list[int]

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if the model decides (a threshold)."""
        return None if self.plan.threshold is not None else max(self.limits)

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return self.canvas.tokens.shape[1] - min(self.starts)


def prepare(dlm: Sketched, prompts: Given, plan: Plan | None, seed: int | Sequence[int] = 0) -> Start:
    """Tokenise prompts, fill in the plan's defaults, and check both against each other and the model.

    Args:
        dlm: The model, or its outline.
        prompts: One prompt or several (`token_rows`).
        plan: How to decode; `Plan()` when None.
        seed: One seed, or one per prompt.

    Raises:
        PlanError: before any forward, for what cannot be carried out.
        PromptError: likewise, for what cannot be read.
    """
    plan = plan or Plan()
    return prepare_rows(dlm, token_rows(dlm, prompts, chat=plan.chat), plan, seed)


def prepare_rows(dlm: Sketched, rows: Sequence[Sequence[int]], plan: Plan, seed: int | Sequence[int] = 0) -> Start:
    """`prepare` of prompts that are tokenised already."""
    resolved = plan.resolved(dlm)
    canvas, starts = first_canvas(dlm, rows, resolved, seeds_for(seed, len(rows)))
    return Start(resolved, canvas, starts, step_limits(dlm, resolved, canvas))


def token_rows(dlm: Sketched, prompts: Given, *, chat: bool = False) -> list[list[int]]:
    """One prompt or several, in any form (`models.prompts`), as rows of token ids without pads.

    Args:
        dlm: The model, or its outline.
        prompts: A text, token ids, an encoding, messages, or several of them, in any mixture.
        chat: Put texts into the chat template.

    Raises:
        PlanError: no prompt at all.
        PromptError: what cannot be read, or read in two ways.
    """
    read = read_prompts(prompts)
    if not read:
        raise PlanError("prompts is empty; give at least one (an empty prompt is '', or [[]])")
    return [dlm.encode(each, chat=chat, beside=rows_beside(read)) for each in read]


def seeds_for(seed: int | Sequence[int], rows: int) -> tuple[int, ...]:
    """One seed per row: the same for all, so that a row draws the same numbers in any batch.

    Raises:
        ContentError: a seed that is no whole number of at least 0.
        ValueError: not as many as rows.
    """
    seed = read("seed", seed, Seed | Sequence[Seed])
    if isinstance(seed, int):
        return (seed,) * rows
    if len(seed) != rows:
        raise ValueError(f"seed has {len(seed)} entries for {rows} prompts; give one integer, or one per prompt")
    return tuple(seed)


def first_canvas(
    dlm: Sketched, rows: Sequence[Sequence[int]], plan: Plan, seeds: Sequence[int]
) -> tuple[Canvas, list[int]]:
    """The canvas before the first step (prompts left-padded, masks to the right), and where each row starts.

    Raises:
        PlanError: a prompt that does not fit the context, one without or with gaps when it should not, an empty one
            for a baseline.
    """
    # A baseline has no mask token; what stands at a position that it has not generated is never seen.
    mask = dlm.ids.mask if dlm.ids.mask is not None else _padding(dlm)
    closing = dlm.closing
    for index, row in enumerate(rows):
        gaps = sum(token == dlm.ids.mask for token in row) if dlm.ids.mask is not None else 0
        if not row and dlm.is_causal:
            raise PlanError(
                f"prompt {index} is empty, and {dlm.name} has no BOS token to begin with; an autoregressive model "
                "needs one token at least"
            )
        if len(row) + plan.new_tokens > dlm.n_ctx:
            raise PlanError(
                f"prompt {index} has {len(row)} tokens; with new_tokens={plan.new_tokens} that exceeds the context of "
                f"{dlm.n_ctx}"
            )
        if plan.new_tokens == 0 and not gaps:
            raise PlanError(f"new_tokens=0 fills gaps, and prompt {index} holds no mask token")
        if plan.new_tokens > 0 and closing and list(row[-1:]) == closing:
            raise PlanError(
                f"prompt {index} ends in {closing}, as every text of {dlm.name} does, and nothing follows that. Put "
                "mask tokens where they belong in the text, and say new_tokens=0; or give messages, or token ids "
                "without that end, behind which new tokens are appended"
            )
        if plan.new_tokens > 0 and gaps and not plan.allow_mask:
            raise PlanError(f"prompt {index} holds {gaps} mask tokens; to fill gaps say new_tokens=0")
        if dlm.is_causal and plan.new_tokens == 0 and row[0] == dlm.ids.mask:
            raise PlanError(f"prompt {index} begins with a gap; an autoregressive model needs a token before it")
        several = plan.steps is not None and plan.steps > gaps and plan.sampler not in ANY_STEPS
        if plan.new_tokens == 0 and several and plan.threshold is None:
            raise PlanError(f"steps={plan.steps} is more than the {gaps} gaps of prompt {index}")
    tokens, valid, starts = left_padded(dlm, [[*row, *[mask] * plan.new_tokens] for row in rows])
    longest = tokens.shape[1] - plan.new_tokens
    response = (torch.arange(tokens.shape[1], device=dlm.device) >= longest).expand_as(valid)
    gap = valid & (tokens == dlm.ids.mask) if dlm.ids.mask is not None else torch.zeros_like(valid)
    masked = response | gap
    return Canvas(tokens, valid, masked, valid & ~masked, step=0, seeds=tuple(seeds)), starts


def left_padded(
    dlm: Sketched, rows: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], list[int]]:
    """Rows of token ids as one batch, padded on the left: tokens, which positions are real, and where rows start."""
    tokens, valid = padded(rows, _padding(dlm))
    starts = [tokens.shape[1] - len(row) for row in rows]
    return tokens.to(dlm.device), valid.to(dlm.device), starts


def _padding(dlm: Sketched) -> int:
    return dlm.ids.pad if dlm.ids.pad is not None else 0


def step_limits(dlm: Sketched, plan: Plan, canvas: Canvas) -> list[int]:
    """The most steps that each row can take."""
    masks, in_blocks = canvas.masked.sum(-1).tolist(), counts(dlm, plan, canvas)
    if in_blocks is not None and plan.threshold is None:
        return [len(row) for row in in_blocks]
    each = masks if dlm.is_causal or plan.steps is None or plan.threshold is not None else [plan.steps] * len(masks)
    return [steps + plan.more for steps in each]


def forced_tokens(dlm: Sketched, canvas: Canvas, force: Sequence[Sequence[int]]) -> Tensor:
    """The canvas with every gap filled by the tokens to be forced.

    Raises:
        PlanError: not as many as there are gaps, or a token that the model does not have.
    """
    force = read("force", force, Sequence[Sequence[int]], PlanError)
    if len(force) != len(canvas.tokens):
        raise PlanError(f"force has {len(force)} entries for {len(canvas.tokens)} prompts")
    out = canvas.tokens.clone()
    for row, tokens in enumerate(force):
        places = canvas.masked[row]
        if len(tokens) != int(places.sum()):
            raise PlanError(f"force[{row}] has {len(tokens)} tokens for {int(places.sum())} positions to fill")
        in_vocabulary(dlm, tokens, f"force[{row}]", PlanError)
        out[row, places] = torch.tensor(tokens, dtype=torch.long, device=out.device)
    return out
