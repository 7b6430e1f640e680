"""An edit at work in one layer of one forward: what it reads of the attention there, and whom it acts on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory, block_of, canvas_of, sight_of, usual_queries, watching
from sinklens.interventions.selectors.base import Evidence
from sinklens.sinks import Positions, Received, Sight, received_attention

if TYPE_CHECKING:
    from sinklens.interventions.edits.base import SinkEdit

Count = Callable[[str, Tensor], None]


def uncounted(name: str, amount: Tensor) -> None:
    """The `count` of a preview: nothing has happened yet."""


@dataclass(frozen=True, eq=False)
class View:
    """Which queries a tensor of scores or weights holds, of which canvas, and who sees whom."""

    canvas: Canvas
    sight: Sight
    block: slice

    @classmethod
    def of(cls, model: Any, tensor: Tensor, hook: Any, canvas: Canvas | None) -> View:
        """What a hook on scores or weights is shown."""
        sight = sight_of(model, hook, tensor, canvas)
        if "queries" not in getattr(hook, "ctx", {}):  # no blocks: the tensor holds all queries that there are
            sight = replace(sight, queries=tensor.shape[-2])
        return cls(canvas_of(canvas, sight, len(tensor)), sight, block_of(hook, tensor))

    @property
    def first(self) -> bool:
        """Whether this is the first block of queries."""
        return self.block.start == 0

    @property
    def last(self) -> bool:
        """Whether this is the last block of queries."""
        return self.block.stop >= self.sight.count

    def queries(self, which: Positions) -> Bool[Tensor, "batch query"]:
        """The block's queries of one kind."""
        return self.canvas.positions(which)[:, self.sight.keys - self.sight.count :][:, self.block]

    def edited(self, which: Positions) -> Bool[Tensor, "batch query"]:
        """The block's queries of one kind that an edit may touch."""
        return self.canvas.queries(which)[:, self.sight.keys - self.sight.count :][:, self.block]

    def places(self, device: torch.device) -> torch.Tensor:
        """The positions of the block's queries [query]."""
        keys, count = self.sight.keys, self.sight.count
        return torch.arange(keys - count, keys, device=device)[self.block]


@dataclass(frozen=True, eq=False)
class At:
    """Where an operator acts: some queries of one layer in one forward.

    Attributes:
        layer: The layer.
        canvas: What the forward sees.
        sight: Who sees whom in the layer.
        block: Which queries these are: all of them, or a block (then `query` is the size of the block).
        places: Their positions [query].
        selected: Keys to act on.
        touched: Entries to act on: the selected keys, for the queries in scope.
        count: `count(name, amount)` adds an amount per row [batch] to the edit's counts; does nothing in a preview.
    """

    layer: int
    canvas: Canvas
    sight: Sight
    block: slice
    places: Tensor
    selected: Bool[Tensor, "batch head key"]
    touched: Bool[Tensor, "batch head query key"]
    count: Count

    @property
    def visible(self) -> Bool[Tensor, "batch one query key"]:
        """Entries that the model may look at, as the layer's attention mask says."""
        batch, _, queries, keys = self.touched.shape
        return self.sight.rows(self.block)[:, None].to(self.touched.device).expand(batch, 1, queries, keys)

    def add(
        self, tensor: Float[Tensor, "batch head query key"], amount: float
    ) -> Float[Tensor, "batch head query key"]:
        """The tensor with an amount added at the touched entries."""
        if self.touched.stride(2) != 0:
            return torch.where(self.touched, tensor + amount, tensor)
        columns = self.touched[:, :, :1]  # all queries are touched alike, and one of them says it
        return tensor + torch.zeros_like(columns, dtype=tensor.dtype).masked_fill_(columns, amount)


class Reading:
    """What each key of a layer receives in one forward from the queries that count, added up block by block."""

    def __init__(self, edit: SinkEdit, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> None:
        self.edit, self.model, self.layer, self.canvas, self.memory = edit, model, layer, canvas, memory
        self.counting: Positions = edit.selector.counting(usual_queries(model))
        self.received = Received()

    def read(self, pattern: Tensor, view: View) -> None:
        """A block more; the first one begins anew."""
        if view.first:
            self.received = Received()
        self.received.add(pattern, view.queries(self.counting)[:, None])

    def total(self) -> Float[Tensor, "batch head key"]:
        """What was read so far.

        Raises:
            ScopeError: nothing, because blocks came without the first one.
        """
        if self.received.total is None:
            raise ScopeError(f"{self.edit!r}: blocks of queries must begin with the first")
        return self.received.total

    def evidence(self, received: Tensor, view: View) -> Evidence:
        """What the selector is shown: the clean forward's attention in an open loop, else this one's."""
        selector, canvas = self.edit.selector, view.canvas
        shown = self.memory.notes.get(("clean", self.layer), received).to(received.device)
        eligible = canvas.positions(selector.candidates())[:, None].to(received.device).expand(received.shape)
        return Evidence(self.model, self.layer, canvas, view.sight, self.counting, shown, eligible, self.memory)

    def close(self, view: View) -> None:
        """The layer is done: show it to the selector. What a clean forward showed was for this one."""
        self.edit.selector.observe(self.evidence(self.total(), view))
        self.memory.notes.pop(("clean", self.layer), None)

    def watch(self, point: str, *, clean: bool) -> Hook:
        """A hook that only looks, for the forward before the first that is edited, or for a clean one."""

        def look(tensor: Tensor, *, hook: Any) -> None:
            view = View.of(self.model, tensor, hook, self.canvas)
            self.read(tensor if clean else self.edit.pattern(tensor), view)
            if view.last and clean:
                self.memory.notes["clean", self.layer] = self.total()
            elif view.last:
                self.close(view)

        return f"blocks.{self.layer}.attn.{point}", watching(look)


class Acting(Reading):
    """A SinkEdit in one layer during one forward.

    Args:
        edit: The edit.
        model: The model.
        layer: The layer.
        canvas: What the forward sees; None outside the loop.
        memory: The edit's, in this run.
        everyone: Whether every query is in scope; None if that is not known before the forward.

    Attributes:
        rounds: How often it must be shown all queries before it knows its keys (see `hooks.ByQuery`).
    """

    def __init__(
        self, edit: SinkEdit, model: Any, layer: int, canvas: Canvas | None, memory: Memory, everyone: bool | None
    ) -> None:
        super().__init__(edit, model, layer, canvas, memory)
        self.everyone = everyone
        self.rounds = int(not edit.selector.ahead(layer, memory))
        # Whether the entries that it touches are those that received attention counts.
        self.alike = edit.diagonal and edit.queries == self.counting
        self.selected: Tensor | None = None
        # The heads in scope, those with fewer keys than wanted, and how many keys could have been chosen in each.
        self.found: tuple[Tensor, Tensor, Tensor] | None = None
        self.previewed = False

    def preview(self, tensor: Tensor, hook: Any) -> At | None:
        """Where the edit will act in a block, as far as it knows; nothing is counted."""
        view = View.of(self.model, tensor, hook, self.canvas)
        if not self.rounds and view.first:
            self._find(self._nothing_yet(tensor), view)
        here = None if self.selected is None else self._at(tensor, view, self.selected, uncounted)
        if self.rounds:
            self.read(self.edit.pattern(tensor), view)
            if view.last:
                self._find(self.total(), view)
                self.previewed = True
        return here

    def at(self, tensor: Tensor, hook: Any) -> At:
        """Where the edit acts in a block, counted; with the last one the selector is shown what it may need later."""
        view, pattern = View.of(self.model, tensor, hook, self.canvas), None
        if view.first and view.last:
            self.previewed = False  # all of it: what was previewed belongs to a forward that an error ended
        if not self.previewed or not self.alike:
            pattern = self.edit.pattern(tensor)
        if pattern is not None and not self.previewed:
            self.read(pattern, view)
        received = self.total()
        if view.first:
            # Unless it was previewed, this is all of it, or the selector needs no attention of this forward.
            if not self.previewed or self.selected is None:
                self._find(received, view)
            self._count_found()
        if self.selected is None:
            raise ScopeError(f"{self.edit!r}: blocks of queries must begin with the first")
        here = self._at(tensor, view, self.selected, self.memory.count)
        if self.alike and view.last:
            self.memory.count("mass", (received * self.selected).flatten(1).sum(-1))
        elif pattern is not None and not self.alike:
            self._count_mass(pattern, view, here)
        if view.last:
            self.close(view)
            self.selected, self.previewed = None, False
        return here

    def _nothing_yet(self, tensor: Tensor) -> Tensor:
        return tensor.new_zeros((*tensor.shape[:2], tensor.shape[-1]), dtype=torch.float32)

    def _find(self, received: Tensor, view: View) -> None:
        """The keys to act on, by the selector and in scope."""
        if self.edit.selector.loop == "open" and ("clean", self.layer) not in self.memory.notes:
            raise ScopeError(f"{self.edit!r} needs a clean forward at the same canvas first; use it in denoise")
        evidence = self.evidence(received, view)
        selected, short = self.edit.selector.find(evidence)
        heads = self.edit.heads(view.canvas, received.shape[1], received.device)
        self.selected, self.found = selected & heads[..., None], (heads, short, evidence.eligible.sum(-1))

    def _count_found(self) -> None:
        if self.selected is None or self.found is None:
            return
        (heads, short, candidates), some, count = self.found, self.selected.any(-1), self.memory.count
        count("heads_without_sink", (heads & ~some).sum(-1))
        count("heads_with_fewer", (heads & short & some).sum(-1))
        count("keys", self.selected.sum((1, 2)))
        count("candidates", (candidates * heads).sum(-1))

    def _count_mass(self, pattern: Tensor, view: View, here: At) -> None:
        """What the touched entries held before, where it is not what the selector was shown."""
        asked = view.edited(self.edit.queries)[:, None].to(pattern.device)
        whole = self.edit.diagonal  # then whole columns are touched: no need to go through entries one by one
        mass = received_attention(pattern, asked) * here.selected if whole else pattern.float() * here.touched
        self.memory.count("mass", mass.flatten(1).sum(-1))

    def _at(self, tensor: Tensor, view: View, selected: Tensor, count: Count) -> At:
        edit, device = self.edit, tensor.device
        places = view.places(device)
        touched = selected[:, :, None, :].expand(-1, -1, tensor.shape[-2], -1)
        asked = None if self.everyone else view.edited(edit.queries)
        if asked is not None and not (self.everyone is None and bool(asked.all())):
            touched = touched & asked[:, None, :, None].to(device)
        if not edit.diagonal:  # compared by block: nothing is keys x keys
            touched = touched & (torch.arange(tensor.shape[-1], device=device) != places[:, None])
        return At(self.layer, view.canvas, view.sight, view.block, places, selected, touched, count)
