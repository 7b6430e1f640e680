"""The denoising loop, in the open: Step and denoising_steps(). `run.denoise` keeps what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from sinklens.decoding.fold import Trajectory
from sinklens.decoding.forwards import forward, labels_of, store
from sinklens.decoding.masks import refuse_masks
from sinklens.decoding.past import check_past, past_of
from sinklens.decoding.plan import Plan
from sinklens.decoding.plan_rules import REMASKS
from sinklens.decoding.prompts import Start, forced_tokens, prepare
from sinklens.decoding.samplers import sampler_for
from sinklens.decoding.samplers.base import Choice
from sinklens.decoding.step import Moment, Step
from sinklens.decoding.stores import Stores, wanted
from sinklens.errors import PlanError, ScopeError
from sinklens.hooks import Canvas, Edit, Probe, usual_queries
from sinklens.interrupts import surely
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.norms import keep_watched
from sinklens.models.outline import Sketched
from sinklens.models.prompts import Given
from sinklens.values.kinds import Seed, reads

R = TypeVar("R")


@reads("prompts", "force")
def denoising_steps(
    dlm: HookedDLM,
    prompts: Given,
    plan: Plan | None = None,
    *,
    seed: Seed | Sequence[Seed] = 0,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Edit] = (),
    force: Sequence[Sequence[int]] | None = None,
    follow: Trajectory | None = None,
) -> Generator[Step, None, None]:
    """Decode step by step; every step is handed out when its forward is done.

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> steps = sl.denoising_steps(dlm, ["molma telme"], sl.Plan(new_tokens=6, steps=3))
        >>> [int(step.committed.sum()) for step in steps]
        [2, 2, 2]

    Args:
        dlm: A diffusion model, or an autoregressive baseline (one committed token per step).
        prompts: One prompt or several, of any lengths: texts, token ids (lists, tensors), encodings of a tokenizer
            (their attention mask says what is padding), or lists of messages for the chat template; "" and [[]] are
            the empty prompt, which is BOS, or nothing where the checkpoint has none (diffusion models only).
        plan: How to decode.
        seed: One seed, or one per prompt. In float32 a row's tokens depend neither on the batch that it is in nor on
            probes. In bfloat16 and float16 rounding depends on the batch, and under `dlm.attention = "auto"` on probes.
        probes: Measurements, attached after the edits.
        interventions: Edits of the model.
        force: Teacher forcing: for each prompt the tokens to commit, in order of position. Which position a step
            commits is still the model's choice; `predicted` keeps what it would have written.
        follow: Another run of the same prompts and plan, whose commits are repeated: the same tokens at the same
            steps, whatever the model says now. Every forward sees the canvas that it saw there, so what an edit does
            at one step is not mixed with what it did before.

    Raises:
        PlanError: before the first forward, for a plan that cannot be carried out.
        PromptError: before the first forward, for a prompt that cannot be read, or in two ways.
        ScopeError: before the first forward, for a scope that selects nothing, or edits that overlap.
        HookNeverFired: at the first step at which an attached hook is not called.
        NotFinite: at the first step whose logits are nan or infinite, with the layer that made them so.
    """
    start = prepare(dlm, prompts, plan, seed)
    yield from steps_from(dlm, start, probes=probes, interventions=interventions, force=force, follow=follow)


def steps_from(
    dlm: HookedDLM,
    start: Start,
    *,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Edit] = (),
    force: Sequence[Sequence[int]] | None = None,
    follow: Trajectory | None = None,
    every_row: bool = True,
    since: Moment | None = None,
) -> Generator[Step, None, None]:
    """`denoising_steps` of prompts that are prepared already.

    Without `every_row` a step's logits may be those of the next position alone [batch, 1, vocab]: a baseline decides
    by no others, and an unembedding of a large vocabulary costs as much as many layers.

    `since` takes a run up at one of its steps: the tokens are those that it would have come to, bit for bit, the draws
    included. A baseline's row then goes on to its last position, also behind an EOS.
    """
    check_parts(dlm, start, probes, interventions)
    if follow is not None:
        _check_followed(follow, start.canvas, force)
        follow = follow.on(start.canvas.tokens.device)
    forced = None if force is None else forced_tokens(dlm, start.canvas, force)
    yield from _loop(dlm, start, probes, interventions, forced, follow, every_row, since)


def check_parts(dlm: Sketched, start: Start, probes: Sequence[Probe], interventions: Sequence[Edit]) -> None:
    """Raise for probes and edits that cannot be at work in this run, before anything is."""
    if interventions and start.plan.cfg_scale:
        raise PlanError(
            f"cfg_scale={start.plan.cfg_scale:g}: edits under classifier-free guidance have no one meaning; use 0"
        )
    if interventions and start.plan.resample is not None:
        raise PlanError(
            f"resample={start.plan.resample:g}: edits have no one meaning where some forwards are of a canvas that no "
            "step stands on; leave it out"
        )
    for probe in probes:
        probe.where.validate(dlm.n_layers, dlm.n_heads, start.steps, min(start.limits))
        refuse_masks(dlm, probe)
    check_past(dlm, start.plan, probes, interventions)
    check_edits(dlm, start.canvas, interventions, start.steps, min(start.limits))


def check_edits(
    dlm: Sketched,
    canvas: Canvas,
    interventions: Sequence[Edit],
    steps: int | None = None,
    fewest: int | None = None,
) -> None:
    """Raise for edits that cannot act on this canvas, one by one or together.

    Args:
        dlm: The model.
        canvas: Before the first forward.
        interventions: Edits.
        steps: The most steps that a row takes; None if not known, or if there are none.
        fewest: The fewest.
    """
    sizes = (dlm.n_layers, dlm.n_heads)
    for index, edit in enumerate(interventions):
        for leaf in edit.leaves():
            leaf.where.validate(*sizes, steps, fewest)
            refuse_masks(dlm, leaf)
        for other in interventions[:index]:
            if any(a.where.meets(b.where, *sizes, steps) for a in edit.leaves() for b in other.leaves()):
                raise ScopeError(
                    f"{other!r} and {edit!r} act on the same heads at the same steps, so their order matters; say it "
                    "with interventions=[InOrder(first, second)], or give them scopes that do not meet"
                )
        edit.check(dlm, canvas)


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
    start: Start,
    probes: Sequence[Probe],
    interventions: Sequence[Edit],
    forced: Tensor | None,
    follow: Trajectory | None,
    every_row: bool,
    since: Moment | None,
) -> Iterator[Step]:
    keep_watched(dlm)
    plan, canvas, limits, total = start.plan, start.canvas, start.limits, start.steps
    sampler = sampler_for(dlm, start)
    past = past_of(dlm, plan, probes, interventions, whole=every_row or since is not None)
    memories = tuple(edit.memory(total, canvas) for edit in interventions)
    for memory in memories if plan.sampler in REMASKS else ():
        memory.decides_again()
    fired, named = {}, labels_of([*interventions, *probes])
    forwards = sampler.forwards
    stores = None
    if wanted(dlm, probes, interventions, plan.editing) and sampler.layout is not None:
        stores = Stores(dlm, sampler.layout, probes, interventions, memories, past, forwards, fired)
    stored = () if stores is None else _no_grad(partial(stores.of, canvas, canvas.masked.any(-1)))
    limit = torch.tensor(limits, device=canvas.tokens.device)
    done = torch.zeros(len(limits), dtype=torch.bool, device=canvas.tokens.device)
    last = None if follow is None else follow.last
    if since is not None:
        canvas = since.canvas
        sampler.draws.restore(since.states)
    step = canvas.step

    def look(now: Canvas, canvas: Canvas, active: Tensor, seen: Sequence[dict | None]) -> tuple[Tensor, Choice]:
        last = not every_row and sampler.last_only(canvas, active)
        chosen = now
        if follow is not None and now.levels is None:
            now = replace(now, block=None)  # what is followed may be asked anywhere
        keep = None if past is None else store(dlm, past, chosen, forwards, edited=bool(interventions))
        how: Any = {"last": last, "past": past, "keep": keep, "forwards": forwards}
        logits = forward(dlm, now, interventions, memories, probes, seen, fired, named, **how)
        logits = logits if last else dlm.by_position(logits)
        return logits, sampler.choose(logits, canvas, chosen, active)

    while True:
        active = canvas.masked.any(-1) & ~done & ((step < limit) if plan.threshold is None else True)
        active = active if last is None else active & (step <= last)
        if not bool(active.any()):
            return
        now = sampler.seen(replace(canvas, step=step, active=active))
        now = now if plan.editing == "scratch" else replace(now, edited=now.positions(usual_queries(dlm)))
        seen = tuple({} if probe.where.at(step, total) else None for probe in probes)
        logits, (predicted, confidence, commit, again) = _no_grad(partial(look, now, canvas, active, seen))
        token = predicted if forced is None else forced
        if follow is not None:
            commit, token, again = follow.at(step)
            commit = commit & active[:, None]
        step += 1
        canvas = _written(canvas, token, commit, again, sampler.mask, step, plan)
        what = (now, canvas.tokens, commit, predicted, confidence, logits, active, seen, memories, fired, again)
        stored += () if stores is None else _no_grad(partial(stores.of, canvas, active))
        first = now.tokens.shape[1] + dlm.is_causal - logits.shape[1]
        yield Step(step - 1, *what, after=canvas, draws=sampler.draws, forwards=forwards, first=first, stored=stored)
        stored = ()
        if plan.new_tokens and forced is None and follow is None and since is None:
            done |= sampler.ended(now, canvas, commit)


def _written(
    canvas: Canvas, token: Tensor, commit: Tensor, again: Tensor | None, mask: int, step: int, plan: Plan
) -> Canvas:
    """The canvas after a step: what it commits stands there, and what it masks again does not."""
    tokens = torch.where(commit, token, canvas.tokens)
    still = canvas.masked & ~(commit & (tokens != mask) if plan.allow_mask else commit)
    if again is not None:
        tokens, still = tokens.masked_fill(again, mask), still | again
    return replace(canvas, tokens=tokens, masked=still, step=step)


def _no_grad(body: Callable[[], R]) -> R:
    """What `body` gives without gradients; never around a yield: that would hold for whoever takes the step, too."""
    before = torch.is_grad_enabled()

    def without() -> R:
        torch.set_grad_enabled(False)
        return body()

    return surely(without, lambda: torch.set_grad_enabled(before))
