"""The scope of a probe or an edit: layers, heads, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.values.content import Value

Selection = int | slice | Sequence[int] | None
ENDLESS = 4096  # steps that are looked at where a run's number of steps is not known


@dataclass(frozen=True, repr=False)
class Scope(Value):
    """Where a probe or an edit is at work. A part that cannot honour one of the fields refuses it.

    Attributes:
        layers: Which layers; all when None. An int, a range, a list or a slice; negative counts from the end.
        heads: Which query heads, likewise.
        steps: Which denoising steps, likewise.
        event: "step", every denoising step; or "store", of a model that sees block by block: the forward that reads a
            finished block once more, which is what later blocks see of it (`Plan.cache`, `Plan.editing`).

    Raises:
        ScopeError: a selection that is no whole number, range, slice or list of whole numbers.
    """

    layers: Selection = None
    heads: Selection = None
    steps: Selection = None
    event: Literal["step", "store"] = "step"
    kind_error = ScopeError

    def __post_init__(self) -> None:
        if self.event == "store" and self.steps is not None:
            raise ScopeError(f"steps={self.steps!r}: store events are no steps; leave one of them out")

    def __hash__(self) -> int:  # slices have no hash before Python 3.12
        return hash(self.digest)

    def at(self, step: int, steps: int | None = None) -> bool:
        """Whether a step is in scope. `steps` resolves negative indices and open ends."""
        if self.event == "store":
            return False
        if self.steps is None:
            return True
        if isinstance(self.steps, slice):
            return step in range(*self.steps.indices(steps if steps is not None else 1 << 30))
        return any(step == (index if index >= 0 or steps is None else steps + index) for index in _named(self.steps))

    def head_mask(self, heads: int, device: torch.device) -> Bool[Tensor, "1 head 1"]:
        """True at the heads in scope."""
        mask = torch.zeros(heads, dtype=torch.bool, device=device)
        mask[chosen(self.heads, heads, "head")] = True
        return mask.view(1, -1, 1)

    def validate(self, n_layers: int, n_heads: int, steps: int | None = None, fewest: int | None = None) -> None:
        """Raise for a scope that names what is not there or can never hold.

        Args:
            n_layers: Of the model.
            n_heads: Of the model.
            steps: The most steps that a row of the run takes; None if not known.
            fewest: The fewest; None if all take as many.
        """
        chosen(self.layers, n_layers, "layer")
        chosen(self.heads, n_heads, "head")
        named = _named(self.steps)
        if steps is None and any(index < 0 for index in named):
            raise ScopeError(f"steps={self.steps!r} counts from the end, and this run's number of steps is not known")
        if fewest is not None and fewest != steps and any(index < 0 for index in named):
            raise ScopeError(
                f"steps={self.steps!r} counts from the end; the prompts of this run take {fewest} to {steps} steps: "
                "in another batch it would mean another step. Count from the start, or run prompts that take as many"
            )
        if self.event == "store":
            return
        if steps is not None and not any(self.at(step, steps) for step in range(steps)):
            raise ScopeError(f"steps={self.steps!r} holds at none of the {steps} steps, so nothing would ever happen")

    def refuse(self, *names: str, by: object) -> None:
        """Raise if one of these fields says anything: the part cannot honour it.

        Raises:
            ScopeError: naming the field, its value and the part.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise ScopeError(
                    f"{name}={getattr(self, name)!r} has no meaning for {type(by).__name__}, which cannot be limited "
                    f"to some {name}; leave it out"
                )

    def meets(self, other: Scope, n_layers: int, n_heads: int, steps: int | None) -> bool:
        """Whether two scopes share a (layer, head, step); `steps` None: a run of unknown length."""
        for name, size in (("layers", n_layers), ("heads", n_heads)):
            picked = [set(chosen(getattr(scope, name), size, name[:-1])) for scope in (self, other)]
            if not picked[0] & picked[1]:
                return False
        if self.event != other.event:
            return False
        if self.event == "store":
            return True
        often = steps if steps is not None else ENDLESS
        return any(self.at(step, steps) and other.at(step, steps) for step in range(often))


def chosen(selection: Selection, size: int, what: str) -> list[int]:
    """The indices that a selection names out of `size`; negative ones count from the end.

    Raises:
        ScopeError: an index that does not exist, or nothing selected.
    """
    if selection is None:
        return list(range(size))
    if isinstance(selection, slice):
        picked = list(range(size))[selection]
    else:
        asked = [selection] if isinstance(selection, int) else list(selection)
        wrong = [index for index in asked if not -size <= index < size]
        if wrong:
            raise ScopeError(f"{what} {wrong[0]} does not exist; there are {size}: 0 to {size - 1}")
        picked = sorted({index % size for index in asked})
    if not picked:
        raise ScopeError(f"{what}s={selection!r} selects none of the {size} {what}s, so nothing would ever happen")
    return picked


def _named(selection: Selection) -> list[int]:
    """The numbers that a selection names."""
    if isinstance(selection, slice):
        return [end for end in (selection.start, selection.stop) if end is not None]
    return [] if selection is None else [selection] if isinstance(selection, int) else list(selection)
