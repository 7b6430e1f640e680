"""What `--model_args` says: how the model is loaded, which edits are at work, how it decodes and is sampled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sinklens.decoding.plan import Plan
from sinklens.errors import PlanError, PromptError
from sinklens.hooks import Edit
from sinklens.interventions import control as control_of
from sinklens.interventions import parse
from sinklens.models.devices import best_device
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.outline import Sketched
from sinklens.models.placing import Placing
from sinklens.values.content import Value, build
from sinklens.values.kinds import Count, Seed, read, shown

Estimator = Literal["llada", "dream"]
CUT = (
    'lm_eval cuts its arguments at commas: put a text that holds one in quotes (edit="mask:top1@layers=0,2"), or give '
    'all as JSON ({"pretrained": "tiny-dlm", "edit": "mask:top1@layers=0,2"})'
)


@dataclass(frozen=True, repr=False)
class Setting(Value):
    """What scores depend on beside the model and the request.

    Attributes:
        edits: What is done in every forward, in the order given.
        plan: How generations are decoded; its length only where it was said.
        said: The fields of the plan that were said; of length and sampling they win over what a task says.
        seed: Of Monte-Carlo masks, of sampling, and of the control.
        mc_num: Monte-Carlo draws per likelihood (LLaDA's and Dream's own name for it); unused for baselines.
        estimator: How they are drawn (`decoding.noising`).
    """

    edits: tuple[Edit, ...] = ()
    plan: Plan = field(default_factory=Plan)
    said: tuple[str, ...] = ()
    seed: Seed = 0
    mc_num: Count = 128
    estimator: Estimator = "llada"
    kind_error = PlanError


def edits_of(edit: Any, control: str | None, seed: int) -> tuple[Edit, ...]:
    """Edits from their texts, or from objects; under `control` the same edits of other keys.

    Raises:
        PlanError: a control without an edit.
        ScopeError, ValueError: as `interventions.parse` and `interventions.control`.
    """
    given = read("edit", edit, str | Edit | Sequence[str | Edit], PlanError)
    listed = [given] if isinstance(given, str | Edit) else list(given)
    edits = tuple(parse(each) if isinstance(each, str) else each for each in listed)
    if control is None:
        return edits
    if not edits:
        raise PlanError(f"control={control!r} without edit=: name the edit that it is the control of")
    return tuple(control_of(each, control, seed) for each in edits)


def plan_of(given: Any) -> tuple[Plan, tuple[str, ...]]:
    """The plan, and which of its fields were said.

    Args:
        given: A Plan; its fields by name; or a text, FIELD=VALUE joined by @, as in steps=16@block_length=8.

    Raises:
        PlanError: a text that is none of that.
        ContentError, PlanError: as `Plan`.
    """
    if isinstance(given, Plan):
        return _checked(given, tuple(each.name for each in fields(Plan)))
    asked = read("plan", given, str | Mapping[str, Any] | None, PlanError)
    if isinstance(asked, str):
        pairs = [part.partition("=") for part in asked.split("@")]
        wrong = [part[0] for part in pairs if not part[1] or not part[2]]
        names = [part[0] for part in pairs]
        if wrong or len(set(names)) < len(names):
            raise PlanError(
                f"plan={shown(asked)}: {wrong[0] if wrong else names!r} is no field with a value; write "
                "plan=steps=16@block_length=8, each field once"
            )
        asked = {name: _value(value) for name, _, value in pairs}
    asked = dict(asked or {})
    return _checked(build(Plan, asked), tuple(asked))


def _checked(plan: Plan, said: tuple[str, ...]) -> tuple[Plan, tuple[str, ...]]:
    if plan.chat:
        raise PlanError("plan: chat=true is lm_eval's own option, --apply_chat_template; leave it out of the plan")
    if "new_tokens" in said and not plan.new_tokens:
        raise PlanError("plan: new_tokens=0 fills gaps, and the harness asks for continuations; say 1 or more")
    return plan, said


def _value(text: str) -> Any:
    """A value as JSON has it, or else as the text that it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def check_model(dlm: Sketched, edits: Sequence[Edit], plan: Plan, of_diffusion: Mapping[str, Any]) -> None:
    """Raise for a model that cannot answer the harness, or not under these edits and this plan."""
    if dlm.tokenizer is None:
        raise PromptError(f"{dlm.name} has no tokenizer, and the harness asks in texts")
    if dlm.closing:
        raise PromptError(f"a text of {dlm.name} ends in {dlm.closing}, and no continuation follows that")
    for name, value in of_diffusion.items():
        if dlm.is_causal and value is not None:
            raise PlanError(f"{name}={value!r}: the autoregressive {dlm.name} is scored exactly; leave it out")
    for leaf in (leaf for edit in edits for leaf in edit.leaves()):
        leaf.where.validate(dlm.n_layers, dlm.n_heads)
    if dlm.is_causal:
        plan.resolved(dlm)


def load(pretrained: Any, others: Mapping[str, Any], check: Callable[[Sketched], None]) -> HookedDLM:
    """The model of `pretrained`, loaded as the other arguments say; a HookedDLM as it is.

    Args:
        pretrained: What `--model_args` says, or a model.
        others: The other arguments about loading, by name.
        check: Raises for a model that will not do; it is given the outline before weights are read.

    Raises:
        PlanError: an argument that there is not, or that lm_eval read as something else than the text that it was.
        CheckpointError: as `Placing` and `HookedDLM.from_pretrained`.
    """
    known = [each.name for each in fields(Placing)]
    wrong = [name for name in others if name not in known]
    if "trust_remote_code" in wrong:
        raise PlanError("trust_remote_code: sinklens runs no code of a checkpoint; leave it out")
    if wrong:
        own = ["pretrained", "edit", "control", "seed", "plan", "mc_num", "estimator", "batch_size"]
        raise PlanError(f"--model_args: {wrong[0]!r} is unknown; there are {', '.join([*own, *known])}. {CUT}")
    if isinstance(pretrained, HookedDLM):
        if others:
            raise PlanError(f"{', '.join(others)}: {pretrained!r} is loaded already")
        check(pretrained)
        return pretrained
    for name, value in {"pretrained": pretrained, **others}.items():
        if name != "mask_token_id" and value is not None and not isinstance(value, str):
            raise PlanError(
                f"{name}={value!r}: lm_eval has read this as no text; put quotes inside the argument, {name}='\"...\"'"
            )
    anywhere = {} if {"device", "device_map"} & set(others) else {"device": best_device()}
    placing = Placing(**anywhere, **others)
    check(placing.outline(pretrained))
    return placing.load(pretrained)


def size_of(batch_size: Any) -> int:
    """Rows per forward.

    Raises:
        PlanError: "auto", or anything else that is no whole number of at least 1.
    """
    text = isinstance(batch_size, str) and batch_size.isdigit()
    if isinstance(batch_size, str) and not text:
        raise PlanError(f"batch_size={batch_size!r}: sinklens does not look for one; give a number")
    return read("batch_size", int(batch_size) if text else batch_size, Count, PlanError)
