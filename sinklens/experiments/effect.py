"""What a condition does to a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sinklens.values.notebook import Shown, Told


@dataclass(frozen=True)
class Effect(Shown):
    """What a condition does to a metric, paired by prompt (the mean over seeds), with 95 % bootstrap intervals.

    Attributes:
        condition: Name of the condition.
        metric: Which metric (`outcomes.METRICS`), in its unit.
        control: Name of the control; None without one.
        pairs: Number of prompts that could be scored unmasked and under the condition.
        pairs_control: Number that could be scored under the control, too; to_control is of these.
        unmasked: Mean of the metric without an edit, over these prompts.
        value: Mean under the condition.
        to_unmasked: Mean of condition - unmasked.
        to_unmasked_interval: Its interval.
        to_unmasked_p: Two-sided p-value of a sign-flip permutation test that it is 0.
        to_control: Mean of (condition - unmasked) - (control - unmasked): the difference of differences.
        to_control_interval: Its interval.
        to_control_p: Its p-value.
        exposed: Share of the scored places that an edited forward decided, 0 to 1, over all prompts and seeds: where it
            is below 1, the rest of the places show nothing of the edit. None where nothing was to be edited.
        exposed_control: The same under the control.
        margin: The largest difference that would not matter, if one was given.
        equivalent: Whether to_unmasked is shown to be within the margin (two one-sided tests at 5 %); an interval
            that contains 0 alone shows nothing.
        equivalent_to_control: The same for to_control.
    """

    condition: str
    metric: str
    control: str | None
    pairs: int
    unmasked: float
    value: float
    to_unmasked: float
    to_unmasked_interval: tuple[float, float]
    to_unmasked_p: float
    pairs_control: int | None = None
    to_control: float | None = None
    to_control_interval: tuple[float, float] | None = None
    to_control_p: float | None = None
    exposed: float | None = None
    exposed_control: float | None = None
    margin: float | None = None
    equivalent: bool | None = None
    equivalent_to_control: bool | None = None

    def told(self) -> Told:
        """What a notebook shows: both differences, each with its interval, its p-value and what was exposed."""
        rows: list[tuple[str, Any]] = [
            ("unmasked", self.unmasked),
            ("under the condition", self.value),
            ("difference", _difference(self.to_unmasked, self.to_unmasked_interval, self.to_unmasked_p, self.pairs)),
            ("exposed", self.exposed),
        ]
        if self.control is not None and self.to_control is not None:
            found = (self.to_control, self.to_control_interval, self.to_control_p, self.pairs_control)
            rows += [(f"beyond {self.control}", _difference(*found)), ("exposed there", self.exposed_control)]
        if self.margin is not None:
            alike = [("unmasked", self.equivalent), (self.control, self.equivalent_to_control)]
            shown = [f"{'shown' if same else 'not shown'} for {side}" for side, same in alike if same is not None]
            rows.append((f"smaller than {self.margin:g}", "; ".join(shown)))
        return Told(f"What {self.condition} does to {self.metric}, paired by prompt.", rows)


def _difference(mean: float, interval: tuple[float, float] | None, p: float | None, pairs: int | None) -> str:
    within = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{mean:+.3f}{within}{'' if p is None else f', p = {p:.3g}'}, {pairs} prompts"
