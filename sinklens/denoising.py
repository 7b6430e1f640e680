"""The denoising loop, in the open: Plan, Step, denoising_steps() and denoise()."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from sinklens.choosing import Causal, Diffusion
from sinklens.errors import PlanError
from sinklens.hooks import Canvas, Intervention, Probe, attached, wanted
from sinklens.model import HookedDLM
from sinklens.plan import Plan
from sinklens.records import Recorder, provenance, seeds_for
from sinklens.remasking import Draws

Prompt = str | Sequence[int] | Tensor


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


@dataclass
class Run:
    """What `denoise` returns.

    Attributes:
        tokens: Final canvas [prompt, pos], left-padded.
        completions: Text of what was filled in, up to the first EOS.
        texts: Text of the whole row.
        commit_step: Step at which each position was committed, -1 where given [prompt, pos].
        confidence: Confidence at the commit, nan where given [prompt, pos].
        predicted: The model's own choice at the commit [prompt, pos]; differs from tokens under `force`.
        filled: Positions that were to be filled [prompt, pos].
        record: The measurements, an xarray Dataset (records.py).
        plan: The plan with its defaults filled in.
        finished: False when the run was interrupted; what was done until then is here.
        fired: How often the hooks of each probe and edit fired.
    """

    tokens: Int[Tensor, "prompt pos"]
    completions: list[str]
    texts: list[str]
    commit_step: Int[Tensor, "prompt pos"]
    confidence: Float[Tensor, "prompt pos"]
    predicted: Int[Tensor, "prompt pos"]
    filled: Bool[Tensor, "prompt pos"]
    record: xr.Dataset
    plan: Plan
    finished: bool
    fired: dict[str, int]

    def __repr__(self) -> str:
        state = "" if self.finished else ", interrupted"
        return f"Run({len(self.completions)} prompts, {self.record.sizes.get('step', 0)} steps{state})"


def first_canvas(
    dlm: HookedDLM, prompts: Sequence[Prompt], plan: Plan, seeds: Sequence[int]
) -> tuple[Canvas, list[int]]:
    """The canvas before the first step (prompts left-padded, masks to the right), and where each row starts.

    Raises:
        PlanError: an empty prompt, one that does not fit the context, one without or with gaps when it should not.
    """
    rows = [dlm.encode(prompt, chat=plan.chat and isinstance(prompt, str)) for prompt in prompts]
    if not rows:
        raise PlanError("prompts is empty; give at least one")
    pad = dlm.ids.pad if dlm.ids.pad is not None else 0
    # A baseline has no mask token; what stands at a position that it has not generated is never seen.
    mask = dlm.ids.mask if dlm.ids.mask is not None else pad
    for index, row in enumerate(rows):
        gaps = sum(token == dlm.ids.mask for token in row) if dlm.ids.mask is not None else 0
        if not row:
            raise PlanError(f"prompt {index} is empty; give at least one token, for example the BOS token")
        if len(row) + plan.new_tokens > dlm.n_ctx:
            raise PlanError(
                f"prompt {index} has {len(row)} tokens; with new_tokens={plan.new_tokens} that exceeds the context of "
                f"{dlm.n_ctx}"
            )
        if plan.new_tokens == 0 and not gaps:
            raise PlanError(f"new_tokens=0 fills gaps, and prompt {index} holds no mask token")
        if plan.new_tokens > 0 and gaps and not plan.allow_mask:
            raise PlanError(f"prompt {index} holds {gaps} mask tokens; to fill gaps say new_tokens=0")
        if dlm.is_causal and plan.new_tokens == 0 and row[0] == dlm.ids.mask:
            raise PlanError(f"prompt {index} begins with a gap; an autoregressive model needs a token before it")
        if plan.new_tokens == 0 and plan.steps is not None and plan.steps > gaps and plan.threshold is None:
            raise PlanError(f"steps={plan.steps} is more than the {gaps} gaps of prompt {index}")
    longest = max(map(len, rows))
    starts = [longest - len(row) for row in rows]
    padded = [[pad] * start + row + [mask] * plan.new_tokens for start, row in zip(starts, rows, strict=True)]
    tokens = torch.tensor(padded, device=dlm.device)
    position = torch.arange(tokens.shape[1], device=dlm.device)
    valid = position >= torch.tensor(starts, device=dlm.device)[:, None]
    response = (position >= longest).expand_as(valid)
    gap = valid & (tokens == dlm.ids.mask) if dlm.ids.mask is not None else torch.zeros_like(valid)
    masked = response | gap
    return Canvas(tokens, valid, masked, valid & ~masked, step=0, seeds=tuple(seeds)), starts


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
        fired: Filled with firing counts.

    Raises:
        PlanError: before the first forward, for a plan that cannot be carried out.
        ScopeError: before the first forward, for a scope that selects nothing.
        HookNeverFired: at the first step at which an attached hook is not called.
    """
    rows = _as_list(prompts)
    plan = (plan or Plan()).resolved(dlm)
    seeds = seeds_for(seed, len(rows))
    canvas, starts = first_canvas(dlm, rows, plan, seeds)
    limits = _step_limits(dlm, plan, canvas)
    total = max(limits) if plan.threshold is None else None
    if interventions and plan.cfg_scale:
        raise PlanError(
            f"cfg_scale={plan.cfg_scale:g}: edits under classifier-free guidance have no one meaning; use 0"
        )
    for part in (*interventions, *probes):
        part.where.validate(dlm.n_layers, dlm.n_heads, total)
    for edit in interventions:
        edit.reset(total)
    yield from _loop(dlm, plan, canvas, starts, limits, probes, interventions, force, {} if fired is None else fired)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.ndim == 1):
        return [prompts]
    if isinstance(prompts, Tensor):
        return list(prompts)
    listed: list[Any] = list(prompts)
    return [listed] if listed and isinstance(listed[0], int | np.integer) else listed


def _step_limits(dlm: HookedDLM, plan: Plan, canvas: Canvas) -> list[int]:
    masks = canvas.masked.sum(-1).tolist()
    return masks if dlm.is_causal or plan.steps is None or plan.threshold is not None else [plan.steps] * len(masks)


def _loop(
    dlm: HookedDLM,
    plan: Plan,
    canvas: Canvas,
    starts: list[int],
    limits: list[int],
    probes: Sequence[Probe],
    interventions: Sequence[Intervention],
    force: Sequence[Sequence[int]] | None,
    fired: dict[str, int],
) -> Iterator[Step]:
    given, reference = canvas, _reference(canvas, force)
    draws = Draws(canvas.seeds, starts)
    chooser = Causal(dlm, plan, draws) if dlm.is_causal else Diffusion(dlm, plan, draws, given, limits)
    total = None if plan.threshold is not None else max(limits)
    limit = torch.tensor(limits, device=canvas.tokens.device)
    done = torch.zeros(len(limits), dtype=torch.bool, device=canvas.tokens.device)
    step = 0
    while True:
        active = canvas.masked.any(-1) & ~done
        active &= (step < limit) if plan.threshold is None else torch.ones_like(active)
        if not bool(active.any()):
            return
        seen = chooser.seen(replace(canvas, step=step, active=active))
        parts = [part for part in (*interventions, *probes) if wanted(part, step, total)]
        with attached(dlm, parts, seen, fired):
            logits = dlm(seen.tokens, seen.valid)
        predicted, confidence, commit = chooser.choose(logits, canvas, active, step)
        token = predicted if reference is None else reference
        tokens = torch.where(commit, token, canvas.tokens)
        still = canvas.masked & ~(commit & (tokens != dlm.ids.mask) if plan.allow_mask else commit)
        yield Step(step, seen, tokens, commit, predicted, confidence, logits, active)
        canvas = replace(canvas, tokens=tokens, masked=still)
        if dlm.is_causal and plan.new_tokens and reference is None and dlm.ids.eos is not None:
            done |= (commit & (tokens == dlm.ids.eos)).any(-1)
        step += 1


def _reference(canvas: Canvas, force: Sequence[Sequence[int]] | None) -> Tensor | None:
    if force is None:
        return None
    if len(force) != len(canvas.tokens):
        raise PlanError(f"force has {len(force)} entries for {len(canvas.tokens)} prompts")
    out = canvas.tokens.clone()
    for row, tokens in enumerate(force):
        places = canvas.masked[row]
        if len(tokens) != int(places.sum()):
            raise PlanError(f"force[{row}] has {len(tokens)} tokens for {int(places.sum())} positions to fill")
        out[row, places] = torch.tensor(list(tokens), device=out.device)
    return out


def denoise(
    dlm: HookedDLM,
    prompts: Prompt | Sequence[Prompt],
    plan: Plan | None = None,
    *,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Intervention] = (),
    seed: int | Sequence[int] = 0,
    force: Sequence[Sequence[int]] | None = None,
    progress: bool | str = True,
) -> Run:
    """Decode, measure and edit: `denoising_steps` with everything kept in a record.

    Args:
        dlm: The model.
        prompts: As in `denoising_steps`.
        plan: How to decode; `Plan()` when None.
        probes: Measurements; each becomes a variable of `run.record`.
        interventions: Edits.
        seed: One seed, or one per prompt.
        force: Teacher forcing, as in `denoising_steps`.
        progress: Show a progress bar; a string is its label.

    A KeyboardInterrupt returns what was finished, with `finished=False`.
    """
    rows = _as_list(prompts)
    plan = (plan or Plan()).resolved(dlm)
    canvas, starts = first_canvas(dlm, rows, plan, seeds_for(seed, len(rows)))
    names = [probe.name for probe in probes]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"two probes would both be recorded as {', '.join(sorted(twice))}; run them one after the other"
        )
    recorder, fired = Recorder(probes, starts), {}
    total = None if plan.threshold is not None else max(_step_limits(dlm, plan, canvas))
    state = {
        "tokens": canvas.tokens,
        "commit_step": torch.full_like(canvas.tokens, -1),
        "confidence": torch.full(canvas.tokens.shape, float("nan"), device=canvas.tokens.device),
        "predicted": torch.full_like(canvas.tokens, -1),
    }
    finished, length = False, canvas.tokens.shape[1] - min(starts)
    # resolved() is idempotent for diffusion models; a baseline's plan is resolved inside.
    inner = plan.for_causal() if dlm.is_causal else plan
    steps = denoising_steps(
        dlm, rows, inner, seed=seed, probes=probes, interventions=interventions, force=force, fired=fired
    )
    label = progress if isinstance(progress, str) else "denoising"
    bar = tqdm(total=total, desc=label, unit="step", disable=progress is False, leave=False)
    try:
        with bar, closing(steps):
            for step in steps:
                recorder.add(step.canvas, step.active, length, total)
                at = step.committed
                state["tokens"] = step.tokens
                state["commit_step"] = torch.where(at, step.index, state["commit_step"])
                state["confidence"] = torch.where(
                    at, step.confidence.to(state["confidence"].dtype), state["confidence"]
                )
                state["predicted"] = torch.where(at, step.predicted, state["predicted"])
                bar.update()
        finished = True
    except KeyboardInterrupt:
        tqdm.write(f"interrupted after {bar.n} steps; returning what was finished")
    return _run(
        dlm, plan, canvas, starts, recorder, state, finished, fired, seed, probes, interventions, force is not None
    )


def _run(
    dlm: HookedDLM,
    plan: Plan,
    canvas: Canvas,
    starts: list[int],
    recorder: Recorder,
    state: dict[str, Tensor],
    finished: bool,
    fired: dict[str, int],
    seed: int | Sequence[int],
    probes: Sequence[Probe],
    interventions: Sequence[Intervention],
    forced: bool,
) -> Run:
    tokens = state["tokens"]
    rows = [tokens[row, start:].tolist() for row, start in enumerate(starts)]
    filled = canvas.masked
    completions = []
    for row in range(len(rows)):
        new = tokens[row, filled[row]].tolist()
        eos = dlm.ids.eos
        completions.append(dlm.decode(new[: new.index(eos)] if plan.new_tokens and eos in new else new))
    final = {
        "token": (tokens.int(), -1),
        "given": (canvas.prompt.to(torch.int8), -1),
        "commit_step": (state["commit_step"].int(), -1),
        "predicted": (state["predicted"].int(), -1),
        "confidence": (state["confidence"].float(), float("nan")),
    }
    made = provenance(
        dlm,
        plan=asdict(plan),
        seed=int(seed) if isinstance(seed, int | np.integer) else [int(each) for each in seed],
        probes=[repr(probe) for probe in probes],
        interventions=[repr(edit) for edit in interventions],
        edit_counts={repr(edit): dict(edit.counts()) for edit in interventions},
        fired=fired,
        finished=finished,
        forced=forced,
    )
    record = recorder.dataset(final, [dlm.token_strings(row) for row in rows], made)
    return Run(
        tokens=tokens,
        completions=completions,
        texts=[dlm.decode(row) for row in rows],
        commit_step=state["commit_step"],
        confidence=state["confidence"],
        predicted=state["predicted"],
        filled=filled,
        record=record,
        plan=plan,
        finished=finished,
        fired=fired,
    )
