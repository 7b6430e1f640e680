"""Who is edited, by what a record of another run shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from sinklens.analysis import rates
from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.brief import brief
from sinklens.interventions.selectors.attention import NOT_SAID, one_rule, rule_text
from sinklens.interventions.selectors.base import Evidence, Selector, nowhere, set_field
from sinklens.records import PromptIndex
from sinklens.sinks import Positions, SinkRule
from sinklens.values.arrays import record_digest


@dataclass(frozen=True, repr=False, eq=False)
class FromRecord(Selector):
    """The sinks that a record shows, at the same step, layer and head: an open loop over a whole run.

    Rows find their place in the record by the tokens of their prompt (and by the seed where a prompt occurs twice),
    so batches may be cut in any way. Steps that the record does not have select nothing. The record must not be
    changed afterwards.

    Args:
        record: With `received` (`probes.ReceivedAttention`) by the queries that the rule counts, of the same prompts.
        rule: When a key is a sink. Give this or `top_k`. "auto" queries are those of the record's model.
        top_k: Shorthand for `SinkRule(epsilon=None, top_k=..., queries="auto")`.
        shift: Take the row that comes so many after the own one in the record: another prompt's sinks.

    Raises:
        RecordError: the record does not have this received attention.
        ValueError: rule and top_k at once, or a shift that comes back to the own row.
    """

    record: xr.Dataset
    rule: SinkRule = NOT_SAID
    _: KW_ONLY
    top_k: InitVar[int | None] = None
    shift: int = 0
    # Derived, once:
    flags: xr.DataArray = field(init=False, compare=False)
    index: PromptIndex = field(init=False, compare=False)
    mark: str = field(init=False, compare=False)

    def __post_init__(self, top_k: int | None) -> None:
        rule, prompts = one_rule(self.rule, top_k), self.record.sizes["prompt"]
        if self.shift and self.shift % max(prompts, 1) == 0:
            raise ValueError(f"shift={self.shift} comes back to the own row: the record has {prompts} prompts")
        flags = rates.sinks(self.record, rule).transpose("prompt", "step", "layer", "head", "key")
        derived = {"rule": rule, "flags": flags, "index": PromptIndex(self.record), "mark": record_digest(self.record)}
        for name, value in derived.items():
            set_field(self, name, value)

    @property
    def wanted(self) -> int:
        """The rule's `top_k`."""
        return self.rule.top_k or 0

    def candidates(self) -> Positions:
        """The rule's `keys`."""
        return self.rule.keys

    def ahead(self, layer: int, memory: Memory) -> bool:
        """Yes: this run's attention plays no part."""
        return True

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for prompts or heads that the record does not have."""
        self.index.find(canvas)
        heads = self.flags.sizes["head"]
        if heads != int(model.cfg.n_heads):
            raise ScopeError(f"{self!r} has {heads} heads per layer, the model {model.cfg.n_heads}")

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """None.

        Raises:
            ScopeError: there is no canvas to say which prompts there are, or the record does not have the layer.
        """
        if canvas is None:
            raise ScopeError(f"{self!r} needs to know the prompts; use it in denoise, or fwd_hooks(model, canvas)")
        layers = self.flags["layer"].to_numpy()
        if layer not in layers:
            raise ScopeError(
                f"{self!r} knows the layers {layers.tolist()} and not {layer}; narrow the edit's scope, for example "
                f"where=Scope(layers={layers.tolist()})"
            )
        return []

    def of_new(self, model: Any) -> bool:
        """Yes: attention plays no part."""
        return True

    def select(self, evidence: Evidence) -> Tensor:
        """What the record calls sinks."""
        selected, canvas = nowhere(evidence), evidence.canvas
        steps, layers = (self.flags[name].to_numpy().tolist() for name in ("step", "layer"))
        if canvas.step not in steps:
            return selected
        here = self.flags.to_numpy()[:, steps.index(canvas.step), layers.index(evidence.layer)]
        for row, (prompt, start) in enumerate(rows_in(self.index, canvas, evidence.memory)):
            flags = torch.from_numpy(here[(prompt + self.shift) % len(here)]).to(selected.device)
            size = min(flags.shape[-1], selected.shape[-1] - start)
            selected[row, :, start : start + size] = flags[:, :size]
        return selected & evidence.eligible

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FromRecord) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return brief(self, record=f"<{self.mark[:8]}>", rule=rule_text(self.rule))


def rows_in(index: PromptIndex, canvas: Canvas, memory: Memory) -> Sequence[tuple[int, int]]:
    """For each row of the batch: its prompt in a record, and where it begins on the canvas.

    By the canvas that the run began with, if it is known: a baseline shows the prompts of later ones only in part.
    """
    if memory.start is None:
        return index.find(canvas)
    if "rows in the record" not in memory.notes:
        memory.notes["rows in the record"] = index.find(memory.start)
    return memory.notes["rows in the record"]
