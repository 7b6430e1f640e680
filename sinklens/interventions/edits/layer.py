"""An edit at work in one layer: what it sees of the attention there, block by block, and whom it acts on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, is_causal, nothing, plain_canvas, rows_of, rowwise
from sinklens.sinks import Positions, received_attention, seeing


@dataclass(frozen=True, eq=False)
class At:
    """Where an operator acts: one layer in one forward.

    Attributes:
        layer: The layer.
        canvas: What the forward sees.
        selected: Keys to act on, by the detector and in scope.
        touched: Entries to act on: the selected keys, for the queries in scope.
        visible: Entries that the model may look at: real keys, and in a causal model none to the right.
        rows: Which queries these are: all of them, or a block (then `query` is the size of the block).
    """

    layer: int
    canvas: Canvas
    selected: Bool[Tensor, "batch head key"]
    touched: Bool[Tensor, "batch head query key"]
    visible: Bool[Tensor, "batch one query key"]
    rows: slice = field(default_factory=lambda: slice(None))

    def add(
        self, tensor: Float[Tensor, "batch head query key"], amount: float
    ) -> Float[Tensor, "batch head query key"]:
        """The tensor with an amount added at the touched entries."""
        if self.touched.stride(2) != 0:
            return torch.where(self.touched, tensor + amount, tensor)
        columns = self.touched[:, :, :1]  # all queries are touched alike, and one row says it
        return tensor + torch.zeros_like(columns, dtype=tensor.dtype).masked_fill_(columns, amount)


class Attention:
    """What each key of a layer receives from the queries that count, added up block by block.

    Attributes:
        received: So far [batch, head, key].
    """

    def __init__(self, canvas: Canvas | None, queries: Positions, *, causal: bool) -> None:
        self.canvas, self.causal = canvas, causal
        self.queries: Positions = queries
        self.received: Tensor | None = None

    def seen(self, tensor: Tensor) -> Canvas:
        """The canvas; outside the denoising loop one where everything is real."""
        return self.canvas or plain_canvas((tensor.shape[0], tensor.shape[-1]), tensor.device)

    def add(self, pattern: Tensor, rows: slice) -> None:
        """A block more; the first one begins anew."""
        counting = self.seen(pattern).where(self.queries)[:, None, rows].to(pattern.device)
        more = received_attention(pattern, counting)
        self.received = more if rows.start == 0 or self.received is None else self.received + more

    def sight(self, received: Tensor) -> Float[Tensor, "batch head key"] | None:
        """In a causal model, how many of ALL queries that count can see each key."""
        if not self.causal:
            return None
        return seeing(self.seen(received[:, 0]).where(self.queries)[:, None].to(received.device)).expand(received.shape)


class Acting:
    """A SinkEdit in one layer during one forward; `everyone` says that every query is in its scope."""

    def __init__(
        self, edit: Any, layer: int, canvas: Canvas | None, queries: Positions, *, causal: bool, everyone: bool
    ) -> None:
        self.edit, self.layer, self.causal = edit, layer, causal
        self.attention = Attention(canvas, queries, causal=causal)
        self.acts = edit.acts(canvas)
        self.waits = self.acts and not edit.detector.ahead(canvas)  # for all queries, before it knows its keys
        # Whether the entries that it touches are those that received attention counts.
        self.alike = edit.where.diagonal and edit.where.queries == queries
        self.everyone = everyone
        self.selected: Tensor | None = None
        self.looked = False

    def hooked(self, name: str) -> Hook:
        """The hook, ready for blocks."""
        return name, rowwise(partial(self.hook), look=self.look, sweeps=int(self.waits))

    def look(self, tensor: Tensor, *, hook: Any) -> Tensor | None:
        """What the edit will make of a block, as far as it knows; nothing is counted."""
        if not self.acts:
            return None
        rows, keys = rows_of(hook, tensor), tensor.shape[-1]
        self.edit.quiet = True
        try:
            if not self.waits and rows.start == 0:
                self.selected = self.find(tensor.new_zeros((*tensor.shape[:2], keys), dtype=torch.float32))
            edited = None if self.selected is None else self.apply(tensor, rows, self.selected)
            if self.waits:
                self.attention.add(self.edit.pattern(tensor), rows)
                if rows.stop >= keys and self.attention.received is not None:
                    self.selected, self.looked = self.find(self.attention.received), True
        finally:
            self.edit.quiet = False
        return edited

    def hook(self, tensor: Tensor, *, hook: Any) -> Tensor | None:
        """The edit of a block, counted; with the last one the detector is told what it may need at the next step."""
        rows, attention = rows_of(hook, tensor), self.attention
        if rows.start == 0 and rows.stop >= tensor.shape[-1]:
            self.looked = False  # all of it: what was looked at belongs to a forward that an error ended
        pattern = None
        if not self.looked or (self.acts and not self.alike):
            pattern = self.edit.pattern(tensor)
        if pattern is not None and not self.looked:
            attention.add(pattern, rows)
        received = attention.received
        if received is None:
            raise ScopeError(f"{self.edit!r}: blocks of queries must begin with the first")
        if self.acts and rows.start == 0:
            # Unless it has looked, this is all of it, or the detector needs no attention of this forward.
            self.selected = self.selected if self.looked and self.selected is not None else self.find(received)
            self.edit.count_found(self.selected, self.heads_short)
        edited = None
        if self.acts and self.selected is not None:
            edited = self.apply(tensor, rows, self.selected, pattern)
        if rows.stop >= tensor.shape[-1]:
            self.close(received)
        return edited

    def close(self, received: Tensor) -> None:
        """The layer is done: count, tell the detector, and be ready for another forward."""
        if self.acts and self.alike and self.selected is not None:
            self.edit.count("mass", (received * self.selected).flatten(1).sum(-1))
        detector, attention = self.edit.detector, self.attention
        shown, sight = detector.watched.get(self.layer, (received, attention.sight(received)))
        detector.observe(self.layer, shown, attention.seen(received[:, 0]), sight)
        self.selected, self.looked = None, False

    def find(self, received: Tensor) -> Tensor:
        """The keys to act on, by the detector and in scope."""
        canvas, edit = self.attention.seen(received[:, 0]), self.edit
        known, sight = edit.detector.watched.get(self.layer, (received, self.attention.sight(received)))
        eligible = (canvas.where(edit.where.keys) & canvas.where(edit.detector.rule.keys))[:, None].to(received.device)
        selected, short = edit.detector.find(self.layer, known, eligible.expand(received.shape), canvas, sight)
        heads = edit.heads(canvas, received.shape[1], received.device)
        self.heads_short = heads, short
        return selected & heads[..., None]

    def apply(self, tensor: Tensor, rows: slice, selected: Tensor, pattern: Tensor | None = None) -> Tensor | None:
        """The edit of a block; with its pattern, the mass that the touched entries held is counted."""
        edit, canvas = self.edit, self.attention.seen(tensor)
        place = torch.arange(tensor.shape[-1], device=tensor.device)  # compared by block: nothing is keys x keys
        asked = canvas.where(edit.where.queries)[:, None, rows].to(tensor.device)
        touched = selected[:, :, None, :].expand(-1, -1, tensor.shape[-2], -1)
        touched = touched if self.everyone else touched & asked[..., None]
        touched = touched if edit.where.diagonal else touched & (place != place[rows, None])
        if pattern is not None and not self.alike:
            whole = edit.where.diagonal  # then whole columns are touched: no need to go through entries one by one
            mass = received_attention(pattern, asked) * selected if whole else pattern.float() * touched
            edit.count("mass", mass.flatten(1).sum(-1))
        visible = canvas.valid[:, None, None, :].to(tensor.device).expand(-1, 1, tensor.shape[-2], -1)
        visible = visible & (place <= place[rows, None]) if self.causal else visible
        return edit.apply(tensor, At(self.layer, canvas, selected, touched, visible, rows))


class Watcher:
    """Shows an open-loop detector the attention of a forward without edits."""

    def __init__(self, edit: Any) -> None:
        self.edit, self.where = edit, edit.where

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on the patterns of the edit's layers."""
        causal = is_causal(model)
        queries = self.edit.detector.query_set(causal=causal)

        def watching(layer: int) -> Any:
            attention = Attention(canvas, queries, causal=causal)

            def watch(pattern: Tensor, *, hook: Any) -> None:
                attention.add(pattern, rows_of(hook, pattern))
                if attention.received is not None:
                    self.edit.detector.watched[layer] = (attention.received, attention.sight(attention.received))

            return rowwise(watch, look=nothing)

        return [(f"blocks.{layer}.attn.hook_pattern", watching(layer)) for layer in self.edit.layers(model)]

    def __repr__(self) -> str:
        return f"clean({self.edit!r})"
