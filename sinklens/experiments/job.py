"""The job of an ablation: a task as a model reads it under a plan, checked before a forward, or before weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sinklens.decoding.likelihood import check_stepless, whole_canvas
from sinklens.decoding.loop import check_parts
from sinklens.decoding.past import has_past
from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import Start, forced_tokens, prepare, prepare_rows
from sinklens.errors import PlanError, SinklensError
from sinklens.experiments.answers import read_answers
from sinklens.experiments.arms import Arm
from sinklens.experiments.exposure import must_meet
from sinklens.experiments.outcomes import METRICS, Pass
from sinklens.experiments.words import refuse_other_vocabulary, refuse_unknown
from sinklens.hooks import Edit
from sinklens.models.outline import Sketched
from sinklens.tasks import Task


class Job:
    """The prompts and answers of a task as token ids, and what is asked of them.

    Args:
        dlm: The model; its outline says the same, before weights are read.
        task: Prompts plus a checker.
        plan: How to decode.
        metrics: What will be asked for; those that need answers must find some that fit, which is checked here.

    Attributes:
        passes: The kinds of runs that the metrics need.
        examples: The task's examples.
        answered: Prompts and true answers as token ids; none where no metric has the model read them.
        start: All prompts before the first step, for what is checked before anything is run.
        prompts: Token ids of each prompt.

    Raises:
        ValueError: an answer of the wrong length, no answer, or a model without a tokenizer to read answers.
        PlanError: a prompt or a plan that cannot be carried out.
        PromptError: a prompt or an answer that cannot be read.
        TaskError: words that the tokenizer does not know, or a task in the language of another model.
    """

    def __init__(self, dlm: Sketched, task: Task, plan: Plan, metrics: Sequence[str]) -> None:
        self.dlm = dlm
        if plan.cache is None and plan.editing == "scratch" and has_past(dlm):
            plan = replace(plan, cache=False)  # arms are compared, and must not differ by rounding
        self.passes: list[Pass] = list(dict.fromkeys(METRICS[name].needs for name in metrics))
        self.examples = [task[index] for index in range(len(task))]
        resolved = plan.resolved(dlm)  # what is wrong with a plan is said before what is wrong with a prompt
        if resolved.editing == "local" and "likelihood" in self.passes:
            raise PlanError(
                "editing='local' needs steps, and a likelihood has none: it reads an answer at once, every position "
                "edited; use a metric of the denoising run, or editing='scratch'"
            )
        refuse_other_vocabulary(dlm, task)
        refuse_unknown(dlm.tokenizer, self.examples, answers=bool({"forced", "likelihood"} & set(self.passes)))
        self.answered = read_answers(dlm, task, self.examples, resolved, metrics)
        self.start = prepare(dlm, [example.prompt for example in self.examples], plan)
        self.prompts = _tokens(self.start)
        self._starts = [self.start]
        if "forced" in self.passes:
            self._starts.append(prepare_rows(dlm, [row.prompt for row in self.answered], plan))
            forced_tokens(dlm, self._starts[1].canvas, [row.answer for row in self.answered])
        self._whole = whole_canvas(dlm, self.answered, 0)[0] if "likelihood" in self.passes else None

    def check(self, arms: Sequence[Arm]) -> None:
        """Raise for an edit that cannot be at work, before anything is run; the error names its condition.

        Args:
            arms: Every arm.

        Raises:
            ScopeError: a scope that selects nothing, or an edit that cannot act on one of the prompts.
            PlanError: edits under a plan that allows none.
            NeverExposed: an edit that no step can see at work.
        """
        for arm in arms:
            if arm.edit is None:
                continue
            try:
                self._check(arm.edit)
            except ValueError as error:
                kind = type(error) if isinstance(error, SinklensError) else ValueError
                raise kind(f"{arm}: {error}") from error
            if set(self.passes) - {"likelihood"}:
                must_meet(arm, max(self.start.limits), self.start.steps)

    def _check(self, edit: Edit) -> None:
        for start in self._starts:
            check_parts(self.dlm, start, (), [edit])
        if self._whole is not None:
            check_stepless(self.dlm, self._whole, [edit])


def _tokens(start: Start) -> list[list[int]]:
    """Token ids of each prompt."""
    end = start.canvas.tokens.shape[1] - start.plan.new_tokens
    return [row[first:end].tolist() for row, first in zip(start.canvas.tokens, start.starts, strict=True)]
