"""Who is edited, by something other than this run's attention: positions, tokens, key norms, another record."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinklens.analysis import rates as metrics
from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, rotated
from sinklens.interventions.selectors.attention import Detector
from sinklens.records import Rows
from sinklens.sinks import SinkRule, largest
from sinklens.sinks.tokens import ids_of_class


class Fixed(Detector):
    """The same positions at every step, in every layer and head, counted from each row's first real token.

    Fixed([0]) is the BOS token, the static sink of autoregressive models (arXiv 2309.17453).

    Args:
        positions: One or several, from 0.
    """

    def __init__(self, positions: int | Sequence[int]) -> None:
        super().__init__()
        several = positions if isinstance(positions, Sequence | np.ndarray) else [positions]
        self.positions = tuple(operator.index(each) for each in several)
        if not self.positions or min(self.positions) < 0:
            raise ValueError(f"positions={list(self.positions)}: give at least one, counted from 0")

    def ahead(self, canvas: Canvas | None) -> bool:
        """Yes: this run's attention plays no part."""
        return True

    def query_set(self, *, causal: bool) -> Any:
        """All: attention plays no part."""
        return "all"

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a position that a row does not have."""
        shortest = int(canvas.valid.sum(-1).min())
        if max(self.positions) >= shortest:
            raise ScopeError(f"{self!r}: the shortest row has positions 0 to {shortest - 1}")

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """The positions that are there."""
        place = canvas.valid.long().cumsum(-1) - 1
        there = torch.isin(place, torch.tensor(self.positions, device=place.device)) & canvas.valid
        return eligible & there[:, None].to(eligible.device)

    def arguments(self) -> list[str]:
        """The positions."""
        return [repr(list(self.positions))]


class ByToken(Detector):
    """Keys by the token that stands there at the step: a class, or ids.

    Args:
        what: A class of `tokenclasses.CLASSES` ("mask", "punctuation", "white space", ...), or token ids.
        top_k: At most this many, those that receive most; all when None.
        fewer: As in Detector.
    """

    def __init__(
        self, what: str | int | Sequence[int], *, top_k: int | None = None, fewer: Literal["take", "none"] = "take"
    ) -> None:
        super().__init__(top_k=top_k, fewer=fewer)
        self.what = [what] if isinstance(what, int) else what
        self.ranked = top_k is not None
        self._ids: tuple[Any, list[int]] = (None, [])
        if not isinstance(self.what, str) and not list(self.what):
            raise ValueError("ByToken([]) names no token; give at least one id, or a class such as 'mask'")

    def ahead(self, canvas: Canvas | None) -> bool:
        """Unless attention ranks the keys."""
        return not self.ranked

    def query_set(self, *, causal: bool) -> Any:
        """All queries rank the keys."""
        return "all"

    def hooks(self, model: Any, layer: int, canvas: Canvas | None) -> list[Hook]:
        """No hooks; finds the class's ids in the model's vocabulary."""
        if canvas is None:
            raise ScopeError(f"{self!r} needs to know the tokens; use it in denoise, or fwd_hooks(model, canvas)")
        if self._ids[0] is not model:
            self._ids = (model, ids_of_class(model, self.what) if isinstance(self.what, str) else list(self.what))
        return []

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a class that the vocabulary does not hold."""
        super().check(model, canvas)
        self.hooks(model, 0, canvas)

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """Keys that hold such a token."""
        ids = torch.tensor(self._ids[1], device=canvas.tokens.device)
        found = eligible & torch.isin(canvas.tokens, ids)[:, None].to(eligible.device)
        return self.rule(received, found, visible=visible) if self.ranked else found

    def arguments(self) -> list[str]:
        """What, and how many."""
        what = repr(self.what) if isinstance(self.what, str) else repr(list(self.what))
        more = [f"top_k={self.rule.top_k}"] if self.ranked else []
        return [what, *more, *(["fewer='none'"] if self.fewer == "none" else [])]


class ByKeyNorm(Detector):
    """The k keys with the smallest L2 norm in each head (query heads share those of their key head), after RoPE.

    Low norms go with high attention in many autoregressive models (arXiv 2406.11430); whether the keys that have them
    matter is what an edit asks.

    Args:
        top_k: How many.
        largest: The largest norms instead.
    """

    def __init__(self, top_k: int = 1, *, largest: bool = False) -> None:
        super().__init__(top_k=top_k)
        self.largest = largest
        self._norms = {}

    def reset(self) -> None:
        """Forget the last forward's norms."""
        super().reset()
        self._norms: dict[int, Tensor] = {}

    def ahead(self, canvas: Canvas | None) -> bool:
        """Yes: this run's attention plays no part."""
        return True

    def query_set(self, *, causal: bool) -> Any:
        """All: attention plays no part."""
        return "all"

    def hooks(self, model: Any, layer: int, canvas: Canvas | None) -> list[Hook]:
        """One hook, on the keys after RoPE."""
        return [(f"blocks.{layer}.{rotated(model, 'k')}", partial(self._note, layer))]

    def _note(self, layer: int, keys: Tensor, *, hook: Any) -> None:
        self._norms[layer] = keys.detach().float().norm(dim=-1).transpose(1, 2)

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """Keys with the smallest norms."""
        norms = self._norms[layer]
        norms = norms.repeat_interleave(received.shape[1] // norms.shape[1], 1)
        return largest(norms if self.largest else -norms, eligible, self.rule.top_k or 0)

    def arguments(self) -> list[str]:
        """How many, and which end."""
        return [f"top_k={self.rule.top_k}", *(["largest=True"] if self.largest else [])]


class FromRecord(Detector):
    """The sinks that a record shows, at the same step, layer and head: an open loop over a whole run.

    Rows find their place in the record by the tokens of their prompt (and by the seed where a prompt occurs twice),
    so batches may be cut in any way. Steps that the record does not have select nothing.

    Args:
        record: With `received` (`probes.ReceivedAttention`), of the same prompts.
        rule: When a key is a sink. Give this or `top_k`.
        top_k: As in Detector.
        shift: Take the row that comes so many after the own one in the record: another prompt's sinks.
    """

    def __init__(
        self, record: xr.Dataset, rule: SinkRule | None = None, *, top_k: int | None = None, shift: int = 0
    ) -> None:
        super().__init__(rule, top_k=top_k)
        self.book, self.shift = Rows(record), shift
        if shift % max(record.sizes["prompt"], 1) == 0 and shift:
            raise ValueError(
                f"shift={shift} comes back to the own row: the record has {record.sizes['prompt']} prompts"
            )
        found = metrics.sinks(record, self.rule).transpose("prompt", "step", "layer", "head", "key")
        self.flags = torch.from_numpy(found.to_numpy())
        self.steps, self.layers = found["step"].to_numpy(), found["layer"].to_numpy()
        self.mark = hashlib.sha256(np.packbits(found.to_numpy()).tobytes()).hexdigest()[:8]

    def ahead(self, canvas: Canvas | None) -> bool:
        """Yes: this run's attention plays no part."""
        return True

    def query_set(self, *, causal: bool) -> Any:
        """All: this run's attention plays no part."""
        return "all"

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for prompts or heads that the record does not have."""
        self.book.remember(canvas)
        if self.flags.shape[3] != int(model.cfg.n_heads):
            raise ScopeError(f"{self!r} has {self.flags.shape[3]} heads per layer, the model {model.cfg.n_heads}")

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """What the record calls sinks."""
        if layer not in self.layers:
            raise ScopeError(
                f"{self!r} knows the layers {self.layers.tolist()} and not {layer}; narrow the edit's Where"
            )
        selected = torch.zeros_like(eligible)
        if canvas.step not in self.steps:
            return selected
        at = (int(np.flatnonzero(self.steps == canvas.step)[0]), int(np.flatnonzero(self.layers == layer)[0]))
        for row, (source, start) in enumerate(self.book.find(canvas)):
            flags = self.flags[(source + self.shift) % len(self.flags)][at].to(eligible.device)
            size = min(flags.shape[-1], eligible.shape[-1] - start)
            selected[row, :, start : start + size] = flags[:, :size]
        return selected & eligible

    def arguments(self) -> list[str]:
        """The record's fingerprint, the rule, the shift."""
        return [f"<{self.mark}>", *super().arguments(), *([f"shift={self.shift}"] if self.shift else [])]
