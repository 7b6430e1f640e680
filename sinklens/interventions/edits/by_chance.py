"""The control of a learned selection: as many tokens as the gate keeps, drawn by chance."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from torch import Tensor

from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.brief import brief
from sinklens.interventions.edits.learned import LearnedSelection
from sinklens.interventions.edits.scores import Masking
from sinklens.interventions.noise import noise
from sinklens.interventions.selectors.base import Evidence, Selector, set_field
from sinklens.sinks import Positions, largest
from sinklens.values.kinds import Seed


@dataclass(frozen=True, repr=False)
class ByChance(Selector):
    """Every key but as many, drawn by chance, as another selector leaves in; see ChanceSelection."""

    of: Selector
    seed: Seed

    def candidates(self) -> Positions:
        """Those of the other selector."""
        return self.of.candidates()

    def ahead(self, layer: int, memory: Memory) -> bool:
        """As the other selector."""
        return self.of.ahead(layer, memory)

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Those of the other selector."""
        return self.of.hooks(model, layer, canvas, memory)

    def select(self, evidence: Evidence) -> Tensor:
        """The keys that are not kept."""
        eligible = evidence.eligible
        kept = (eligible & ~self.of.select(evidence)).sum(-1, keepdim=True)
        draw = noise(self.seed, evidence.canvas, evidence.layer, 1).to(eligible.device)
        return eligible & ~largest(draw.expand(eligible.shape), eligible, kept)


@dataclass(frozen=True, repr=False)
class ChanceSelection(Masking):
    """Mask every key but as many as a gate would keep, drawn by chance: the control of LearnedSelection.

    In every row, layer and forward the gate says how many, of the run as it is; which, is drawn anew at each step, and
    is the same for all heads of a layer, as the gate's own choice is.

    Conserves: row sums (1), and the proportions of the kept keys.
    Assumes: as LearnedSelection.
    Source: sinklens.

    Args:
        of: The learned selection.
        seed: For the draw.
        where: As in AttentionEdit; `controls.control` takes this and the next two from `of`.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ContentError: an `of` that is no LearnedSelection.
        GateError: as in LearnedSelection.
    """

    of: LearnedSelection
    _: KW_ONLY
    seed: Seed = 0
    selector: Selector = field(init=False, compare=False)

    def __post_init__(self) -> None:
        set_field(self, "selector", ByChance(self.of.selector, self.seed))
        super().__post_init__()

    @property
    def changes(self) -> bool:
        """As the learned selection."""
        return self.of.changes

    def check(self, model: Any, canvas: Canvas) -> None:
        """As the learned selection."""
        self.of.check(model, canvas)

    def layers(self, model: Any) -> list[int]:
        """The layers in scope in which the gate selects."""
        allowed = self.of.layers(model)
        return [layer for layer in super().layers(model) if layer in allowed]

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The gate's hooks and the edit's; none at a rate of 1."""
        self.of.note_gate(model, memory)
        return super().acting(model, canvas, memory) if self.changes else []

    def __repr__(self) -> str:
        return brief(self)
