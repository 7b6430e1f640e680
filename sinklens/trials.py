"""One prompt under one condition: running it, scoring it, and keeping the score on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sinklens.interventions import SinkEdit
from sinklens.model import HookedDLM
from sinklens.plan import Plan
from sinklens.running import denoise
from sinklens.tasks import Task
from sinklens.version import __version__

Outcome = Literal["generated", "forced"]


class Trials:
    """Runs prompts of a task under an edit and scores them.

    Args:
        dlm: The model.
        task: Prompts plus a checker.
        plan: How to decode.
        outcomes: What will be asked for; "forced" needs answers that fit the plan, which is checked here.

    Raises:
        ValueError: an answer of the wrong length, or a model without a tokenizer to read answers.
    """

    def __init__(self, dlm: HookedDLM, task: Task, plan: Plan, outcomes: Sequence[Outcome]) -> None:
        self.dlm, self.task, self.plan = dlm, task, plan
        self.examples = [task[index] for index in range(len(task))]
        self.answers: list[list[int]] = []
        if "forced" in outcomes:
            if dlm.tokenizer is None:
                raise ValueError(f"{dlm.name} has no tokenizer; outcome 'forced' needs one to read the answers")
            self.answers = [
                list(dlm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]) for example in self.examples
            ]
            for example, answer in zip(self.examples, self.answers, strict=True):
                if plan.new_tokens and len(answer) != plan.new_tokens:
                    raise ValueError(
                        f"outcome 'forced' needs answers of new_tokens={plan.new_tokens} tokens; that of "
                        f"{example.name} has {len(answer)}"
                    )
        weights = [float(weight.detach().double().sum()) for weight in dlm.bridge.parameters()]
        self._model = repr((__version__, dlm.name, dlm.revision, dlm.dtype, weights, plan))

    def fingerprint(self, index: int, seed: int, edit: SinkEdit | None, outcome: Outcome) -> str:
        """Everything that a score depends on: a stored score of anything else is never reused."""
        example = self.examples[index]
        parts = (self._model, type(self.task).__name__, example.prompt, example.answer, index, seed, edit, outcome)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    def run(self, batch: Sequence[int], seed: int, edit: SinkEdit | None, outcome: Outcome) -> list[dict[str, Any]]:
        """Scores of some prompts: prompt, name, correct, total, accuracy (nan if nothing counts), edited_keys."""
        forced = [self.answers[index] for index in batch] if outcome == "forced" else None
        run = denoise(
            self.dlm,
            [self.examples[index].prompt for index in batch],
            self.plan,
            interventions=[] if edit is None else [edit],
            seed=[seed * 1_000_003 + index for index in batch],
            force=forced,
            progress=False,
        )
        if not run.finished:
            raise KeyboardInterrupt
        edited = (edit.keys_per_row() if edit is not None else []) or [0] * len(batch)
        rows = []
        for row, index in enumerate(batch):
            example = self.examples[index]
            if forced is None:
                score = self.task.score(example, run.completions[row])
                correct, total = score.correct, score.total
            else:
                said = run.predicted[row, run.filled[row]].tolist()
                places = self.task.checkable(example, forced[row])
                right = [a == b for a, b, counts in zip(said, forced[row], places, strict=True) if counts]
                correct, total = sum(right), len(right)
            accuracy = correct / total if total else float("nan")
            rows.append(
                {
                    "prompt": index,
                    "name": example.name,
                    "correct": correct,
                    "total": total,
                    "accuracy": accuracy,
                    "edited_keys": edited[row],
                }
            )
        return rows


class Store:
    """Finished scores by fingerprint, in memory and, if a path is given, in a JSONL file (one line per batch).

    A last line that a kill cut off is dropped, and its batch is run again.

    Raises:
        ValueError: a damaged line that is not the last.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path is not None else None
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path is None or not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                self.rows.update(json.loads(line))
            except (json.JSONDecodeError, ValueError, TypeError) as error:
                if number < len(lines):
                    raise ValueError(
                        f"{self.path}, line {number} is damaged; delete the file to start again"
                    ) from error
                lines = lines[:-1]
        whole = "".join(f"{line}\n" for line in lines)
        if whole != text:
            partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
            partial.write_text(whole, encoding="utf-8")
            partial.replace(self.path)

    def add(self, rows: Mapping[str, dict[str, Any]]) -> None:
        """Keep finished scores, on disk at once."""
        self.rows.update(rows)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows) + "\n")
