"""A key-value cache that can be cut: a baseline reads on over what is left, and what is gone stays gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from sinklens.errors import ScopeError, Unsupported
from sinklens.models.attention import RECEIVED, behind_cache
from sinklens.models.driver import FORWARD, running
from sinklens.values.content import Value
from sinklens.values.kinds import Index, Rate, Seed

Ranking = Literal["low_norm", "high_norm", "attended", "attended_mean", "recent", "random"]
First = Literal["ranked", "kept", "dropped"]


@dataclass(frozen=True)
class Cut(Value):
    """Which keys of a cache are kept: per layer and key head the best `share` of them, rounded up.

    Source: arXiv 2406.11430 keeps the LOWEST L2 norms after RoPE (which changes no norm), `ceil(share x keys)` per key
    head, with the first layers untouched. Keys stay at the places where they were read. What a key received
    ("attended") is summed over all queries since the beginning and averaged over the query heads of its key head: the
    "heavy hitters" of cache eviction, which favour early keys, for more queries see them. "attended_mean" divides by
    the queries that could see it. Random numbers belong to a place, a layer and a key head, so that, as with norms, a
    key that survives one cut is likely to survive the next.

    Args:
        share: Of the keys, in (0, 1].
        by: "low_norm", "high_norm", "attended", "attended_mean", "recent" or "random".
        first: What becomes of the first position: as the ranking has it, or it is "kept" or "dropped" whatever its
            rank, at the same number of keys. In most heads of many autoregressive models it is the sink.
        skip_layers: Layers that keep everything (published: 0 and 1).
        seed: For "random".

    Raises:
        ContentError: a share outside (0, 1], an unknown ranking, a layer below 0.
    """

    share: Rate
    by: Ranking = "low_norm"
    first: First = "ranked"
    skip_layers: tuple[Index, ...] = (0, 1)
    seed: Seed = 0

    @property
    def name(self) -> str:
        """The ranking, and what becomes of the first key: "random", "random + first", "low_norm - first"."""
        return self.by + {"ranked": "", "kept": " + first", "dropped": " - first"}[self.first]

    def number(self, keys: int) -> int:
        """How many of so many keys are kept: at least 1."""
        return max(1, math.ceil(self.share * keys - 1e-9))

    def check(self, layers: int) -> None:
        """Raise for skipped layers that a model with so many layers does not have, or that leave none to cut.

        Raises:
            ScopeError: naming them.
        """
        if unknown := [layer for layer in self.skip_layers if layer >= layers]:
            raise ScopeError(f"skip_layers={self.skip_layers}: there is no layer {unknown[0]}; the model has {layers}")
        if len(set(self.skip_layers)) == layers:
            raise ScopeError(f"skip_layers={self.skip_layers} leaves none of the {layers} layers to cut")


@dataclass(frozen=True, eq=False)
class Layer:
    """What a cache holds of one layer.

    Attributes:
        keys: After RoPE.
        values: Likewise, not rotated.
        places: Where each stood in the text; they ascend.
        received: Attention that each received so far, summed over queries, mean over the query heads of its key head.
    """

    keys: Float[Tensor, "row key_head key d_head"]
    values: Float[Tensor, "row key_head key d_head"]
    places: Int[Tensor, "row key_head key"]
    received: Float[Tensor, "row key_head key"]

    def row(self, row: int) -> Layer:
        """One of its rows; a single one serves any number."""
        at = [row if len(self.keys) > 1 else 0]
        return Layer(self.keys[at], self.values[at], self.places[at], self.received[at])

    def taking(self, index: Int[Tensor, "row key_head kept"]) -> Layer:
        """Some of its keys; a single row serves any number."""
        rows = len(index)

        def taken(each: Tensor) -> Tensor:
            each = each.expand(rows, *each.shape[1:])
            return each.gather(2, index[..., None].expand(*index.shape, each.shape[-1]) if each.ndim == 4 else index)

        return Layer(taken(self.keys), taken(self.values), taken(self.places), taken(self.received))


@dataclass(frozen=True, eq=False)
class Cache:
    """What an autoregressive model remembers of a text, after any number of cuts. A value: reading on gives another.

    Attributes:
        dlm: The model.
        layers: What each layer holds; empty before anything was read.
        seen: How many tokens were read, whatever is left of them.
    """

    dlm: Any
    layers: tuple[Layer, ...] = ()
    seen: int = 0

    def __post_init__(self) -> None:
        if not self.dlm.is_causal:
            raise Unsupported(
                f"{self.dlm.name} sees in both directions: every step computes all keys anew, and a cache of earlier "
                "ones would be wrong; KeepKeys asks the same of each step"
            )

    def read(self, tokens: Int[Tensor, "row pos"], *, last: int = 0) -> tuple[Cache, Float[Tensor, "row some vocab"]]:
        """Read on: the cache with these tokens in it, and the logits at the last so many of them (0: at each).

        Queries see all keys that the cache holds, at the places where they stood, and the new ones causally.

        Raises:
            ScopeError: another number of rows than the cache has.
        """
        rows = len(self.layers[0].keys) if self.layers else len(tokens)
        if len(tokens) != rows:
            raise ScopeError(f"{len(tokens)} rows of tokens, and the cache has {rows}")
        cache, shown = DynamicCache(), dict[int, Tensor]()
        for index, layer in enumerate(self.layers):
            cache.update(layer.keys, layer.values, index)

        def note(received: Tensor, hook: Any) -> None:
            shown[int(hook.name.split(".")[1])] = received.detach().float()

        hooks = [(f"blocks.{layer}.attn.{RECEIVED[0]}", note) for layer in range(self.dlm.n_layers)]
        size = tokens.shape[1]
        tokens = tokens.to(self.dlm.device)
        options = {
            "position_ids": torch.arange(self.seen, self.seen + size, device=tokens.device).expand(rows, -1),
            "attention_mask": behind_cache(size, self.seen + size, tokens.device).expand(rows, -1, -1, -1),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": last,
        }

        def run() -> Tensor:
            return self.dlm.run_with_hooks(tokens, fwd_hooks=hooks, **options)

        with torch.no_grad():
            logits = running(replace(FORWARD.get(), cached=True), run)
        held: Any = cache.layers
        layers = [self._read_layer(index, each, shown[index], size) for index, each in enumerate(held)]
        return Cache(self.dlm, tuple(layers), self.seen + size), logits

    def _read_layer(self, index: int, held: Any, received: Tensor, size: int) -> Layer:
        rows, heads, keys = held.keys.shape[:3]
        new = torch.arange(self.seen, self.seen + size, device=held.keys.device).expand(rows, heads, size)
        received = received.unflatten(1, (heads, -1)).mean(2)
        if not self.layers:
            return Layer(held.keys, held.values, new, received)
        before = self.layers[index]
        received[..., : keys - size] += before.received
        return Layer(held.keys, held.values, torch.cat([before.places, new], -1), received)

    def keys(self, skip_layers: Sequence[int] = ()) -> int:
        """The largest number of keys that a layer holds for each key head, beside layers that are not cut."""
        counts = [layer.keys.shape[2] for index, layer in enumerate(self.layers) if index not in skip_layers]
        return max(counts, default=0)

    def cut(self, cuts: Sequence[Cut]) -> Cache:
        """What is left of it, a row for each cut (a cache of one row is cut in all of these ways).

        Raises:
            ScopeError: cuts that do not fit together or the cache: other shares, skipped layers that are not there, or
                no layer left to cut.
        """
        one, rows, layers = cuts[0], len(cuts), self.dlm.n_layers
        if any((each.share, each.skip_layers) != (one.share, one.skip_layers) for each in cuts):
            raise ScopeError("cuts of one cache must keep the same share, and skip the same layers")
        one.check(layers)
        if len(self.layers[0].keys) not in (1, rows):
            raise ScopeError(f"{rows} cuts, and the cache has {len(self.layers[0].keys)} rows")
        left = []
        for index, layer in enumerate(self.layers):
            every = torch.arange(layer.keys.shape[2], device=layer.keys.device)
            kept = every.expand(rows, layer.keys.shape[1], -1)
            if index not in one.skip_layers:
                scores = torch.stack(
                    [scores_of(layer.row(row), each, index, self.seen) for row, each in enumerate(cuts)]
                )
                kept = scores.topk(one.number(len(every)), dim=-1).indices.sort(-1).values
            left.append(layer.taking(kept))
        return Cache(self.dlm, tuple(left), self.seen)

    def answers(
        self, question: Int[Tensor, "row pos"], answer: Int[Tensor, " answer"]
    ) -> tuple[Bool[Tensor, " row"], Float[Tensor, " row"]]:
        """Whether each row would answer so, greedily, and the log likelihood of the answer in nats.

        One forward with the answer in it: behind its first tokens, a greedy text goes on with the likeliest next one.
        Nothing more is dropped meanwhile.
        """
        text = torch.cat([question, answer[:-1].expand(len(question), -1).to(question)], 1)
        _, logits = self.read(text, last=len(answer))
        return graded(logits, answer)


def graded(
    logits: Float[Tensor, "row answer vocab"], answer: Int[Tensor, " answer"]
) -> tuple[Bool[Tensor, " row"], Float[Tensor, " row"]]:
    """Whether each token of an answer is the likeliest, and its log likelihood, of the logits that predict it."""
    answer = answer.to(logits.device)
    likelihood = logits.float().log_softmax(-1).gather(-1, answer.expand(len(logits), -1)[..., None])
    return (logits.argmax(-1) == answer).all(-1), likelihood[..., 0].sum(-1)


def scores_of(layer: Layer, cut: Cut, index: int, seen: int) -> Float[Tensor, "key_head key"]:
    """How much each key of a layer of one row deserves to be kept, in float64.

    Args:
        layer: What the layer holds.
        cut: The ranking.
        index: Which layer.
        seen: How many tokens were read.
    """
    places = layer.places[0]
    match cut.by:
        case "low_norm":
            scores = -layer.keys[0].double().norm(dim=-1)
        case "high_norm":
            scores = layer.keys[0].double().norm(dim=-1)
        case "attended":
            scores = layer.received[0].double()
        case "attended_mean":
            scores = layer.received[0].double() / (seen - places)
        case "recent":
            scores = places.double()
        case "random":
            scores = _random(cut.seed, index, places)
    if cut.first != "ranked":
        scores = scores.masked_fill(places == 0, math.inf if cut.first == "kept" else -math.inf)
    return scores


def _random(seed: int, layer: int, places: Int[Tensor, "key_head key"]) -> Float[Tensor, "key_head key"]:
    """A number for each place, layer and key head, whatever else the cache holds."""
    heads, count = len(places), int(places.max()) + 1
    generator = torch.Generator().manual_seed((seed * 1_000_003 + layer) % 2**63)
    draws = torch.rand(count, heads, generator=generator, dtype=torch.float64).T.to(places.device)
    return draws.gather(1, places)
