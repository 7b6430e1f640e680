"""One run, kept: denoise() and what it returns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from sinklens.decoding.fold import Trajectory
from sinklens.decoding.loop import steps_from
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import Start, prepare
from sinklens.decoding.step import Step
from sinklens.hooks import Edit, Memory, Probe
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.prompts import Given
from sinklens.records import DIMS, VARIABLES, Recorder, provenance, save
from sinklens.values.kinds import Seed, reads

SAVE_EVERY = 60.0  # seconds between two savings of a run that is under way


@dataclass(eq=False)
class Run(Trajectory):
    """What `denoise` returns: a `Trajectory`, and what was measured on the way.

    Attributes:
        tokens: Final canvas [prompt, pos], left-padded.
        commit_step: Step at which each position was committed, -1 where given [prompt, pos].
        predicted: The model's own choice at the commit [prompt, pos]; differs from tokens under `force`.
        confidence: Confidence at the commit, nan where given [prompt, pos].
        filled: Positions that were to be filled [prompt, pos].
        completions: Text of what was filled in, up to the first EOS.
        texts: Text of the whole row.
        record: The measurements, an xarray Dataset (`records`).
        plan: The plan with its defaults filled in.
        finished: False when the run was interrupted; what was done until then is here.
        memories: What each edit remembers and has counted, in the order of the interventions.
        fired: How often the hooks of each probe and edit fired.
    """

    completions: list[str]
    texts: list[str]
    record: xr.Dataset
    plan: Plan
    finished: bool
    memories: tuple[Memory, ...]
    fired: dict[str, int]

    def __repr__(self) -> str:
        state = "" if self.finished else ", interrupted"
        return f"Run({len(self.completions)} prompts, {self.record.sizes.get('step', 0)} steps{state})"


@reads("prompts", "force")
def denoise(
    dlm: HookedDLM,
    prompts: Given,
    plan: Plan | None = None,
    *,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Edit] = (),
    seed: Seed | Sequence[Seed] = 0,
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

    Raises:
        ContentError: before the first forward, for a probe or an edit of which the record could not say what it is.
    """
    start = prepare(dlm, prompts, plan, seed)
    keeper = _Keeper(dlm, start, probes, interventions, _origin(start, seed, probes, interventions, force, follow))
    steps = steps_from(dlm, start, probes=probes, interventions=interventions, force=force, follow=follow)
    label = progress if isinstance(progress, str) else "denoising"
    bar = tqdm(total=start.steps, desc=label, unit="step", disable=progress is False, leave=False)
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
    """Text of the tokens that were filled in, up to the first of the EOS tokens (gaps: all of them)."""
    end = next((i for i, token in enumerate(filled) if token in dlm.ids.eos), len(filled)) if plan.new_tokens else None
    return dlm.decode(filled[:end])


def _origin(
    start: Start,
    seed: int | Sequence[int],
    probes: Sequence[Probe],
    interventions: Sequence[Edit],
    force: Sequence[Sequence[int]] | None,
    follow: Trajectory | None,
) -> dict[str, Any]:
    """What of a run's making its record keeps: content, by which it is found again, and the same to read."""
    names = [probe.name for probe in probes]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"two probes would both be recorded as {', '.join(sorted(twice))}; run them one after the other"
        )
    taken = {*VARIABLES, *DIMS} & set(names)
    if taken:
        raise ValueError(f"every record has {', '.join(sorted(taken))} already; give the probe another name")
    return {
        "plan": start.plan.to_dict(),
        "seed": seed if isinstance(seed, int) else list(seed),
        "probes": [probe.to_dict() for probe in probes],
        "interventions": [edit.to_dict() for edit in interventions],
        "read_as": {
            "plan": repr(start.plan),
            "probes": [repr(probe) for probe in probes],
            "interventions": [repr(edit) for edit in interventions],
        },
        "forced": force is not None or follow is not None,
    }


class _Keeper:
    """What a run has shown so far."""

    def __init__(
        self,
        dlm: HookedDLM,
        start: Start,
        probes: Sequence[Probe],
        interventions: Sequence[Edit],
        origin: dict[str, Any],
    ) -> None:
        self.dlm, self.start, self.origin = dlm, start, origin
        self.trajectory = Trajectory.of(start.canvas)
        self.recorder = Recorder(probes, start.starts, start.length)
        self.memories = tuple(edit.memory(start.steps, start.canvas) for edit in interventions)
        self.fired: dict[str, int] = {}
        self.steps = 0

    def add(self, step: Step) -> None:
        """Keep one step. One whose measurement fails is not kept at all."""
        self.recorder.add(step.canvas, step.active, step.seen)
        self.trajectory.add(step)
        self.memories, self.fired = step.memories, step.fired
        self.steps += 1

    def run(self, *, finished: bool) -> Run:
        """The steps so far as a Run."""
        dlm, trajectory = self.dlm, self.trajectory
        tokens, filled = trajectory.tokens, trajectory.filled
        rows = [row[start:].tolist() for row, start in zip(tokens, self.start.starts, strict=True)]
        new = [row[places].tolist() for row, places in zip(tokens, filled, strict=True)]
        final = {
            "token": tokens,
            "given": self.start.canvas.prompt,
            "commit_step": trajectory.commit_step,
            "predicted": trajectory.predicted,
            "confidence": trajectory.confidence,
        }
        counts = [memory.counts() for memory in self.memories]
        origin = provenance(dlm, **self.origin, edit_counts=counts, fired=self.fired, finished=finished)
        return Run(
            **{field.name: getattr(trajectory, field.name) for field in fields(trajectory)},
            completions=[completion(dlm, self.start.plan, ids) for ids in new],
            texts=[dlm.decode(row) for row in rows],
            record=self.recorder.dataset(final, [dlm.token_strings(row) for row in rows], origin),
            plan=self.start.plan,
            finished=finished,
            memories=self.memories,
            fired=dict(self.fired),
        )
