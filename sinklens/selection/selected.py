"""A forward in which only chosen keys are visible, with gradients that reach what chose them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.hooks import Hook, with_hooks
from sinklens.selection.gate import Gate, above

# (residual stream at a layer's input, layer) -> which keys stay, and their scores where gradients are to reach them
LEAST = 0.1  # of a query's attention, where gradients are divided by what is left of it
Choose = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]


@dataclass(eq=False)
class Shown:
    """What was chosen in one forward.

    Attributes:
        kept: By layer, the keys that stayed [batch, pos].
        scores: By layer, their scores [batch, pos]; only where they were given.
    """

    kept: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)


def by_gate(gate: Gate, rate: float, valid: Bool[Tensor, "batch pos"]) -> Choose:
    """The keys that a gate keeps. It reads the residual stream and sends no gradient into it."""

    def choose(residual: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        if rate >= 1:
            return valid.clone(), None
        scores = gate.scores(residual.detach(), layer, rate)
        return above(scores, valid), scores

    return choose


def selected(
    dlm: Any,
    tokens: Int[Tensor, "batch pos"],
    valid: Bool[Tensor, "batch pos"],
    choose: Choose,
    source: Callable[[int], int | None] = lambda layer: layer,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "batch pos vocab"], Shown]:
    """Logits of a forward in which each layer sees the chosen keys alone, and what was chosen.

    Forward it is hard: keys that were not chosen are masked before the softmax, and a query that would lose every key
    keeps its largest. Backward it is straight-through: the plain weights times 1 or 0, the row renormalised, where the
    1 or 0 is taken to change as sigmoid(score / temperature) does. A query that has lost nearly all of its attention
    would give gradients without bounds; they are those of one that has kept a tenth.

    Args:
        dlm: A HookedDLM.
        tokens: Token ids.
        valid: Real positions.
        choose: Which keys stay.
        source: The layer whose input decides for a layer; None: the layer sees everything (`Gate.source`).
        temperature: Of the sigmoid; lower is nearer to a step.
    """
    shown, layers = Shown(), range(int(dlm.cfg.n_layers))
    decides: dict[int, list[int]] = {}
    for layer in layers:
        if (at := source(layer)) is not None:
            decides.setdefault(at, []).append(layer)
    hooks: list[Hook] = []
    for at, deciding in decides.items():
        hooks.append((f"blocks.{at}.hook_in", _choosing(choose, deciding, shown)))
        for layer in deciding:
            raw: dict[str, Tensor] = {}
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", _hiding(shown, layer, raw)))
            hooks.append((f"blocks.{layer}.attn.hook_pattern", _through(shown, layer, raw, temperature)))

    def forward() -> Tensor:
        return dlm(tokens, attention_mask=valid)

    logits = dlm.wiring.held(lambda: with_hooks(dlm, [("selection", hooks)], {}, forward))
    return logits, shown


def without(
    scores: Float[Tensor, "batch head query key"], kept: Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch head query key"]:
    """Scores with -inf at keys that were not kept; a query that would lose every key keeps its largest."""
    hidden = scores.masked_fill(~kept[:, None, None], -math.inf)
    lost = hidden.amax(-1, keepdim=True) == -math.inf
    if not bool(lost.any()):
        return hidden
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.argmax(-1, keepdim=True), True)
    return torch.where(lost & largest, scores, hidden)


def _choosing(choose: Choose, layers: list[int], shown: Shown) -> Callable[..., None]:
    def look(residual: Tensor, *, hook: Any) -> None:
        for layer in layers:
            if layer > layers[0] and len(layers) > 1:  # shared: one choice for all
                shown.kept[layer] = shown.kept[layers[0]]
                if layers[0] in shown.scores:
                    shown.scores[layer] = shown.scores[layers[0]]
                continue
            kept, scores = choose(residual, layer)
            shown.kept[layer] = kept
            if scores is not None:
                shown.scores[layer] = scores

    return look


def _hiding(shown: Shown, layer: int, raw: dict[str, Tensor]) -> Callable[..., Tensor]:
    def hide(scores: Tensor, *, hook: Any) -> Tensor:
        raw["scores"] = scores.detach()
        return without(scores, shown.kept[layer])

    return hide


def _through(shown: Shown, layer: int, raw: dict[str, Tensor], temperature: float) -> Callable[..., Tensor | None]:
    def through(pattern: Tensor, *, hook: Any) -> Tensor | None:
        before = raw.pop("scores")
        scores = shown.scores.get(layer)
        if scores is None or not torch.is_grad_enabled():
            return None
        seen = (before > -math.inf).any(-1, keepdim=True)  # a padding query of a causal model sees nothing
        plain = torch.where(seen, before, 0.0).softmax(-1) * seen
        soft = torch.sigmoid(scores / temperature)
        times = plain * (shown.kept[layer] + soft - soft.detach())[:, None, None]
        mixed = times / times.sum(-1, keepdim=True).clamp(min=LEAST)
        return pattern + (mixed - mixed.detach()).to(pattern.dtype)

    return through
