"""Prompts under several edits at once: running them in shared forwards, and scoring them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sinklens.decoding.fold import Trajectory, completion
from sinklens.decoding.likelihood import log_likelihood
from sinklens.decoding.loop import steps_from
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import prepare_rows
from sinklens.decoding.step import Step
from sinklens.experiments.arms import Arm
from sinklens.experiments.batch import FORM, Batch, Exposure, Measured, Values, edited_rows
from sinklens.experiments.identity import identity_of
from sinklens.experiments.job import Job
from sinklens.experiments.outcomes import METRICS, Pass, Replayed, order
from sinklens.hooks import Edit, Memory
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.prompts import Unpadded
from sinklens.tasks import Task
from sinklens.values.content import digest

LIKELIHOOD_SAMPLES = 16


class Decoded(NamedTuple):
    """A batch that was decoded."""

    trajectory: Trajectory
    exposure: Exposure
    memory: Memory | None


class Runner:
    """Runs prompts of a task under edits and scores them.

    Args:
        dlm: The model.
        task: Prompts plus a checker.
        plan: How to decode.
        metrics: What will be asked for.

    Attributes:
        job: Prompts and answers as the model reads them, which checks them.
        order: The prompts, those that take as many steps beside each other: they share a batch, and one that is done
            stays in it and costs as before.
        identity: What the scores depend on beside prompt, seed and edit.

    Raises:
        ValueError, PlanError, PromptError, TaskError: as in Job.
        ContentError: a model or a task whose content cannot be told.
    """

    def __init__(self, dlm: HookedDLM, task: Task, plan: Plan, metrics: Sequence[str]) -> None:
        self.dlm, self.task, self.metrics = dlm, task, list(metrics)
        self.job = Job(dlm, task, plan, metrics)
        self.plan = self.job.start.plan
        self.order = sorted(range(len(self.job.examples)), key=self.job.start.limits.__getitem__)
        self.identity = identity_of(dlm, task, self.job.start.plan)
        self.identity |= {"likelihood_samples": LIKELIHOOD_SAMPLES, "form": FORM}
        self._identity = digest(self.identity)
        self._contents = [digest(self._content(index)) for index in range(len(self.job.examples))]

    def _content(self, index: int) -> dict[str, Any]:
        """What a prompt is, for the hash."""
        example = self.job.examples[index]
        return {"prompt": example.prompt, "tokens": self.job.prompts[index], "answer": example.answer, "index": index}

    def key(self, index: int, seed: int, arm: Arm, which: Pass) -> str:
        """Hash of everything that the scores of one pass depend on: those of anything else are never taken for them."""
        metrics = sorted(name for name in self.metrics if METRICS[name].needs == which)
        parts = {"identity": self._identity, "edit": arm.content, "prompt": self._contents[index], "seed": seed}
        forced = self.job.answered[index] if which in ("forced", "likelihood") else None
        return digest({**parts, "answer": forced, "pass": which, "metrics": metrics})

    def run(
        self, prompts: Sequence[int], seed: int, edits: Sequence[Edit], which: Pass, *, rows: int
    ) -> Iterator[list[list[dict[str, Any]]]]:
        """Scores of some prompts unedited and under several edits, in shared forwards.

        Args:
            prompts: Their indices in the task.
            seed: The repetition.
            edits: The edits.
            which: The kind of run.
            rows: The most rows of a forward, if prompts and one edit fit in.

        Yields:
            For as many edits as a forward holds, the unedited run first: for each of them, the scores of each prompt.
            A score is "values", {metric: Measured}, and "edited_keys", "edited_mass" and "kept" of that row.
        """
        beside = max(1, rows // len(prompts) - 1)
        clean = self._decode(Batch(tuple(prompts), seed)).trajectory if which == "replayed" else None
        for first in range(0, max(1, len(edits)), beside):
            batch = Batch(tuple(prompts), seed, (None, *edits[first : first + beside]))
            match which:
                case "generated":
                    values, memory = self._generated(batch)
                case "forced":
                    values, memory = self._forced(batch)
                case "likelihood":
                    values, memory = self._likelihood(batch)
                case _:
                    values, memory = self._replayed(batch, clean)
            yield batch.scores(values, memory)

    def _decode(self, batch: Batch, replayed: Replayed | None = None, **options: Any) -> Decoded:
        """What became of a batch, where edits met it, and what its edits remember."""
        forced = options.get("force") is not None
        prompts = [self.job.answered[index].prompt if forced else self.job.prompts[index] for index in batch.rows]
        start = prepare_rows(self.dlm, prompts, self.plan, batch.seeds)
        trajectory, exposure, memory = Trajectory.of(start.canvas), Exposure(start.canvas), None
        options |= {"interventions": batch.interventions, "every_row": replayed is not None}
        for step in steps_from(self.dlm, start, **options):
            trajectory.add(step)
            exposure.add(step)
            memory = next(iter(step.memories), None)
            if replayed is not None:
                replayed.add(*self._predictions(step), edited_rows(step))
        return Decoded(trajectory, exposure, memory)

    def _predictions(self, step: Step) -> tuple[Any, Any, Any, Any]:
        """Predictions of a step, where they count, where they are committed, and where they are what is committed."""
        scored = slice(step.first, step.first + step.logits.shape[1])
        committed, same = (each[:, scored] for each in (step.committed, step.predicted == step.tokens))
        if self.dlm.is_causal:  # only the next position is at stake
            return step.logits, committed, committed, same
        asked = (step.canvas.masked & step.canvas.valid & step.active[:, None])[:, scored]
        return step.logits, asked, committed, same

    def _generated(self, batch: Batch) -> tuple[Values, Memory | None]:
        run, exposure, memory = self._decode(batch)
        values: Values = {name: [] for name in self.metrics if METRICS[name].needs == "generated"}
        for row, index in enumerate(batch.rows):
            clean = row % len(batch.prompts)
            tokens, committed, steps = (each[row] for each in (run.tokens, run.committed, run.commit_step))
            shared = committed & run.committed[clean]
            if "accuracy" in values:
                score = self.task.score(
                    self.job.examples[index], completion(self.dlm, self.plan, tokens[committed].tolist())
                )
                exposed = exposure.share(row, self._scored(index, tokens, committed))
                values["accuracy"].append(Measured(score.accuracy, score.total, exposed))
            if "agreement" in values:
                either = committed | run.committed[clean]
                same = ((tokens == run.tokens[clean]) & shared)[either].float()
                values["agreement"].append(
                    Measured(float(same.mean()), int(either.sum()), exposure.share(row, committed))
                )
            if "order" in values:
                alike = order(steps[shared], run.commit_step[clean, shared])
                values["order"].append(Measured(alike, int(shared.sum()), exposure.share(row, shared)))
        return values, memory

    def _scored(self, index: int, tokens: Tensor, committed: Tensor) -> Tensor:
        """The places of a row that its score depends on: up to the end, which is a choice of the model's, too."""
        places = committed.nonzero()[:, 0]
        ids = tokens[places].tolist()
        end = next((place for place, token in enumerate(ids) if token in self.dlm.ids.eos), len(ids))
        ids = ids[: end + 1] if self.plan.new_tokens else ids
        counting = torch.tensor(self.task.scored(self.job.examples[index], ids), dtype=torch.bool)
        scored = torch.zeros_like(committed)
        scored[places[: len(ids)]] = counting.to(scored.device)
        return scored

    def _forced(self, batch: Batch) -> tuple[Values, Memory | None]:
        run, exposure, memory = self._decode(batch, force=[self.job.answered[index].answer for index in batch.rows])
        values = []
        for row, index in enumerate(batch.rows):
            answer, said = self.job.answered[index].answer, run.predicted[row, run.committed[row]].tolist()
            met = exposure.places[row, run.committed[row]].tolist()
            counting = self.task.checkable(self.job.examples[index], answer)
            right = [a == b for a, b, counts in zip(said, answer, counting, strict=True) if counts]
            met = [edited for edited, counts in zip(met, counting, strict=True) if counts]
            accuracy, exposed = (sum(each) / len(each) if each else None for each in (right, met))
            value = float("nan") if accuracy is None else accuracy
            values.append(Measured(value, len(right), exposed))
        return {"forced_accuracy": values}, memory

    def _replayed(self, batch: Batch, clean: Trajectory | None) -> tuple[Values, Memory | None]:
        replayed = Replayed(len(batch.edits))
        follow = None if clean is None else clean.repeated(len(batch.edits))
        memory = self._decode(batch, replayed, follow=follow).memory
        values = replayed.result()
        names = [name for name in self.metrics if METRICS[name].needs == "replayed"]
        return {name: [Measured(*row) for row in values[name]] for name in names}, memory

    def _likelihood(self, batch: Batch) -> tuple[Values, Memory | None]:
        rows = [self.job.answered[index] for index in batch.rows]
        prompts, answers = ([Unpadded(tuple(part)) for part in parts] for parts in zip(*rows, strict=True))
        interventions = batch.interventions
        memories = [edit.memory() for edit in interventions]
        values = log_likelihood(
            self.dlm,
            prompts,
            answers,
            interventions=interventions,
            memories=memories,
            samples=LIKELIHOOD_SAMPLES,
            seed=batch.seeds,
        )
        draws = 1 if self.dlm.is_causal else LIKELIHOOD_SAMPLES
        met = [memory.forwards for memory in memories if memory.forwards is not None]
        exposed = (met[0] / draws).tolist() if met else [0.0] * len(rows)
        measured = zip(values.tolist(), [len(row.answer) for row in rows], exposed, strict=True)
        return {"log_likelihood": [Measured(*row) for row in measured]}, next(iter(memories), None)
