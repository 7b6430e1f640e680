"""One run, kept: denoise() and what it returns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from sinklens.decoding.loop import Step, Trajectory, denoising_steps
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import Prompt, as_list, first_canvas, step_limits
from sinklens.hooks import Canvas, Intervention, Probe
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.records import Recorder, provenance, save, seeds_for

SAVE_EVERY = 60.0  # seconds between two savings of a run that is under way


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


def denoise(
    dlm: HookedDLM,
    prompts: Prompt | Sequence[Prompt],
    plan: Plan | None = None,
    *,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Intervention] = (),
    seed: int | Sequence[int] = 0,
    force: Sequence[Sequence[int]] | None = None,
    follow: Trajectory | None = None,
    save_to: str | Path | None = None,
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
        follow: Another run whose commits are repeated, as in `denoising_steps`.
        save_to: Where to write the record (netCDF); also about once a minute while the run is under way, so that a
            kill loses a minute at most.
        progress: Show a progress bar; a string is its label.

    A KeyboardInterrupt returns what was finished, with `finished=False`. Any other error in the middle of the run
    carries what was finished in its attribute `run`.
    """
    rows = as_list(prompts)
    plan = (plan or Plan()).resolved(dlm)
    canvas, starts = first_canvas(dlm, rows, plan, seeds_for(seed, len(rows)))
    names = [probe.name for probe in probes]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"two probes would both be recorded as {', '.join(sorted(twice))}; run them one after the other"
        )
    made = {
        "plan": asdict(plan),
        "seed": int(seed) if isinstance(seed, int | np.integer) else [int(each) for each in seed],
        "probes": [repr(probe) for probe in probes],
        "interventions": [repr(edit) for edit in interventions],
        "forced": force is not None or follow is not None,
    }
    total = None if plan.threshold is not None else max(step_limits(dlm, plan, canvas))
    keeper = _Keeper(dlm, plan, canvas, starts, probes, interventions, made, total)
    # resolved() is idempotent for diffusion models; a baseline's plan is resolved inside.
    inner = plan.for_causal() if dlm.is_causal else plan
    steps = denoising_steps(
        dlm,
        rows,
        inner,
        seed=seed,
        probes=probes,
        interventions=interventions,
        force=force,
        follow=follow,
        fired=keeper.fired,
    )
    label = progress if isinstance(progress, str) else "denoising"
    bar = tqdm(total=total, desc=label, unit="step", disable=progress is False, leave=False)
    finished, saved = False, time.monotonic()
    try:
        with bar, closing(steps):
            for step in steps:
                keeper.add(step)
                bar.update()
                if save_to is not None and time.monotonic() - saved > SAVE_EVERY:
                    save(keeper.run(finished=False).record, save_to)
                    saved = time.monotonic()
        finished = True
    except KeyboardInterrupt:
        tqdm.write(f"interrupted after {keeper.steps} steps; returning what was finished")
    except Exception as error:
        if keeper.steps:
            partial = keeper.run(finished=False)
            error.run = partial  # pyright: ignore[reportAttributeAccessIssue]
            error.add_note(f"the {keeper.steps} steps before are in this error's attribute `run`")
            if save_to is not None:
                try:
                    save(partial.record, save_to)
                except OSError as second:
                    error.add_note(f"they could not be written to {str(save_to)!r}: {second}")
        raise
    run = keeper.run(finished=finished)
    if save_to is not None:
        save(run.record, save_to)
    return run


def completion(dlm: HookedDLM, plan: Plan, filled: list[int]) -> str:
    """Text of the tokens that were filled in, up to the first EOS (gaps: all of them)."""
    eos = dlm.ids.eos
    return dlm.decode(filled[: filled.index(eos)] if plan.new_tokens and eos in filled else filled)


class _Keeper:
    """What a run has found so far."""

    def __init__(
        self,
        dlm: HookedDLM,
        plan: Plan,
        canvas: Canvas,
        starts: list[int],
        probes: Sequence[Probe],
        interventions: Sequence[Intervention],
        made: dict[str, Any],
        total: int | None,
    ) -> None:
        self.dlm, self.plan, self.canvas, self.starts = dlm, plan, canvas, starts
        self.interventions, self.made, self.total = interventions, made, total
        self.recorder, self.steps = Recorder(probes, starts), 0
        self.fired: dict[str, int] = {}
        self.length = canvas.tokens.shape[1] - min(starts)
        self.tokens = canvas.tokens
        self.commit_step = torch.full_like(canvas.tokens, -1)
        self.predicted = torch.full_like(canvas.tokens, -1)
        self.confidence = torch.full(canvas.tokens.shape, float("nan"), device=canvas.tokens.device)

    def add(self, step: Step) -> None:
        """Keep one step."""
        self.recorder.add(step.canvas, step.active, self.length, self.total)
        at = step.committed
        self.tokens, self.steps = step.tokens, self.steps + 1
        self.commit_step = torch.where(at, step.index, self.commit_step)
        self.predicted = torch.where(at, step.predicted, self.predicted)
        self.confidence = torch.where(at, step.confidence.to(self.confidence.dtype), self.confidence)

    def run(self, *, finished: bool) -> Run:
        """The steps so far as a Run."""
        dlm, tokens, filled = self.dlm, self.tokens, self.canvas.masked
        rows = [tokens[row, start:].tolist() for row, start in enumerate(self.starts)]
        completions = [completion(dlm, self.plan, tokens[row, filled[row]].tolist()) for row in range(len(rows))]
        final = {
            "token": (tokens.int(), -1),
            "given": (self.canvas.prompt.to(torch.int8), -1),
            "commit_step": (self.commit_step.int(), -1),
            "predicted": (self.predicted.int(), -1),
            "confidence": (self.confidence.float(), float("nan")),
        }
        counts = {repr(edit): dict(edit.counts()) for edit in self.interventions}
        made = provenance(dlm, **self.made, edit_counts=counts, fired=self.fired, finished=finished)
        return Run(
            tokens=tokens,
            completions=completions,
            texts=[dlm.decode(row) for row in rows],
            commit_step=self.commit_step,
            confidence=self.confidence,
            predicted=self.predicted,
            filled=filled,
            record=self.recorder.dataset(final, [dlm.token_strings(row) for row in rows], made),
            plan=self.plan,
            finished=finished,
            fired=self.fired,
        )
