"""Keep the keys that a trained gate keeps, at a rate that is chosen for the run."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinklens.errors import GateError, ScopeError
from sinklens.hooks import ByQuery, Canvas, Hook, Memory, by_query, canvas_of
from sinklens.interventions.brief import brief
from sinklens.interventions.edits.base import SinkEdit
from sinklens.interventions.edits.layer import Acting, At, Count
from sinklens.interventions.edits.scores import Masking
from sinklens.interventions.selectors.base import Evidence, Selector, set_field
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.selection import reading
from sinklens.selection.gate import Gate, above
from sinklens.selection.places import AUTO
from sinklens.sinks import Positions
from sinklens.values.kinds import Rate


@dataclass(frozen=True, repr=False)
class NotKept(Selector):
    """Every key but those that a gate keeps; see LearnedSelection."""

    gate: str
    rate: Rate
    keys: Positions

    def candidates(self) -> Positions:
        """The `keys`."""
        return self.keys

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Yes: attention plays no part."""
        return True

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """One hook, on the residual stream that the layer's scores are read from."""
        gate: Gate = memory.notes["gate"]
        source = gate.source(layer)
        if source is None:
            raise ScopeError(f"{self!r}: this gate selects in no layer before {gate.shape.first}")

        def note(residual: Tensor, *, hook: Any) -> None:
            memory.notes["gate", layer] = gate.scores(residual.detach(), layer, self.rate)

        return [(f"blocks.{source}.hook_in", note)]

    def select(self, evidence: Evidence) -> Tensor:
        """The keys that are not kept."""
        scores = evidence.memory.notes["gate", evidence.layer]
        kept = above(scores.to(evidence.eligible.device), evidence.eligible[:, 0])
        return evidence.eligible & ~kept[:, None]


@dataclass(frozen=True, repr=False)
class LearnedSelection(Masking):
    """Mask every key but those that a trained gate keeps, the same for all heads of a layer.

    The gate reads the residual stream at each layer's input; how many keys it keeps may differ between texts, layers
    and steps, and is near the rate on average. What it was is counted: "kept" of "eligible" keys, over steps and the
    layers in which the gate selects (usually all but the first, `Gate.shape.first`). A rate of 1 is the
    identity, bit for bit.

    While nobody else hooks scores or weights in a layer, and the edit is of all its heads and queries, the keys are
    left out of attention instead of masked: the same up to float rounding, and faster. "mass" is not known then: nan.

    Conserves: row sums (1), and the proportions of the kept keys. At least one key stays in each layer.
    Assumes: that a key that is gone at this step may be back at the next (a real cache forgets it for good).
    Source: arXiv 2405.02330 (per-token gates, the budget as an input), with a frozen model and keys in place of tokens.

    Args:
        gate: The folder of a gate (`sinklens select train`), the name of one that comes with sinklens, or "auto": the
            one that comes with sinklens for the model.
        rate: The share of keys to keep, above 0 and at most 1.
        keys: Who may be evicted or kept: "all", "masked", "committed", "prompt", "response" or "last".
        mark: Digest of the gate ("auto": of all gates that come with sinklens), so that a gate that was trained anew
            at the same place is another edit. Read when None; if given, it must be the gate's.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: As in SinkEdit.

    Raises:
        ContentError: a rate outside (0, 1], or an unknown set of keys.
        GateError: no such gate, or one that cannot be read; one with another mark; in a run: a gate of another model.
    """

    gate: str = AUTO
    _: KW_ONLY
    rate: Rate
    keys: Positions = "all"
    mark: str | None = None
    selector: Selector = field(init=False, compare=False)
    counted: ClassVar[tuple[str, ...]] = (*SinkEdit.counted, "kept", "eligible")

    def __post_init__(self) -> None:
        set_field(self, "mark", self._same())
        set_field(self, "selector", NotKept(self.gate, self.rate, self.keys))
        super().__post_init__()

    def _same(self) -> str:
        """The mark of the gate as it is now, which must be the edit's."""
        found = reading.mark(self.gate)
        if self.mark not in (None, found):
            raise GateError(
                f"gate={self.gate!r} has the mark {found!r}, not mark={self.mark!r}: it is another gate now"
            )
        return found

    @property
    def changes(self) -> bool:
        """Unless all keys are kept."""
        return self.rate < 1

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a gate of another model, and for a rate that is less than one key of the shortest row.

        Raises:
            GateError: a gate of another model; of an outline only its family and sizes are compared.
            ScopeError: less than one key.
        """
        known = isinstance(model, HookedDLM)
        gate = reading.load(self.gate, model if known else None) if self.gate != AUTO or known else None
        if gate is not None and (gate.layers, gate.model.family) != (int(model.cfg.n_layers), model.family.name):
            raise GateError(
                f"{self!r}: its gate is of {gate.model.name} ({gate.model.family}, {gate.layers} layers), and the "
                f"model is {model.name} ({model.family.name}, {model.cfg.n_layers} layers)"
            )
        shortest = int(canvas.valid.sum(-1).min())
        if self.rate * shortest < 1:
            raise ScopeError(f"{self!r} keeps less than one key: the shortest row has {shortest} positions")

    def layers(self, model: Any) -> list[int]:
        """The layers in scope in which the gate selects.

        Raises:
            ScopeError: there is none.
        """
        first = reading.load(self.gate, model).shape.first
        found = [layer for layer in super().layers(model) if layer >= first]
        if not found:
            raise ScopeError(f"{self!r} would do nothing: its gate keeps everything in the layers before {first}")
        return found

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The gate's hooks and the edit's; at a rate of 1 hooks that only count.

        Raises:
            GateError: as in `note_gate`.
        """
        self.note_gate(model, memory)
        if self.changes:
            return super().acting(model, canvas, memory)

        def count(residual: Tensor, *, hook: Any) -> None:
            if canvas is not None:
                eligible = (canvas.positions(self.keys) & canvas.rows[:, None]).sum(-1)
                memory.count("kept", eligible)
                memory.count("eligible", eligible)

        return [(f"blocks.{layer}.hook_in", count) for layer in self.layers(model)]

    def note_gate(self, model: Any, memory: Memory) -> None:
        """Put the gate where the selector looks for it in this run.

        Raises:
            GateError: a gate of another model, or one that was trained anew since the edit was made.
        """
        self._same()
        memory.notes["gate"] = reading.load(self.gate, model)

    def in_layer(self, acting: Acting) -> list[Hook]:
        """The edit's hook on the scores; of all heads and queries alike it only hides keys, which need no scores."""
        [(name, hook)] = super().in_layer(acting)
        if not isinstance(hook, ByQuery) or (self.queries, self.diagonal, self.where.heads) != ("all", True, None):
            return [(name, hook)]

        def hides(visible: Tensor, *, hook: Any) -> Tensor:
            sight = hook.ctx["sight"]
            canvas = canvas_of(acting.canvas, sight, len(visible))
            eligible = (canvas.positions(self.keys) & canvas.rows[:, None]).to(visible.device)
            scores = acting.memory.notes["gate", acting.layer].to(visible.device)
            hidden = eligible & ~above(scores, eligible)
            left, heads, count = visible & ~hidden, int(acting.model.cfg.n_heads), acting.memory.count
            self._count(count, eligible, hidden)
            count("keys", hidden.sum(-1) * heads)
            count("candidates", eligible.sum(-1) * heads)
            count("heads_without_sink", (canvas.rows.to(hidden.device) & ~hidden.any(-1)) * heads)
            count("rows_that_kept_one_key", (sight.blind(left) & sight.real).expand(len(left), -1).sum(-1) * heads)
            count("mass", torch.full_like(hidden[:, 0], math.nan, dtype=torch.float32))
            return left

        return [(name, by_query(hook.function, preview=hook.preview, rounds=hook.rounds, hides=hides))]

    def apply(self, tensor: Tensor, at: At) -> Tensor:
        """Scores with -inf at the keys that are not kept."""
        if at.block.start == 0:
            eligible = at.canvas.positions(self.keys) & at.canvas.rows[:, None]
            self._count(at.count, eligible, at.selected.any(1).to(eligible.device))
        return super().apply(tensor, at)

    @staticmethod
    def _count(count: Count, eligible: Tensor, hidden: Tensor) -> None:
        count("eligible", eligible.sum(-1))
        count("kept", (eligible & ~hidden).sum(-1))

    def __repr__(self) -> str:
        return brief(self, mark="")
