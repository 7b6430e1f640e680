"""An edit that replays the attention patterns of another run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from sinklens.errors import RecordError, ScopeError
from sinklens.hooks import Canvas, Hook, Memory, by_query
from sinklens.interventions.brief import brief
from sinklens.interventions.edits.base import AttentionEdit
from sinklens.interventions.edits.layer import Count, View, uncounted
from sinklens.interventions.edits.scores import in_scope
from sinklens.interventions.selectors.base import set_field
from sinklens.interventions.selectors.record import rows_in
from sinklens.records import PromptIndex
from sinklens.values.arrays import record_digest


@dataclass(frozen=True, repr=False, eq=False)
class Pin(AttentionEdit):
    """Replay the attention patterns of another run: who looks at whom is what it was there.

    Conserves: row sums (1).
    Assumes: that the record has `pattern` (`probes.Pattern`) for the layers in scope, and is not changed afterwards.
    Queries whose weights it does not have (another step, other queries) are left as they are; "rows" counts those that
    were pinned, "rows_left" those in scope that were not.
    Source: sinklens; activation patching of the attention pattern.

    Args:
        record: Of the same prompts, found by their tokens.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.

    Raises:
        RecordError: a record without patterns.
    """

    record: xr.Dataset
    # Derived, once:
    patterns: xr.DataArray = field(init=False, compare=False)
    index: PromptIndex = field(init=False, compare=False)
    mark: str = field(init=False, compare=False)
    counted: ClassVar[tuple[str, ...]] = ("rows", "rows_left")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "pattern" not in self.record:
            raise RecordError("this record has no pattern to pin; run denoise with probes=[Pattern()]")
        patterns = self.record["pattern"].transpose("prompt", "step", "layer", "head", "query", "key")
        set_field(self, "patterns", patterns)
        set_field(self, "index", PromptIndex(self.record))
        set_field(self, "mark", record_digest(self.record))

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for prompts or layers that the record does not have."""
        self.index.find(canvas)
        known = self.patterns["layer"].to_numpy().tolist()
        missing = set(self.layers(model)) - set(known)
        if missing:
            raise ScopeError(f"{self!r} has no patterns of layer {min(missing)}; it has {known}")

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks on the pattern."""
        if canvas is None:
            raise ScopeError(f"{self!r} needs to know the prompts; use it in denoise, or fwd_hooks(model, canvas)")
        hooks: list[Hook] = []
        for layer in self.layers(model):
            pinned = self._pinned(layer, canvas, memory)
            replace, preview = (
                partial(self._replace, model, canvas, pinned, count) for count in (memory.count, uncounted)
            )
            hooks.append((f"blocks.{layer}.attn.hook_pattern", by_query(replace, preview=preview)))
        return hooks

    def _pinned(self, layer: int, canvas: Canvas, memory: Memory) -> list[tuple[int, Tensor]]:
        """Where each row of the batch begins on the canvas, and its recorded pattern [head, query, key]."""
        steps, layers = (self.patterns[name].to_numpy().tolist() for name in ("step", "layer"))
        if canvas.step not in steps:
            return []
        here = self.patterns.to_numpy()[:, steps.index(canvas.step), layers.index(layer)]
        return [(start, torch.from_numpy(here[prompt])) for prompt, start in rows_in(self.index, canvas, memory)]

    def _replace(
        self,
        model: Any,
        canvas: Canvas,
        recorded: list[tuple[int, Tensor]],
        count: Count,
        pattern: Tensor,
        *,
        hook: Any,
    ) -> Tensor:
        view, keys = View.of(model, pattern, hook, canvas), pattern.shape[-1]
        places = view.places(pattern.device)
        begin, stop = int(places[0]), int(places[-1]) + 1
        pinned = torch.full_like(pattern, float("nan"))
        for row, (start, old) in enumerate(recorded):
            size = min(old.shape[-1], keys - start)
            first, end = max(begin, start), min(stop, start + size)
            if first < end:
                block = pinned[row, :, first - begin : end - begin]
                known = old[:, first - start : end - start, :size].to(pattern)
                block.masked_fill_(~known.isnan().all(-1, keepdim=True), 0.0)  # padding gets nothing
                block[..., start : start + size] = known
        asked = in_scope(self, view, pattern)
        # A query that was measured has numbers at the keys that were there, and nan at later ones.
        there = asked & ~pinned.isnan().all(-1, keepdim=True)
        count("rows", there.sum((1, 2, 3)))
        count("rows_left", (asked & ~there).sum((1, 2, 3)))
        return torch.where(there, pinned.nan_to_num(0.0), pattern)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pin) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return brief(self, record=f"<{self.mark[:8]}>")
