"""What the scores of an experiment depend on beside prompt, seed and edit: a part of every score's key."""

from __future__ import annotations

from typing import Any

from sinklens.decoding.plan import Plan
from sinklens.errors import ContentError
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import Task
from sinklens.values.content import digest
from sinklens.version import __version__


def identity_of(dlm: HookedDLM, task: Task, plan: Plan) -> dict[str, Any]:
    """The version, the model as it is now, the plan and the checker, as plain data. Reads all weights.

    Args:
        dlm: The model.
        task: The task, whose examples are told apart by their own content.
        plan: With the family's defaults filled in.

    Raises:
        ContentError: a model or a task whose content cannot be told.
    """
    try:
        checker = task.checker()
    except ContentError as error:
        raise ContentError(f"the task {task.name!r}: {error}") from error
    return {**model_identity(dlm), "plan": plan.to_dict(), "task": checker}


def model_identity(dlm: HookedDLM) -> dict[str, Any]:
    """The version and the model as it is now, as plain data. Reads all weights."""
    return {
        "sinklens": __version__,
        "model": dlm.fingerprint(),
        "device": dlm.device.type,  # which computes the same a little differently
        "tokenizer": tokenizer_digest(dlm),
    }


def tokenizer_digest(dlm: HookedDLM) -> str | None:
    """Hash of what completions are read with; what prompts are read with shows in their tokens."""
    if dlm.tokenizer is None:
        return None
    return digest({"tokens": dlm.tokenizer.get_vocab(), "special": sorted(dlm.tokenizer.all_special_ids)})
