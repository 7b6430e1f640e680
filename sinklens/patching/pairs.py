"""Pairs of prompts: read, checked, decoded, and the places at which their answers differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sinklens.decoding.answers import answered_rows
from sinklens.decoding.fold import Trajectory
from sinklens.decoding.loop import check_parts, steps_from
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import Start, prepare_rows, token_rows
from sinklens.decoding.samplers import sampler_for
from sinklens.decoding.step import Moment
from sinklens.errors import PatchError, PlanError, PromptError
from sinklens.hooks import Canvas
from sinklens.interventions import NoOp
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.outline import Sketched
from sinklens.models.prompts import Given, Unpadded, read_prompts
from sinklens.patching.forwards import commits_of
from sinklens.patching.metrics import Place
from sinklens.patching.patches import Patches
from sinklens.values.content import Named

NAMES = ("clean", "corrupt")
SHOWN = 40  # tokens of a prompt that an error quotes


@dataclass(frozen=True, eq=False)
class Asked:
    """A pair before its first forward: both prompts laid out, and the places of given answers."""

    clean: Start
    corrupt: Start
    places: tuple[Place, ...] | None

    @property
    def content(self) -> dict[str, Any]:
        """What it is, for the hash."""
        tokens = [start.canvas.tokens[0].tolist() for start in (self.clean, self.corrupt)]
        return {"tokens": tokens, "places": None if self.places is None else [list(place) for place in self.places]}


@dataclass(frozen=True, eq=False)
class Side:
    """One run of a pair.

    Attributes:
        start: What it began with.
        canvases: What the forward of each step saw.
        moments: Where it stood before each step.
        trajectory: What became of it.
        commits: Of each step the positions that it committed [pos], and the logits by which [n, vocab]; none where
            nobody asks for them.
        after: The canvas behind the last step.
    """

    start: Start
    canvases: list[Canvas]
    moments: list[Moment]
    trajectory: Trajectory
    commits: list[tuple[Tensor, Tensor]]
    after: Canvas

    def decided(self, before: int | None = None) -> Tensor:
        """The logits by which each position was decided, last before a step [1, pos, vocab]; 0 if never."""
        where, logits = self.commits[0]
        found = logits.new_zeros(len(where), logits.shape[-1])
        for where, logits in self.commits[:before]:
            found[where] = logits
        return found[None]

    @property
    def ever(self) -> Tensor:
        """Positions that it decides at some step [pos]."""
        return torch.stack([where for where, _ in self.commits]).any(0)


@dataclass(frozen=True, eq=False)
class Pair:
    """Both runs of a pair, and the places where their answers differ."""

    clean: Side
    corrupt: Side
    places: tuple[Place, ...]

    @property
    def steps(self) -> int:
        """Steps that both took."""
        return min(len(side.canvases) for side in (self.clean, self.corrupt))

    def asked_at(self, step: int, patches: Patches, causal: bool) -> tuple[Place, ...]:
        """The places that a patch at a step is asked about: undecided in both runs; at the "end", in the patched one.

        A baseline decides its next position alone, so that at a step it is asked about that one.
        """
        if patches.outcome == "end":
            since = self.into(patches).trajectory.commit_step[0]
            return tuple(place for place in self.places if since[place.position] >= step)
        seen = [side.canvases[step] for side in (self.clean, self.corrupt)]
        return tuple(place for place in self.places if all(_open(canvas, place.position, causal) for canvas in seen))

    def into(self, patches: Patches) -> Side:
        """The run that is patched."""
        return self.corrupt if patches.direction == "denoising" else self.clean

    def out_of(self, patches: Patches) -> Side:
        """The run that the patches come from."""
        return self.clean if patches.direction == "denoising" else self.corrupt


def _open(canvas: Canvas, position: int, causal: bool) -> bool:
    width = canvas.tokens.shape[1]
    if causal:
        return position == width
    return position < width and bool(canvas.masked[0, position])  # a later block is not there yet


def read_pairs(
    dlm: Sketched, clean: Given, corrupt: Given, plan: Plan, answers: tuple[Given, Given] | None, seed: int
) -> list[Asked]:
    """Pairs as they were given, read and checked before any forward.

    Raises:
        PromptError: not as many of both; prompts of other lengths, or that are the same; answers of other lengths, or
            that are the same.
        PlanError: a plan that cannot be carried out, or under which nothing can be patched.
    """
    sides = [token_rows(dlm, given, chat=plan.chat) for given in (clean, corrupt)]
    if len(sides[0]) != len(sides[1]):
        raise PromptError(f"{len(sides[0])} clean prompts need as many corrupt ones; there are {len(sides[1])}")
    said = [None, None] if answers is None else [read_prompts(given) for given in answers]
    for name, given in zip(NAMES, said, strict=True):
        if given is not None and len(given) != len(sides[0]):
            raise PromptError(f"{len(sides[0])} {name} prompts need as many answers; there are {len(given)}")
    found = []
    for index, rows in enumerate(zip(*sides, strict=True)):
        _check_tokens(dlm, index, *rows)
        starts = [prepare_rows(dlm, [row], plan, seed) for row in rows]
        check_parts(dlm, starts[0], (), [NoOp()])
        if not torch.equal(starts[0].canvas.masked, starts[1].canvas.masked):
            raise PromptError(f"pair {index}: the clean and the corrupt prompt have their gaps at other positions")
        own = [None if given is None else given[index] for given in said]
        places = None if answers is None else _given_places(dlm, index, starts, own)
        found.append(Asked(starts[0], starts[1], places))
    return found


def _check_tokens(dlm: Sketched, index: int, clean: Sequence[int], corrupt: Sequence[int]) -> None:
    if len(clean) != len(corrupt):
        shown = [
            f"{name}: {len(row)} tokens, {_quoted(dlm, row)}" for name, row in ((NAMES[0], clean), (NAMES[1], corrupt))
        ]
        raise PromptError(
            f"pair {index}: the prompts must have as many tokens, so that each position has its own counterpart; "
            f"{'; '.join(shown)}"
        )
    if list(clean) == list(corrupt):
        raise PromptError(f"pair {index}: the clean and the corrupt prompt are the same tokens, {_quoted(dlm, clean)}")


def _quoted(dlm: Sketched, row: Sequence[int]) -> str:
    return f"{dlm.token_strings(row[:SHOWN])}{' ...' if len(row) > SHOWN else ''}"


def _given_places(dlm: Sketched, index: int, starts: Sequence[Start], answers: Sequence[Any]) -> tuple[Place, ...]:
    """Where given answers differ; they stand at the first positions that are filled."""
    rows = []
    for start, answer in zip(starts, answers, strict=True):
        prompt = start.canvas.tokens[0, : start.canvas.tokens.shape[1] - start.plan.new_tokens].tolist()
        if isinstance(answer, str) and not start.plan.new_tokens:
            rows.append(dlm.encode_piece(answer))
        else:
            rows.append(answered_rows(dlm, [Unpadded(tuple(prompt))], [answer])[0].answer)
    filled = starts[0].canvas.masked[0].nonzero()[:, 0].tolist()
    shown = f"{_quoted(dlm, rows[0])} and {_quoted(dlm, rows[1])}"
    if len(rows[0]) != len(rows[1]) or len(rows[0]) > len(filled):
        raise PromptError(
            f"pair {index}: the answers must have as many tokens, and at most the {len(filled)} that are filled; "
            f"they are {shown}"
        )
    places = tuple(Place(at, *two) for at, *two in zip(filled, *rows, strict=False) if two[0] != two[1])
    if not places:
        raise PromptError(f"pair {index}: the answers are the same, {shown}; there is nothing to tell them apart by")
    return places


def decode(dlm: HookedDLM, index: int, asked: Asked, patches: Patches) -> Pair:
    """Decode both prompts of a pair, and find the places that are asked.

    Raises:
        PatchError: both write the same; a place that a run does not decide.
        PlanError: runs of which one has other numbers of masks than the other.
    """
    starts = {"clean": asked.clean, "corrupt": asked.corrupt}
    first = "corrupt" if patches.commits == "corrupt" else "clean"
    sides = {first: _run(dlm, starts[first], None, patches)}
    second = next(name for name in NAMES if name != first)
    follow = None if patches.commits == "own" else _beside(sides[first].trajectory, starts[second].canvas)
    sides[second] = _run(dlm, starts[second], follow, patches)
    pair = Pair(sides["clean"], sides["corrupt"], asked.places or ())
    _check_masks(dlm, index, pair)
    runs = (pair.clean.trajectory, pair.corrupt.trajectory)
    both = runs[0].committed[0] & runs[1].committed[0]
    if asked.places is None and isinstance(patches.metric, Named):
        return pair
    if asked.places is None:
        differ = both & (runs[0].predicted[0] != runs[1].predicted[0])
        places = tuple(_written(runs, differ))
        if not places:
            raise PatchError(
                f"pair {index}: both runs write the same, so that no answer tells them apart; give other prompts, or "
                "answers=(clean, corrupt)"
            )
        return replace(pair, places=places)
    missing = [place.position for place in asked.places if not both[place.position]]
    if missing:
        raise PatchError(f"pair {index}: position {missing[0]} of the answer is decided by only one of the runs")
    return pair


def _written(runs: Sequence[Trajectory], differ: Tensor) -> Iterator[Place]:
    """What each run's model chose where they differ."""
    for position in differ.nonzero()[:, 0].tolist():
        clean, corrupt = (int(run.predicted[0, position]) for run in runs)
        yield Place(position, clean, corrupt)


def _beside(leader: Trajectory, canvas: Canvas) -> Trajectory:
    """What another prompt follows of a run: its commits, behind its own tokens."""
    return replace(leader, tokens=torch.where(canvas.masked, leader.tokens, canvas.tokens))


def _run(dlm: HookedDLM, start: Start, follow: Trajectory | None, patches: Patches) -> Side:
    trajectory = Trajectory.of(start.canvas)
    canvases: list[Canvas] = []
    moments: list[Moment] = []
    commits: list[tuple[Tensor, Tensor]] = []
    canvas = start.canvas
    moment = Moment(start.canvas, sampler_for(dlm, start).draws.states())
    for step in steps_from(dlm, start, follow=follow):
        moments.append(moment)
        canvases.append(step.canvas)
        trajectory.add(step)
        if patches.outcome == "end":
            commits.append(commits_of(step))
        moment, canvas = step.moment, step.after
    return Side(start, canvases, moments, trajectory, commits, canvas)


def _check_masks(dlm: HookedDLM, index: int, pair: Pair) -> None:
    counts = [[int(canvas.masked.sum()) for canvas in side.canvases] for side in (pair.clean, pair.corrupt)]
    for step, (clean, corrupt) in enumerate(zip(*counts, strict=False)):
        if clean != corrupt:
            raise PlanError(
                f"pair {index}: at step {step} the clean run has {clean} masks and the corrupt one {corrupt}; a patch "
                "is between canvases of as many masks. Give the plan steps= (--steps), no threshold and a sampler that "
                "does not reveal by chance; or say commits='clean' (--commits clean)"
            )
    if not dlm.is_causal and len(counts[0]) != len(counts[1]):
        raise PlanError(
            f"pair {index}: the runs take {len(counts[0])} and {len(counts[1])} steps; give the plan steps= (--steps)"
        )
