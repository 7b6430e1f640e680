"""Edits that bring something from another run: a pinned pattern, a token that was never there."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinklens.errors import RecordError, ScopeError
from sinklens.hooks import Canvas, Hook, Where, plain_canvas, rotated, rows_of, rowwise
from sinklens.interventions.edits.base import Edit
from sinklens.records import Rows


class Pin(Edit):
    """Replay the attention patterns of another run: who looks at whom is what it was there.

    Conserves: row sums (1).
    Assumes: that the record has `pattern` (`probes.Pattern`) for the layers in scope. Rows of the pattern that it does
    not have (another step, another query) are left as they are; "rows" counts those that were pinned, "rows_left"
    those in scope that were not.
    Source: sinklens; activation patching of the attention pattern.

    Args:
        record: Of the same prompts, found by their tokens.
        where: Layers, heads, steps and queries.

    Raises:
        RecordError: a record without patterns.
    """

    def __init__(self, record: xr.Dataset, where: Where | None = None) -> None:
        super().__init__(where)
        if "pattern" not in record:
            raise RecordError("this record has no pattern to pin; run denoise with probes=[Pattern()]")
        found = record["pattern"].transpose("prompt", "step", "layer", "head", "query", "key")
        self.patterns, self.book = torch.from_numpy(found.to_numpy()), Rows(record)
        self.steps, self.known = found["step"].to_numpy(), found["layer"].to_numpy()
        self.mark = hashlib.sha256(found.to_numpy().tobytes()).hexdigest()[:8]

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for prompts or layers that the record does not have."""
        self.book.remember(canvas)
        missing = set(self.layers(model)) - set(self.known.tolist())
        if missing:
            raise ScopeError(f"{self!r} has no patterns of layer {min(missing)}; it has {self.known.tolist()}")

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on the pattern."""
        if canvas is None:
            raise ScopeError(f"{self!r} needs to know the prompts; use it in denoise, or fwd_hooks(model, canvas)")
        layers = self.layers(model) if self.acts(canvas) else []
        found = list(self.book.find(canvas)) if layers and canvas.step in self.steps else []
        replacing = [(layer, partial(self._replace, layer, canvas, found)) for layer in layers]
        return [
            (f"blocks.{layer}.attn.hook_pattern", rowwise(replace, look=self.quietly(replace)))
            for layer, replace in replacing
        ]

    def _replace(
        self, layer: int, canvas: Canvas, found: list[tuple[int, int]], pattern: Tensor, *, hook: Any
    ) -> Tensor:
        here, keys = rows_of(hook, pattern), pattern.shape[-1]
        pinned = torch.full_like(pattern, float("nan"))
        for row, (source, start) in enumerate(found):
            step, at = int(np.flatnonzero(self.steps == canvas.step)[0]), int(np.flatnonzero(self.known == layer)[0])
            old = self.patterns[source, step, at].to(pattern)
            size = min(old.shape[-1], keys - start)
            first, end = max(here.start, start), min(here.stop, start + size)
            if first < end:
                block = pinned[row, :, first - here.start : end - here.start]
                block.zero_()
                block[..., start : start + size] = old[:, first - start : end - start, :size]
        rows = self.rows(canvas, pattern.shape[1], pattern.device)[:, :, here]
        # A row that was measured has numbers at the keys that were there, and nan at later ones.
        there = rows & ~pinned.isnan().all(-1, keepdim=True)
        self.count("rows", there.sum((1, 2, 3)))
        self.count("rows_left", (rows & ~there).sum((1, 2, 3)))
        return torch.where(there, pinned.nan_to_num(0.0), pattern)

    def arguments(self) -> list[str]:
        """The record's fingerprint."""
        return [f"<{self.mark}>"]


class SinkToken(Edit):
    """An extra token that every query sees and that sees only itself: one position before the row's first token.

    Since it sees nothing else, its keys and values depend on nothing else: they are computed once, from a forward of
    this token alone, and take part in every row's softmax. Exactly as if it stood on the canvas.
    Conserves: the proportions of the real keys; rows over real keys sum to less than 1. "mass" counts what it
    absorbed, over "rows" query rows.
    Assumes: an existing token that was not trained for this (arXiv 2601.19657 trains a new one and shifts all
    positions by one; relative positions are the same here). Needs a HookedDLM.
    Source: arXiv 2601.19657, equations 5 and 6.

    Args:
        token: Its id; the model's BOS token when None.
        where: Layers, heads, steps and queries; keys have no meaning here.
    """

    stage = 1

    def __init__(self, token: int | None = None, where: Where | None = None) -> None:
        super().__init__(where)
        if token is not None and token < 0:
            raise ValueError(f"token={token} must be a token id, from 0")
        self.token = token
        self._made: tuple[Any, dict[str, Tensor]] = (None, {})

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a model without BOS, or a token that is not in the vocabulary."""
        token = self._id(model)
        if not 0 <= token < int(model.cfg.d_vocab):
            raise ScopeError(f"{self!r}: token {token} is outside the vocabulary of {model.cfg.d_vocab}")

    def _id(self, model: Any) -> int:
        token = self.token if self.token is not None else getattr(getattr(model, "ids", None), "bos", None)
        if token is None:
            raise ScopeError(f"{model!r} has no BOS token; say which token, for example SinkToken(token=0)")
        return int(token)

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on queries and scores (looking), pattern (scaling) and mixed values (adding)."""
        if not self.acts(canvas):
            return []
        if self._made[0] is not model:
            self._made = (model, self._keys_and_values(model))
        hooks: list[Hook] = []
        for layer in self.layers(model):
            kept: dict[str, Tensor] = {}
            prefix, scale = f"blocks.{layer}.", float(model.blocks[layer].attn.original_component.scaling)
            for point, function in (
                (rotated(model, "q"), partial(self._note, kept)),
                ("attn.hook_attn_scores", partial(self._share, kept, layer, scale)),
                ("attn.hook_pattern", partial(self._scale, kept, canvas)),
                ("attn.o.hook_in", partial(self._add, kept, layer)),
            ):
                hooks.append((prefix + point, rowwise(function, look=self.quietly(function))))
        return hooks

    @torch.no_grad()
    def _keys_and_values(self, model: Any) -> dict[str, Tensor]:
        """Keys and values of the token alone, [kv head, d_head] by layer."""
        found: dict[str, Tensor] = {}

        def note(name: str, tensor: Tensor, *, hook: Any) -> None:
            found[name] = tensor[0, 0]

        points = {"k": rotated(model, "k"), "v": "attn.v.hook_out"}
        hooks = [
            (f"blocks.{layer}.{point}", partial(note, f"{name}{layer}"))
            for layer in range(int(model.cfg.n_layers))
            for name, point in points.items()
        ]
        alone = torch.tensor([[self._id(model)]], device=model.device)
        before = torch.tensor([[-1]], device=model.device)
        with model.bridge.hooks(fwd_hooks=hooks):
            model.bridge(alone, return_type="logits", use_cache=False, position_ids=before)
        return found

    def _note(self, kept: dict[str, Tensor], query: Tensor, *, hook: Any) -> None:
        kept["query"] = query

    def _share(self, kept: dict[str, Tensor], layer: int, scale: float, scores: Tensor, *, hook: Any) -> None:
        query = kept["query"][:, rows_of(hook, scores)].transpose(1, 2).float()  # [batch, head, query, d_head]
        key = self._made[1][f"k{layer}"].float()
        key = key.repeat_interleave(query.shape[1] // len(key), 0)
        score = torch.einsum("bhqd,hd->bhq", query, key)[..., None] * scale
        kept["share"] = torch.sigmoid(score - scores.float().logsumexp(-1, keepdim=True))

    def _scale(self, kept: dict[str, Tensor], canvas: Canvas | None, pattern: Tensor, *, hook: Any) -> Tensor:
        seen = canvas or plain_canvas((pattern.shape[0], pattern.shape[-1]), pattern.device)
        rows = self.rows(seen, pattern.shape[1], pattern.device)[:, :, rows_of(hook, pattern)]
        share = torch.where(rows, kept.pop("share"), 0.0)
        if not self.quiet:
            kept["shares"] = torch.cat([kept["shares"], share], 2) if "shares" in kept else share
        self.count("mass", share.sum((1, 2, 3)))
        self.count("rows", rows.sum((1, 2, 3)))
        return pattern * (1 - share).to(pattern.dtype)

    def _add(self, kept: dict[str, Tensor], layer: int, mixed: Tensor, *, hook: Any) -> Tensor:
        share = kept.pop("shares").transpose(1, 2)  # [batch, query, head, 1]
        kept.clear()
        value = self._made[1][f"v{layer}"].float()
        value = value.repeat_interleave(share.shape[2] // len(value), 0)
        return mixed + (share * value).to(mixed.dtype).view(mixed.shape)

    def arguments(self) -> list[str]:
        """The token."""
        return [] if self.token is None else [f"token={self.token}"]
