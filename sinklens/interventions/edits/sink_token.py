"""An edit that adds a token which was never there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Memory, by_query, rotated
from sinklens.interventions.edits.base import AttentionEdit
from sinklens.interventions.edits.layer import Count, View
from sinklens.interventions.edits.scores import in_scope
from sinklens.sinks.tokens import in_vocabulary
from sinklens.values.kinds import Index


@dataclass(frozen=True, repr=False)
class SinkToken(AttentionEdit):
    """An extra token that every query sees and that sees only itself: one position before the row's first token.

    Since it sees nothing else, its keys and values depend on nothing else: they are computed once, from a forward of
    this token alone, and take part in every query's softmax. Exactly as if it stood on the canvas.
    Conserves: the proportions of the real keys; rows over real keys sum to less than 1. "mass" counts what it
    absorbed, over "rows" queries.
    Assumes: an existing token that was not trained for this (arXiv 2601.19657 trains a new one and shifts all
    positions by one; relative positions are the same here). Needs a HookedDLM.
    Source: arXiv 2601.19657, equations 5 and 6.

    Args:
        token: Its id; the model's BOS token when None.
        where: As in AttentionEdit.
        queries: As in AttentionEdit.

    Raises:
        ContentError: an id that is no whole number of at least 0.
    """

    token: Index | None = None
    stage: ClassVar[int] = 1
    counted: ClassVar[tuple[str, ...]] = ("mass", "rows")

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a model without BOS, a token that is not in the vocabulary, or a model that has no place for it."""
        in_vocabulary(model, [self._id(model)], self)
        self._needs_a_place(model)

    def _needs_a_place(self, model: Any) -> None:
        if model.family.closes or model.family.positions != "rotary":
            raise ScopeError(
                f"{self!r}: {model.name} is an encoder or embeds positions, and has no position before the first that "
                "every layer sees; put the token in front of the prompt"
            )

    def _id(self, model: Any) -> int:
        token = self.token if self.token is not None else getattr(getattr(model, "ids", None), "bos", None)
        if token is None:
            raise ScopeError(f"{model!r} has no BOS token; say which token, for example SinkToken(token=0)")
        return int(token)

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks on queries and scores (looking), pattern (scaling) and mixed values (adding)."""
        if "alone" not in memory.notes:
            memory.notes["alone"] = self._keys_and_values(model)
        hooks: list[Hook] = []
        for layer in self.layers(model):
            token = _Token(self, model, canvas, memory.notes["alone"][layer], _scaling(model, layer))
            prefix = f"blocks.{layer}.attn."
            scale, preview = (partial(token.scale, count) for count in (memory.count, None))
            hooks += [
                (f"blocks.{layer}.{rotated(model, 'q')}", token.note),
                (f"{prefix}hook_attn_scores", by_query(token.share, preview=token.share)),
                (f"{prefix}hook_pattern", by_query(scale, preview=preview)),
                (f"{prefix}o.hook_in", token.add),
            ]
        return hooks

    @torch.no_grad()
    def _keys_and_values(self, model: Any) -> list[_KeyValue]:
        """Keys and values of the token alone in every layer."""
        self._needs_a_place(model)
        found: dict[str, Tensor] = {}

        def noting(name: str) -> Callable[..., None]:
            def note(tensor: Tensor, *, hook: Any) -> None:
                found[name] = tensor[0, 0]

            return note

        layers = range(int(model.cfg.n_layers))
        points = {"k": rotated(model, "k"), "v": "attn.v.hook_out"}
        hooks = [(f"blocks.{i}.{point}", noting(f"{name}{i}")) for i in layers for name, point in points.items()]
        alone = torch.tensor([[self._id(model)]], device=model.device)
        before = torch.tensor([[-1]], device=model.device)
        with model.hooks(fwd_hooks=hooks):
            model(alone, position_ids=before)
        return [_KeyValue(found[f"k{i}"].float(), found[f"v{i}"].float()) for i in layers]


class _KeyValue(NamedTuple):
    """What a token says in one layer, [kv head, d_head] each."""

    key: Tensor
    value: Tensor


class _Token:
    """The extra token in one layer of one forward."""

    def __init__(self, edit: SinkToken, model: Any, canvas: Canvas | None, says: _KeyValue, scaling: float) -> None:
        self.edit, self.model, self.canvas, self.says, self.scaling = edit, model, canvas, says, scaling
        self.query: Tensor | None = None
        self.taken: Tensor | None = None  # by the queries of a block
        self.shares: list[Tensor] = []  # of the blocks so far, as used

    def note(self, query: Tensor, *, hook: Any) -> None:
        self.query = query

    def share(self, scores: Tensor, *, hook: Any) -> None:
        view = View.of(self.model, scores, hook, self.canvas)
        if self.query is None:
            raise ScopeError(f"{self.edit!r} was not shown the queries")
        query = self.query[:, view.block].transpose(1, 2).float()  # [batch, head, query, d_head]
        key = self.says.key.repeat_interleave(query.shape[1] // len(self.says.key), 0)
        score = torch.einsum("bhqd,hd->bhq", query, key)[..., None] * self.scaling
        self.taken = torch.sigmoid(score - scores.float().logsumexp(-1, keepdim=True))

    def scale(self, count: Count | None, pattern: Tensor, *, hook: Any) -> Tensor:
        """The pattern with the token's share taken off; a preview if there is no `count`."""
        view = View.of(self.model, pattern, hook, self.canvas)
        asked = in_scope(self.edit, view, pattern)
        if self.taken is None:
            raise ScopeError(f"{self.edit!r} was not shown the scores")
        share = torch.where(asked, self.taken, 0.0)
        if count is not None:
            self.shares = [share] if view.first else [*self.shares, share]
            count("mass", share.sum((1, 2, 3)))
            count("rows", asked.sum((1, 2, 3)))
        return pattern * (1 - share).to(pattern.dtype)

    def add(self, mixed: Tensor, *, hook: Any) -> Tensor:
        share = torch.cat(self.shares, 2).transpose(1, 2)  # [batch, query, head, 1]
        self.shares, self.query, self.taken = [], None, None
        value = self.says.value.repeat_interleave(share.shape[2] // len(self.says.value), 0)
        return mixed + (share * value).to(mixed.dtype).view(mixed.shape)


def _scaling(model: Any, layer: int) -> float:
    return float(model.blocks[layer].attn.scaling)
