"""Prompts under several conditions at once: running them in shared forwards, and scoring them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinklens.decoding.likelihood import log_likelihood
from sinklens.decoding.loop import denoising_steps
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import first_canvas, forced_tokens, step_limits
from sinklens.decoding.run import completion
from sinklens.errors import PlanError, ScopeError
from sinklens.experiments.outcomes import METRICS, Pass, Replay, order
from sinklens.hooks import Intervention, leaves
from sinklens.interventions import SideBySide
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import Task
from sinklens.version import __version__

LIKELIHOOD_SAMPLES = 16


@dataclass
class _Decoded:
    """A batch after decoding."""

    tokens: Tensor
    commit_step: Tensor
    predicted: Tensor
    filled: Tensor


class Trials:
    """Runs prompts of a task under edits and scores them.

    Args:
        dlm: The model.
        task: Prompts plus a checker.
        plan: How to decode.
        metrics: What will be asked for; those that need answers must find some that fit, which is checked here.

    Raises:
        ValueError: an answer of the wrong length, no answer, or a model without a tokenizer to read answers.
    """

    def __init__(self, dlm: HookedDLM, task: Task, plan: Plan, metrics: Sequence[str]) -> None:
        self.dlm, self.task, self.plan, self.metrics = dlm, task, plan, list(metrics)
        self.passes: list[Pass] = list(dict.fromkeys(METRICS[name].needs for name in metrics))
        self.examples = [task[index] for index in range(len(task))]
        self.answers: list[list[int]] = []
        asking = [name for name in metrics if METRICS[name].answers]
        unanswered = [example.name for example in self.examples if not example.answer] if asking else []
        if unanswered:
            raise ValueError(f"metric {asking[0]!r} needs true answers, and {unanswered[0]} has none; give a task")
        if {"forced", "likelihood"} & set(self.passes):
            if dlm.tokenizer is None:
                raise ValueError(f"{dlm.name} has no tokenizer; metric {asking[0]!r} needs one to read the answers")
            self.answers = [
                list(dlm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]) for example in self.examples
            ]
        if "forced" in self.passes:
            for example, answer in zip(self.examples, self.answers, strict=True):
                if plan.new_tokens and len(answer) != plan.new_tokens:
                    raise ValueError(
                        f"metric 'forced_accuracy' needs answers of new_tokens={plan.new_tokens} tokens; that of "
                        f"{example.name} has {len(answer)}"
                    )
        if "likelihood" in self.passes and plan.new_tokens == 0:
            raise ValueError("metric 'log_likelihood' scores an answer behind a prompt; filling gaps has none")
        weights = [float(weight.detach().double().sum()) for weight in dlm.bridge.parameters()]
        checker = getattr(getattr(task, "extract", None), "pattern", None)
        self._task = (type(task).__name__, checker)
        self._model = repr((__version__, dlm.name, dlm.revision, dlm.dtype, weights, plan))
        # Prompts that take as many steps share a batch: one that is done stays in it and costs as before.
        self.order = list(range(len(self.examples)))
        self._unedited: tuple[Any, _Decoded | None] = (None, None)

    def check(self, arms: Sequence[tuple[str, Intervention]]) -> None:
        """Raise for whatever cannot be run, before anything is.

        Args:
            arms: Every edit, with the name of its condition.

        Raises:
            PlanError: a prompt or a plan that cannot be carried out.
            ScopeError: an edit that cannot act, naming its condition.
        """
        dlm, plan = self.dlm, self.plan.resolved(self.dlm)
        prompts = [example.prompt for example in self.examples]
        canvas, _ = first_canvas(dlm, prompts, plan, (0,) * len(prompts))
        if "forced" in self.passes:
            forced_tokens(canvas, self.answers)
        if arms and plan.cfg_scale:
            raise PlanError(f"cfg_scale={plan.cfg_scale:g}: edits under classifier-free guidance have no one meaning")
        limits = step_limits(dlm, plan, canvas)
        self.order = sorted(range(len(limits)), key=limits.__getitem__)
        total = max(limits) if plan.threshold is None else None
        for name, edit in arms:
            for leaf in leaves(edit):
                try:
                    leaf.where.validate(dlm.n_layers, dlm.n_heads, total, min(limits))
                    if "likelihood" in self.passes and leaf.where.steps is not None:
                        raise ScopeError(f"{leaf!r} names steps, and metric 'log_likelihood' has none")
                    getattr(leaf, "check", lambda *_: None)(dlm, canvas)
                    if hasattr(leaf, "detector"):
                        leaf.detector.query_set(causal=dlm.is_causal)
                except ValueError as error:
                    raise type(error)(f"condition {name!r}: {error}") from error

    def fingerprint(self, index: int, seed: int, edit: Intervention | None, which: Pass) -> str:
        """Everything that a score depends on: a stored score of anything else is never reused."""
        example, wanted = self.examples[index], [name for name in self.metrics if METRICS[name].needs == which]
        parts = (self._model, self._task, example.prompt, example.answer, index, seed, edit, wanted)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    def run(
        self, batch: Sequence[int], seed: int, edits: Sequence[Intervention | None], which: Pass
    ) -> list[list[dict[str, Any]]]:
        """Scores of some prompts under several edits, of which the first is None, in shared forwards.

        Returns:
            For each edit and each prompt: "values", {metric: [value, places]} (nan if nothing counts); "edited_keys"
            and "edited_mass" of that row.
        """
        composed = SideBySide(edits, len(batch)) if any(edit is not None for edit in edits) else None
        parts: list[Any] = [composed] if composed is not None else []
        seeds = [seed * 1_000_003 + index for index in batch] * len(edits)
        scores = {"generated": self._generated, "forced": self._forced, "replayed": self._replayed}
        if which == "likelihood":
            found = self._likelihood(batch, seeds, parts, len(edits))
        else:
            found = scores[which](list(batch), seeds, parts, len(edits))
        out = []
        for group, edit in enumerate(edits):
            counts = {
                name: getattr(edit, "per_row", lambda _: [])(name) or [0] * len(batch) for name in ("keys", "mass")
            }
            out.append(
                [
                    {
                        "values": {name: found[name][group * len(batch) + row] for name in found},
                        "edited_keys": int(counts["keys"][row]),
                        "edited_mass": float(counts["mass"][row]),
                    }
                    for row in range(len(batch))
                ]
            )
        return out

    def _decode(self, batch: list[int], seeds: list[int], parts: list[Any], groups: int, **more: Any) -> _Decoded:
        prompts = [self.examples[index].prompt for index in batch] * groups
        plan = self.plan
        replay = more.pop("replay", None)
        state: _Decoded | None = None
        for step in denoising_steps(self.dlm, prompts, plan, seed=seeds, interventions=parts, **more):
            if state is None:
                blank = torch.full_like(step.tokens, -1)
                whole = torch.zeros_like(step.tokens, dtype=torch.bool)
                state = _Decoded(step.tokens, blank, blank.clone(), whole)
            at = step.committed
            state.tokens = step.tokens
            state.commit_step = torch.where(at, step.index, state.commit_step)
            state.predicted = torch.where(at, step.predicted, state.predicted)
            state.filled = state.filled | at
            if replay is not None:
                self._add(replay, step)
        if state is None:
            raise ValueError("the plan has no step")
        return state

    def _add(self, replay: Replay, step: Any) -> None:
        logits, committed = step.logits, step.committed
        masked = step.canvas.masked & step.canvas.valid & step.active[:, None]
        if self.dlm.is_causal:  # row i scores token i + 1, and only the next position is at stake
            logits = torch.cat([logits[:, :1], logits], 1)
            committed = committed[:, : logits.shape[1]]
            masked = committed
        predicted, tokens = step.predicted[:, : masked.shape[1]], step.tokens[:, : masked.shape[1]]
        replay.add(logits, masked, committed, predicted == tokens)

    def _generated(self, batch: list[int], seeds: list[int], parts: list[Any], groups: int) -> dict[str, list]:
        done = self._decode(batch, seeds, parts, groups)
        found: dict[str, list] = {name: [] for name in self.metrics if METRICS[name].needs == "generated"}
        for row in range(len(seeds)):
            filled, clean = done.filled[row], row % len(batch)
            example = self.examples[batch[clean]]
            if "accuracy" in found:
                score = self.task.score(example, completion(self.dlm, self.plan, done.tokens[row, filled].tolist()))
                found["accuracy"].append([score.accuracy, score.total])
            both = filled | done.filled[clean]
            if "agreement" in found:
                same = ((done.tokens[row] == done.tokens[clean]) & filled & done.filled[clean])[both].float()
                found["agreement"].append([float(same.mean()), int(both.sum())])
            if "order" in found:
                shared = filled & done.filled[clean]
                steps = done.commit_step[row, shared], done.commit_step[clean, shared]
                found["order"].append([order(*steps), int(shared.sum())])
        return found

    def _forced(self, batch: list[int], seeds: list[int], parts: list[Any], groups: int) -> dict[str, list]:
        answers = [self.answers[index] for index in batch]
        done = self._decode(batch, seeds, parts, groups, force=answers * groups)
        found = []
        for row in range(len(seeds)):
            index, answer = batch[row % len(batch)], answers[row % len(batch)]
            said = done.predicted[row, done.filled[row]].tolist()
            places = self.task.checkable(self.examples[index], answer)
            right = [a == b for a, b, counts in zip(said, answer, places, strict=True) if counts]
            found.append([sum(right) / len(right) if right else float("nan"), len(right)])
        return {"forced_accuracy": found}

    def _replayed(self, batch: list[int], seeds: list[int], parts: list[Any], groups: int) -> dict[str, list]:
        name = (tuple(batch), tuple(seeds[: len(batch)]))
        if self._unedited[0] != name:
            self._unedited = (name, self._decode(batch, seeds[: len(batch)], [], 1))
        clean = self._unedited[1]
        if clean is None:
            raise ValueError("there is no unedited run to follow")
        followed = _Decoded(*(part.repeat(groups, 1) for part in vars(clean).values()))
        replay = Replay(groups)
        self._decode(batch, seeds, parts, groups, follow=followed, replay=replay)
        found = replay.result()
        return {
            name: [list(pair) for pair in found[name]] for name in self.metrics if METRICS[name].needs == "replayed"
        }

    def _likelihood(self, batch: Sequence[int], seeds: list[int], parts: list[Any], groups: int) -> dict[str, list]:
        answers = [self.answers[index] for index in batch]
        prompts = [self.examples[index].prompt for index in batch] * groups
        values = log_likelihood(
            self.dlm, prompts, answers * groups, interventions=parts, samples=LIKELIHOOD_SAMPLES, seed=seeds
        )
        places = [len(answer) for answer in answers * groups]
        return {"log_likelihood": [[float(value), count] for value, count in zip(values, places, strict=True)]}
