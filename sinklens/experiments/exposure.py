"""Exposure: how much of what is scored was decided by forwards that were edited; none is an error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinklens.errors import NeverExposed, PartlyExposed
from sinklens.hooks import Edit
from sinklens.interventions.edits.weights import NoOp

if TYPE_CHECKING:
    from sinklens.experiments.arms import Arm

TO_DO = (
    "Say first='same' (PreviousStep), or same/... in the grammar (mask:same/top1), to edit the step by its own "
    "attention; or decode over more steps"
)


def must_change(arms: Sequence[Arm]) -> None:
    """Raise, before the first forward, for an experiment of which every condition is the identity.

    Beside a condition that changes something an identity (a bias of 0) is a point of a curve: the unedited model.

    Raises:
        NeverExposed: quoting the first of them.
    """
    identities = _identities(arms)
    if identities and not any(arm.kind == "sinks" and _changing(arm) for arm in arms):
        raise NeverExposed(
            f"{identities[0]}: {identities[0].edit!r} is the identity: its numbers would be those of the unedited "
            "model ('unmasked'), which is this point of a curve. Give another dose, alone or beside it"
        )


def must_meet(arm: Arm, most: int, steps: int | None) -> None:
    """Raise, before the first forward, for an edit that no step of this run can see at work.

    Args:
        arm: The arm.
        most: The most steps that a row can take.
        steps: Steps of the run; None if the model decides.

    Raises:
        NeverExposed: quoting the edit, and saying what to do.
    """
    edits = _changing(arm)
    if not edits or any(_acts(edit, most, steps) for edit in edits):
        return
    early = any(edit.earliest for edit in edits)
    why = "finds no key before step 1, for it reads the step before" if early else "is at work at none of them"
    raise NeverExposed(
        f"{arm}: {arm.edit!r} would never meet what is scored: the run takes {most} step{'s' * (most > 1)}, and it "
        f"{why}; its numbers would be those of the unedited model. {TO_DO if early else 'Name other steps'}"
    )


def _acts(edit: Edit, most: int, steps: int | None) -> bool:
    return any(edit.where.at(step, steps) for step in range(edit.earliest, most))


def judge(result: Any, arms: Sequence[Arm]) -> None:
    """What a finished ablation's exposure comes to: an error, a warning, or nothing.

    Args:
        result: The ablation; it goes onto the error.
        arms: Its arms.

    Raises:
        NeverExposed: a condition or a control that met no scored place at all.
    """
    shares = exposed(result.scores)
    never = [key for key, share in shares.items() if share == 0]
    if never:
        early = [arm for arm in arms if (arm.condition, arm.kind) in {key[:2] for key in never} and _looks_back(arm)]
        other = (
            "Its selector found no key there that a query looks at, its steps never came, or its dose is none: give "
            "another rule, scope, dose or control"
        )
        raise NeverExposed(
            f"{_names(never)} never met what is scored: every scored place was decided by a forward in which nothing "
            f"was changed, so the numbers are those of the unedited model. {TO_DO if early else other}. All "
            "scores are in this error's attribute `result`, and in save_to",
            result,
        )
    for arm in _identities(arms):
        warnings.warn(
            f"{arm}: {arm.edit!r} is the identity; its numbers are those of the unedited model",
            PartlyExposed,
            stacklevel=4,
        )
    partly = {key: share for key, share in shares.items() if share < 1}
    if partly:
        said = ", ".join(f"{_name(key)} {share:.2g}" for key, share in partly.items())
        warnings.warn(
            f"some scored places were decided by forwards that edited nothing; the share that was exposed: {said}",
            PartlyExposed,
            stacklevel=4,
        )


def exposed(scores: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Mean exposure by condition, kind and metric, of the arms that have one."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        if score["exposed"] is not None:
            key = score["condition"], score["kind"], score["metric"]
            found.setdefault(key, []).append(score["exposed"])
    return {key: sum(each) / len(each) for key, each in found.items()}


def _looks_back(arm: Arm) -> bool:
    """Whether the edit may be too late only because it reads the step before."""
    return all(leaf.earliest > 0 and leaf.where.steps is None for leaf in _changing(arm))


def _changing(arm: Arm) -> list[Edit]:
    """The edits of an arm under which the model may compute something else."""
    return [] if arm.edit is None else [leaf for leaf in arm.edit.leaves() if leaf.changes]


def _identities(arms: Sequence[Arm]) -> list[Arm]:
    """Conditions that change nothing, and are not there for that (NoOp)."""
    idle = [arm for arm in arms if arm.edit is not None and arm.kind == "sinks" and not _changing(arm)]
    return [arm for arm in idle if not all(isinstance(leaf, NoOp) for leaf in (arm.edit.leaves() if arm.edit else ()))]


def _names(keys: Sequence[tuple[str, str, str]]) -> str:
    return ("condition " if len(keys) == 1 else "conditions ") + ", ".join(map(_name, keys))


def _name(key: tuple[str, str, str]) -> str:
    condition, kind, metric = key
    return f"{condition!r} ({metric})" if kind == "sinks" else f"{condition!r} ({kind}, {metric})"
