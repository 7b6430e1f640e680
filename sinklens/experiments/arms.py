"""The arms of an ablation: nothing edited, each condition, and each condition's controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sinklens.errors import ContentError
from sinklens.experiments.exposure import must_change
from sinklens.experiments.results import UNMASKED
from sinklens.hooks import Edit
from sinklens.interventions import control
from sinklens.values.content import digest
from sinklens.values.kinds import read

Controls = str | None | Sequence[str] | Mapping[str, Callable[[Any], Edit]]


@dataclass(frozen=True)
class Arm:
    """One way in which every prompt is run.

    Attributes:
        condition: Name of the condition.
        kind: "unmasked", "sinks", or a control's name.
        edit: What is done; None for nothing.
        content: The edit's digest: arms with one content are one run, and share its scores.
    """

    condition: str = UNMASKED
    kind: str = UNMASKED
    edit: Edit | None = None
    content: str | None = None

    def __str__(self) -> str:
        return f"condition {self.condition!r}" + (f" ({self.kind})" if self.kind != "sinks" else "")


def arms_of(conditions: Mapping[str, Edit], controls: Controls) -> list[Arm]:
    """The unedited arm, then each condition with its controls.

    Raises:
        ValueError: a name that is taken, a condition that is no edit, two conditions that are the same edit, an edit
            that no control can match.
        ContentError: an edit whose content cannot be told, with the name of its condition.
        NeverExposed: every condition is the identity.
    """
    conditions = read("conditions", conditions, Mapping[str, Any])
    if UNMASKED in conditions:
        raise ValueError(f"the condition name {UNMASKED!r} is taken by the unedited run")
    arms, names = [Arm()], dict[str, str]()
    for condition, edit in conditions.items():
        arm = _arm(condition, "sinks", edit)
        other = names.setdefault(str(arm.content), condition)
        if other != condition:
            raise ValueError(
                f"conditions {other!r} and {condition!r} are one and the same edit, {edit!r}; leave one of them out"
            )
        arms += [arm, *(_arm(condition, kind, matched) for kind, matched in _controls(edit, controls))]
    must_change(arms)
    return arms


def _arm(condition: str, kind: str, edit: Any) -> Arm:
    arm = Arm(condition, kind)
    if not isinstance(edit, Edit):
        raise ValueError(f"{arm} is {edit!r}, which is no edit; one of your own has the base sinklens.Edit")
    try:
        return replace(arm, edit=edit, content=digest(edit))
    except ContentError as error:
        raise ContentError(f"{arm}: {error}") from error


def _controls(edit: Any, controls: Controls) -> list[tuple[str, Any]]:
    if controls is None:
        return []
    if isinstance(controls, Mapping):
        matched = [(name, make(edit)) for name, make in controls.items()]
    else:
        names = [controls] if isinstance(controls, str) else list(controls)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"control {twice[0]!r} is named twice")
        matched = [(name, control(edit, name)) for name in names]
    taken = {UNMASKED, "sinks"} & {name for name, _ in matched}
    if taken:
        raise ValueError(f"the control name {taken.pop()!r} is taken")
    return matched
