"""Controls: the same edit, done to keys that are no sinks, or with a vector that is no direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import xarray as xr

from sinklens.hooks import Edit
from sinklens.interventions.edits.base import SinkEdit
from sinklens.interventions.edits.budget import KeepKeys
from sinklens.interventions.edits.by_chance import ChanceSelection
from sinklens.interventions.edits.feature_by_chance import chance
from sinklens.interventions.edits.features import Feature
from sinklens.interventions.edits.learned import LearnedSelection
from sinklens.interventions.edits.steer import By, Steer
from sinklens.interventions.edits.weights import NoOp
from sinklens.interventions.selectors.attention import ByRule
from sinklens.interventions.selectors.base import Selector
from sinklens.interventions.selectors.matched import (
    BottomKeys,
    Matched,
    RandomKeys,
    SameClass,
    SameMass,
    ShiftedKeys,
)
from sinklens.interventions.selectors.record import FromRecord
from sinklens.values.kinds import Seed, reads

CONTROLS: dict[str, type[Matched]] = {
    "random": RandomKeys,
    "same_mass": SameMass,
    "bottom": BottomKeys,
    "same_class": SameClass,
    "shifted": ShiftedKeys,
}
DIRECTIONS: dict[str, By] = {"random_direction": "random", "orthogonal_direction": "orthogonal"}


@reads()
def control(edit: Edit, name: str = "random", seed: Seed = 0) -> Edit:
    """The same edit in the same scope, done to other keys: "random", "same_mass", "bottom", "same_class", "shifted".

    "noop" finds the sinks and does nothing. KeepKeys has the control "random": as many keys, kept at random.
    LearnedSelection has it, too: as many tokens as the gate keeps, drawn by chance (`ChanceSelection`);
    and Feature: at each position as many other active features (`ChanceFeature`).

    Steer acts on no keys and has controls of its own: "random_direction", a random vector of the same norm in each
    layer, and "orthogonal_direction", one at a right angle to the direction.

    Raises:
        ValueError: an unknown control, or one that cannot match the edit.
    """
    known = (*CONTROLS, "noop", *DIRECTIONS)
    if name not in known:
        raise ValueError(f"control {name!r} is unknown; the controls are {', '.join(known)}")
    if isinstance(edit, Steer):
        if name not in DIRECTIONS or edit.by != "direction":
            raise ValueError(
                f"{edit!r} acts on no keys, so control {name!r} cannot match it; a Steer by a direction has the "
                f"controls {' and '.join(map(repr, DIRECTIONS))}"
            )
        return replace(edit, by=DIRECTIONS[name], seed=seed)
    if name in DIRECTIONS:
        raise ValueError(f"control {name!r} is for Steer, and {edit!r} adds no direction; say controls='random'")
    if isinstance(edit, KeepKeys | LearnedSelection | Feature):
        if name != "random":
            raise ValueError(f"{edit!r} has the control 'random' only: as many others, drawn by chance")
        if isinstance(edit, Feature):
            return chance(edit, seed)
        if isinstance(edit, KeepKeys):
            return replace(edit, by="random", seed=seed)
        return ChanceSelection(edit, seed=seed, where=edit.where, queries=edit.queries, diagonal=edit.diagonal)
    if not isinstance(edit, SinkEdit):
        raise ValueError(
            f"{edit!r} acts on no selected keys, so no control can match it; say controls=None, or name edits to "
            "compare it with as conditions"
        )
    if name == "noop":
        return NoOp(edit.selector, where=edit.where, queries=edit.queries, diagonal=edit.diagonal)
    return with_selector(edit, CONTROLS[name](edit.selector, seed))


def with_selector(edit: SinkEdit, selector: Selector) -> SinkEdit:
    """The same edit of other keys."""
    changed: Any = {"selector": selector}
    return replace(edit, **changed)


@reads()
def other_prompt(record: xr.Dataset, shift: int = 1) -> Callable[[SinkEdit], SinkEdit]:
    """Make a control out of a record: the sinks of another prompt, for `controls={"other prompt": ...}` of `ablate`.

    Each prompt gets, at the same step, layer and head, the sinks that the record shows for the prompt `shift` rows
    further, by the edit's own rule. What prompts share (a sink on BOS, say) is touched here, too.

    Args:
        record: Of the same prompts, with `received`.
        shift: How many rows further.

    Returns:
        A function from an edit to its control.

    Raises:
        ValueError: from that function, for an edit whose selector has no rule.
    """

    def of_another_prompt(edit: SinkEdit) -> SinkEdit:
        selector = edit.selector
        if not isinstance(selector, ByRule | FromRecord):
            raise ValueError(f"{selector!r} has no rule by which a record could show another prompt's sinks")
        return with_selector(edit, FromRecord(record, selector.rule, shift=shift))

    return of_another_prompt
