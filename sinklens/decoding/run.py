"""One run, kept: denoise() and what it returns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from tqdm import tqdm

from sinklens import files
from sinklens.decoding.fold import Trajectory, completion
from sinklens.decoding.loop import steps_from
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import Start, prepare
from sinklens.decoding.step import Step
from sinklens.errors import RecordError, SaveError
from sinklens.hooks import Edit, Memory, Probe
from sinklens.interrupts import again
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.prompts import Given
from sinklens.progress import hidden
from sinklens.records import DIMS, VARIABLES, Recorder, contents, made, provenance, save, unfinished
from sinklens.records.forms import ZARR
from sinklens.values.kinds import Seed, read, reads
from sinklens.values.notebook import MOST, Shown, Told

Attribute = str | float | Sequence[str] | Sequence[float]  # what netCDF has a form for
SAVE_EVERY = 60.0  # seconds between two savings of a run that is under way


@dataclass(eq=False)
class Run(Shown, Trajectory):
    """What `denoise` returns: a `Trajectory`, and what was measured on the way.

    Attributes:
        tokens: Final canvas [prompt, pos], left-padded.
        commit_step: Step at which each position was committed, the last time where a sampler masked it again; -1 where
            given [prompt, pos].
        predicted: The model's own choice at the commit [prompt, pos]; differs from tokens under `force`.
        confidence: Confidence at the commit, nan where given [prompt, pos].
        filled: Positions that were to be filled [prompt, pos].
        undone: Commits before the last one of a position, where a sampler masked it again.
        completions: Text of what was filled in, up to the first EOS.
        texts: Text of the whole row.
        record: The measurements, an xarray Dataset (`records`).
        plan: The plan with its defaults filled in.
        finished: False when the run was interrupted; what was done until then is here.
        memories: What each edit remembers and has counted, in the order of the interventions.
        fired: How often the hooks of each probe and edit fired.
        forwards: How many forwards of the batch there were of each kind, steps among them (`Step.forwards`).
    """

    completions: list[str]
    texts: list[str]
    record: xr.Dataset
    plan: Plan
    finished: bool
    memories: tuple[Memory, ...]
    fired: dict[str, int]
    forwards: dict[str, int]

    def __repr__(self) -> str:
        state = "" if self.finished else f"; {unfinished(self.record)}"
        return f"Run({len(self.completions)} prompts, {self.record.sizes.get('step', 0)} steps{state})"

    def told(self) -> Told:
        """What a notebook shows: completions, and what the record holds."""
        origin = made(self.record)
        rows = [("model", origin.get("model")), ("steps", f"{self.record.sizes.get('step', 0)}"), ("plan", self.plan)]
        rows += [(name, ", ".join(origin.get("read_as", {}).get(name, []))) for name in ("probes", "interventions")]
        written = [(f"{number}", text) for number, text in enumerate(self.completions[:MOST])]
        held = contents(self.record)
        tables = [
            (("prompt", "completion"), written, len(self.completions)),
            (held.columns, held.values.tolist(), len(held)),
        ]
        return Told("" if self.finished else unfinished(self.record), [row for row in rows if row[1]], tables)


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

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> run = sl.denoise(dlm, "molma telme talko", sl.Plan(new_tokens=4), probes=[sl.probes.ReceivedAttention()])
        >>> run.record["received"].dims
        ('prompt', 'step', 'layer', 'head', 'key')

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

    A KeyboardInterrupt between steps returns the finished ones, with `finished=False` (also in the record, and shown
    wherever it is); before the first is finished, or while the record is put together or saved, it is raised. It and
    any other error carry what was finished in their attribute `run`.

    Raises:
        SaveError: before the first forward, for a `save_to` that cannot be written or is no record; or a disk that got
            full.
        ContentError: before the first forward, for a probe or an edit of which the record could not say what it is.
    """
    if save_to is not None:
        if Path(save_to).suffix == ZARR:
            raise SaveError(f"save_to={str(save_to)!r}: a zarr folder is written once; sinklens.save(run.record, ...)")
        files.check(save_to, files.RECORD)
    start = prepare(dlm, prompts, plan, seed)
    keeper = _Keeper(dlm, start, probes, interventions, _origin(start, seed, probes, interventions, force, follow))
    parts: Any = {"probes": probes, "interventions": interventions, "force": force, "follow": follow}
    steps = steps_from(dlm, start, **parts, every_row=False)
    label = progress if isinstance(progress, str) else "denoising"
    bar = tqdm(total=start.steps, desc=label, unit="step", disable=hidden(progress), leave=False)
    try:
        try:
            with bar, closing(steps):
                for _ in keeper.keep(steps, save_to):
                    bar.update()
        except KeyboardInterrupt:
            if not keeper.done.steps:
                raise
            tqdm.write(f"interrupted after {keeper.done.steps} of {start.steps} steps; returning what was finished")
        run = keeper.run()
        if save_to is not None:
            save(run.record, save_to)
        return run
    except BaseException as error:
        if keeper.done.steps:
            _rescue(keeper, error, save_to)
        raise


def _rescue(keeper: _Keeper, error: BaseException, save_to: str | Path | None) -> None:
    """Put what was finished on an error, and into the file, unless that is what failed."""
    run = again(keeper.run)
    error.run = run  # pyright: ignore[reportAttributeAccessIssue]
    error.add_note(f"{run!r} is in this error's attribute `run`")
    if save_to is not None and not isinstance(error, KeyboardInterrupt | SaveError | RecordError):
        try:
            save(run.record, save_to)
        except (SaveError, RecordError) as second:
            error.add_note(f"it could not be saved: {second}")


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
    for probe in probes:
        for name, value in probe.attributes().items():
            read(f"attribute {name!r} of {probe!r}", value, Attribute)  # else the record could not be saved in the end
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


class _Done(NamedTuple):
    """What the finished steps of a run have shown."""

    trajectory: Trajectory
    memories: tuple[Memory, ...]
    counts: list[dict[str, float]]
    fired: dict[str, int]
    forwards: dict[str, int]
    steps: int = 0


class _Keeper:
    """What a run has shown so far. An interrupt at any place leaves all of a step, or nothing of it."""

    def __init__(
        self,
        dlm: HookedDLM,
        start: Start,
        probes: Sequence[Probe],
        interventions: Sequence[Edit],
        origin: dict[str, Any],
    ) -> None:
        self.dlm, self.start, self.origin = dlm, start, origin
        self.recorder = Recorder(probes, start.starts, start.length)
        memories = tuple(edit.memory(start.steps, start.canvas) for edit in interventions)
        self.done = _Done(Trajectory.of(start.canvas), memories, [memory.counts() for memory in memories], {}, {})
        self.finished = False

    def keep(self, steps: Iterable[Step], save_to: str | Path | None) -> Iterator[None]:
        """Keep step after step, on disk about once a minute."""
        saved = time.monotonic()
        for step in steps:
            self.add(step)
            yield
            if save_to is not None and time.monotonic() - saved > SAVE_EVERY:
                save(self.run().record, save_to)
                saved = time.monotonic()
        self.finished = True

    def add(self, step: Step) -> None:
        """Keep one step. One whose measurement fails is not kept at all."""
        trajectory = replace(self.done.trajectory)
        trajectory.add(step)
        self.recorder.add(step.canvas, step.active, step.seen)
        for event in step.stored:
            self.recorder.store(event.canvas, event.number, step.index, event.seen)
        counts = [memory.counts() for memory in step.memories]
        self.done = _Done(trajectory, step.memories, counts, dict(step.fired), dict(step.forwards), self.done.steps + 1)

    def run(self) -> Run:
        """The steps so far as a Run."""
        dlm, done = self.dlm, self.done
        tokens, filled = done.trajectory.tokens, done.trajectory.filled
        rows = [row[start:].tolist() for row, start in zip(tokens, self.start.starts, strict=True)]
        new = [row[places].tolist() for row, places in zip(tokens, filled, strict=True)]
        final = {
            "token": tokens,
            "given": self.start.canvas.prompt,
            "commit_step": done.trajectory.commit_step,
            "predicted": done.trajectory.predicted,
            "confidence": done.trajectory.confidence,
        }
        undone = sorted({token for one in done.trajectory.undone for token in one.tokens.tolist()})
        told = {"undone": dict(zip(map(str, undone), dlm.token_strings(undone), strict=True))} if undone else {}
        told |= {"edit_counts": done.counts, "fired": done.fired, "forwards": done.forwards}
        origin = provenance(dlm, **self.origin, **told, finished=self.finished)
        texts = [dlm.token_strings(row) for row in rows]
        return Run(
            **{field.name: getattr(done.trajectory, field.name) for field in fields(done.trajectory)},
            completions=[completion(dlm, self.start.plan, ids) for ids in new],
            texts=[dlm.decode(row) for row in rows],
            record=self.recorder.dataset(final, texts, origin, done.steps),
            plan=self.start.plan,
            finished=self.finished,
            memories=done.memories,
            fired=done.fired,
            forwards=done.forwards,
        )
