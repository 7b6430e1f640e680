"""What of an experiment is refused before any weight is read: from its fields, its files, and the model's outline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinklens.errors import PlanError
from sinklens.experiments.arms import arms_of
from sinklens.experiments.job import Job
from sinklens.experiments.outcomes import known
from sinklens.models.outline import Sketched
from sinklens.tasks import Task, bundled
from sinklens.tasks.jsonl import check_separator
from sinklens.tasks.matching import check_extract

if TYPE_CHECKING:
    from sinklens.experiments.config import Experiment


def check_fields(asked: Experiment) -> None:
    """Raise for fields that do not go together, whatever the model.

    Raises:
        PlanError: a field that the task has no use for, a seed or a metric that is named twice.
        TaskError: an `extract` that cannot be read, a `separator` that is no white space.
        ValueError: an unknown metric or control, two conditions that are one edit.
    """
    check_extract(asked.extract, asked.match)
    if asked.separator != "as-written":
        check_separator(asked.separator)
    if asked.task in ("echo", *bundled.NAMES) and (asked.separator != " " or asked.extract):
        told = f"extract={asked.extract!r}" if asked.extract else f"separator={asked.separator!r}"
        raise PlanError(f"{told} is for tasks from a file; {asked.task!r} is checked in its own way")
    if asked.task != "echo" and asked.gaps:
        raise PlanError(f"gaps={asked.gaps:g} is for the task 'echo'; of {asked.task!r} new_tokens=0 fills the gaps")
    twice = [seed for seed in asked.seeds if asked.seeds.count(seed) > 1]
    if twice:
        raise PlanError(f"seed {twice[0]} is named twice in seeds={list(asked.seeds)}")
    if asked.metrics:
        known(list(asked.metrics))
    arms_of(asked.make_edits(), asked.controls or None)


def check_model(model: Sketched, task: Task, asked: Experiment) -> None:
    """Raise for what cannot be done with a model of this outline: all that an ablation raises before its first forward.

    Raises:
        PlanError: a plan that it cannot carry out, prompts or answers beyond its context.
        PromptError: a prompt or an answer that cannot be read.
        ScopeError: layers, heads or positions that it does not have.
        NeverExposed: an edit that no step can see at work.
        TaskError: words that its tokenizer does not know.
        ValueError: no answer, or one of the wrong length.
    """
    job = Job(model, task, asked.make_plan(), known(list(asked.asked_metrics)))
    job.check(arms_of(asked.make_edits(), asked.controls or None))
