"""The true answers of a task, as the model reads them: behind their prompts, or in their gaps."""

from __future__ import annotations

from collections.abc import Sequence

from sinklens.decoding.answers import Answered, answer_text, answered_rows
from sinklens.decoding.plan import Plan
from sinklens.errors import PlanError, SinklensError
from sinklens.experiments.outcomes import METRICS
from sinklens.models.outline import Sketched
from sinklens.tasks import Example, Task


def read_answers(
    dlm: Sketched, task: Task, examples: Sequence[Example], plan: Plan, metrics: Sequence[str]
) -> list[Answered]:
    """Prompts and true answers as token ids; none where no metric has the model read them.

    Raises:
        ValueError: no answer, one of the wrong length, or a model without a tokenizer to read them.
        PlanError: prompt and answer exceed the context.
        PromptError: an answer that cannot be read behind its prompt.
    """
    asking = [name for name in metrics if METRICS[name].answers]
    unanswered = [example.name for example in examples if not example.answer] if asking else []
    if unanswered:
        raise ValueError(f"metric {asking[0]!r} needs true answers, and {unanswered[0]} has none; give a task")
    needs = {METRICS[name].needs for name in metrics}
    if "likelihood" in needs and plan.new_tokens == 0:
        raise ValueError("metric 'log_likelihood' scores an answer behind a prompt; filling gaps has none")
    if not needs & {"forced", "likelihood"}:
        return []
    if dlm.tokenizer is None:
        raise ValueError(f"{dlm.name} has no tokenizer; metric {asking[0]!r} needs one to read the answers")
    rows = [_read(dlm, task, example, plan) for example in examples]
    for example, row in zip(examples, rows, strict=True):
        size = len(row.prompt) + len(row.answer)
        if "forced" in needs and plan.new_tokens and len(row.answer) != plan.new_tokens:
            raise ValueError(
                f"metric 'forced_accuracy' needs answers of new_tokens={plan.new_tokens} tokens; that of "
                f"{example.name} has {len(row.answer)}"
            )
        if "likelihood" in needs and size > dlm.n_ctx:
            raise PlanError(
                f"{example.name} has a prompt of {len(row.prompt)} tokens and an answer of {len(row.answer)}; metric "
                f"'log_likelihood' needs both within the context of {dlm.n_ctx}"
            )
    return rows


def _read(dlm: Sketched, task: Task, example: Example, plan: Plan) -> Answered:
    try:
        if plan.new_tokens == 0:
            said = dlm.encode_piece(answer_text(example.answer, task.separator))
            return Answered(dlm.encode(example.prompt, chat=plan.chat), said)
        return answered_rows(dlm, [example.prompt], [example.answer], separator=task.separator, chat=plan.chat)[0]
    except SinklensError as error:
        raise type(error)(f"{example.name}: {error}") from error
