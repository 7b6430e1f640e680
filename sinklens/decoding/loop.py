"""The denoising loop, in the open: Step and denoising_steps(). `running.denoise` keeps what it hands out."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import Prompt, as_list, first_canvas, forced_tokens, step_limits
from sinklens.decoding.remasking import Draws
from sinklens.decoding.samplers import Causal, Diffusion
from sinklens.errors import PlanError, ScopeError
from sinklens.hooks import Canvas, Intervention, Probe, attached, leaves, overlap, wanted
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.records import seeds_for


class Trajectory(Protocol):
    """Which token was committed where and when: a `Run` is one."""

    tokens: Int[Tensor, "prompt pos"]
    commit_step: Int[Tensor, "prompt pos"]


@dataclass(frozen=True)
class Step:
    """One denoising step, after its forward.

    Attributes:
        index: 0 at the first forward.
        canvas: What the forward saw.
        tokens: The canvas after the step [batch, pos].
        committed: Positions that this step committed [batch, pos].
        predicted: The token that the model chose at each masked position [batch, pos].
        confidence: The remasking rule's confidence there [batch, pos]; nan elsewhere.
        logits: As `dlm(tokens)` gives them, [batch, pos, vocab].
        active: Rows that were still being decoded [batch].
    """

    index: int
    canvas: Canvas
    tokens: Int[Tensor, "batch pos"]
    committed: Bool[Tensor, "batch pos"]
    predicted: Int[Tensor, "batch pos"]
    confidence: Float[Tensor, "batch pos"]
    logits: Float[Tensor, "batch seen vocab"]
    active: Bool[Tensor, " batch"]


@torch.no_grad()
def denoising_steps(
    dlm: HookedDLM,
    prompts: Prompt | Sequence[Prompt],
    plan: Plan | None = None,
    *,
    seed: int | Sequence[int] = 0,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Intervention] = (),
    force: Sequence[Sequence[int]] | None = None,
    follow: Trajectory | None = None,
    fired: dict[str, int] | None = None,
) -> Generator[Step, None, None]:
    """Decode step by step; every step is handed out when its forward is done.

    Args:
        dlm: A diffusion model, or an autoregressive baseline (one committed token per step).
        prompts: One prompt or several, as text or token ids, of any lengths.
        plan: How to decode.
        seed: One seed, or one per prompt. A row's result does not depend on the batch that it is in.
        probes: Measurements, attached after the edits.
        interventions: Edits of the model.
        force: Teacher forcing: for each prompt the tokens to commit, in order of position. Which position a step
            commits is still the model's choice; `predicted` keeps what it would have written.
        follow: Another run of the same prompts and plan, whose commits are repeated: the same tokens at the same
            steps, whatever the model says now. Every forward sees the canvas that it saw there, so what an edit does
            at one step is not mixed with what it did before.
        fired: Filled with firing counts.

    Raises:
        PlanError: before the first forward, for a plan that cannot be carried out.
        ScopeError: before the first forward, for a scope that selects nothing, or edits that overlap.
        HookNeverFired: at the first step at which an attached hook is not called.
    """
    rows = as_list(prompts)
    plan = (plan or Plan()).resolved(dlm)
    seeds = seeds_for(seed, len(rows))
    canvas, starts = first_canvas(dlm, rows, plan, seeds)
    limits = step_limits(dlm, plan, canvas)
    total = max(limits) if plan.threshold is None else None
    if interventions and plan.cfg_scale:
        raise PlanError(
            f"cfg_scale={plan.cfg_scale:g}: edits under classifier-free guidance have no one meaning; use 0"
        )
    for part in (leaf for whole in (*interventions, *probes) for leaf in leaves(whole)):
        part.where.validate(dlm.n_layers, dlm.n_heads, total, min(limits))
    for index, edit in enumerate(interventions):
        for other in interventions[:index]:
            if any(overlap(a.where, b.where, dlm, total) for a in leaves(edit) for b in leaves(other)):
                raise ScopeError(
                    f"{other!r} and {edit!r} act on the same heads at the same steps, so their order matters; say it "
                    "with interventions=[InOrder(first, second)], or give them scopes that do not meet"
                )
        getattr(edit, "check", lambda *_: None)(dlm, canvas)
        edit.reset(total)
    if follow is not None:
        _check_followed(follow, canvas, force)
    forced = follow.tokens.to(canvas.tokens.device) if follow is not None else None
    forced = forced_tokens(canvas, force) if force is not None else forced
    when = follow.commit_step.to(canvas.tokens.device) if follow is not None else None
    fired = {} if fired is None else fired
    yield from _loop(dlm, plan, canvas, starts, limits, probes, interventions, forced, when, fired)


def _check_followed(follow: Trajectory, canvas: Canvas, force: object) -> None:
    if force is not None:
        raise PlanError("follow and force both say which tokens to commit; give one of them")
    if follow.tokens.shape != canvas.tokens.shape:
        raise PlanError(
            f"follow has a canvas of {tuple(follow.tokens.shape)} and these prompts have {tuple(canvas.tokens.shape)}; "
            "follow a run of the same prompts and plan"
        )
    tokens, steps = follow.tokens.to(canvas.tokens.device), follow.commit_step.to(canvas.tokens.device)
    given = canvas.valid & ~canvas.masked
    if bool((given & (tokens != canvas.tokens)).any()) or bool((~canvas.masked & (steps >= 0)).any()):
        raise PlanError("follow is a run of other prompts; follow a run of the same prompts and plan")


def _loop(
    dlm: HookedDLM,
    plan: Plan,
    canvas: Canvas,
    starts: list[int],
    limits: list[int],
    probes: Sequence[Probe],
    interventions: Sequence[Intervention],
    forced: Tensor | None,
    when: Tensor | None,
    fired: dict[str, int],
) -> Iterator[Step]:
    given = canvas
    draws = Draws(canvas.seeds, starts)
    chooser = Causal(dlm, plan, draws) if dlm.is_causal else Diffusion(dlm, plan, draws, given, limits)
    total = None if plan.threshold is not None else max(limits)
    limit = torch.tensor(limits, device=canvas.tokens.device)
    done = torch.zeros(len(limits), dtype=torch.bool, device=canvas.tokens.device)
    last = when.amax(-1) if when is not None else None
    step = 0
    while True:
        active = canvas.masked.any(-1) & ~done
        active &= (step < limit) if plan.threshold is None else torch.ones_like(active)
        if last is not None:
            active &= step <= last
        if not bool(active.any()):
            return
        seen = chooser.seen(replace(canvas, step=step, active=active))
        # What an edit wants to know of the unedited model at this very canvas.
        clean = [part for edit in interventions for part in getattr(edit, "clean", ()) if wanted(edit, step, total)]
        if clean:
            with attached(dlm, clean, seen, fired):
                dlm(seen.tokens, seen.valid)
        parts = [part for part in (*interventions, *probes) if wanted(part, step, total)]
        with attached(dlm, parts, seen, fired):
            logits = dlm(seen.tokens, seen.valid)
        predicted, confidence, commit = chooser.choose(logits, canvas, active, step)
        if when is not None:
            commit = (when == step) & active[:, None]
        token = predicted if forced is None else forced
        tokens = torch.where(commit, token, canvas.tokens)
        still = canvas.masked & ~(commit & (tokens != dlm.ids.mask) if plan.allow_mask else commit)
        yield Step(step, seen, tokens, commit, predicted, confidence, logits, active)
        canvas = replace(canvas, tokens=tokens, masked=still)
        if dlm.is_causal and plan.new_tokens and forced is None and dlm.ids.eos is not None:
            done |= (commit & (tokens == dlm.ids.eos)).any(-1)
        step += 1
