"""What a gate reaches on texts: the share that it keeps, and how far predictions move, beside as many random keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sinklens.selection.batches import Batch
from sinklens.selection.gate import GRID, Gate, above
from sinklens.selection.selected import Choose, by_gate, selected
from sinklens.sinks import largest


@torch.no_grad()
def measure(dlm: Any, gate: Gate, batches: Sequence[Batch], rates: Sequence[float]) -> list[dict[str, float]]:
    """At each rate what a gate reaches, and what as many keys by chance do (as many in each row and layer).

    Returns:
        For each rate "rate"; "share", of the valid tokens that were kept, over rows and the layers that select;
        "share_low" and "share_high", of the layers with the fewest and the most; "kl" in nats per scored position;
        "same", the share of these positions whose likeliest token stays; "random_kl" and "random_same".
    """
    rows = []
    for rate in rates:
        found: list[dict[str, float]] = []
        for number, batch in enumerate(batches):
            plain = dlm(batch.tokens, attention_mask=batch.valid)
            choose = by_gate(gate, rate, batch.valid)
            logits, shown = selected(dlm, batch.tokens, batch.valid, choose, gate.source)
            drawn = torch.Generator().manual_seed(number)
            chance, _ = selected(dlm, batch.tokens, batch.valid, as_many(shown.kept, batch, drawn), gate.source)
            real = batch.valid.sum()
            shares = [float(kept.sum() / real) for kept in shown.kept.values()]
            ours, theirs = (_beside(plain, each, batch) for each in (logits, chance))
            found.append(
                {
                    "share": sum(shares) / len(shares),
                    "share_low": min(shares),
                    "share_high": max(shares),
                    "kl": ours[0],
                    "same": ours[1],
                    "random_kl": theirs[0],
                    "random_same": theirs[1],
                }
            )
        rows.append({"rate": rate} | {name: sum(each[name] for each in found) / len(found) for name in found[0]})
    return rows


@torch.no_grad()
def calibrate(dlm: Any, gate: Gate, batch: Batch) -> None:
    """Move the thresholds of a gate so that on a batch every layer keeps the share that was asked for, at each rate.

    Layer by layer in one forward per rate: each layer's input is that under the calibrated layers before it. Tokens
    that look alike stay or go together, so that the share may still miss the rate by as many.
    """
    for index, rate in enumerate(GRID):

        def choose(residual: Tensor, layer: int, index: int = index, rate: float = rate) -> tuple[Tensor, None]:
            row = gate.weights["calibration"][layer - gate.shape.first if gate.shape.scores == "layer" else 0]
            scores = gate.scores(residual, layer, rate)
            real = scores[batch.valid].sort(descending=True).values
            count = max(1, round(rate * len(real)))
            row[index] -= real[count - 1 : count + 1].mean()  # between the last that stays and the first that goes
            return above(gate.scores(residual, layer, rate), batch.valid), None

        selected(dlm, batch.tokens, batch.valid, choose, gate.source)


def as_many(kept: dict[int, Tensor], batch: Batch, generator: torch.Generator) -> Choose:
    """Random keys, as many in each row and layer as were kept."""

    def choose(residual: Tensor, layer: int) -> tuple[Tensor, None]:
        chance = torch.rand(batch.valid.shape, generator=generator).to(batch.valid.device)
        return largest(chance, batch.valid, kept[layer].sum(-1, keepdim=True)), None

    return choose


def divergence(
    plain: Float[Tensor, "batch pos vocab"], logits: Float[Tensor, "batch pos vocab"], batch: Batch
) -> Float[Tensor, " scored"]:
    """KL divergence of the predictions in `plain` from those in `logits` at the scored positions, in nats."""
    before, after = (each[batch.scored].float().log_softmax(-1) for each in (plain, logits))
    return (before.exp() * (before - after)).sum(-1)


def surprise(logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> Float[Tensor, " scored"]:
    """Cross-entropy of the true tokens at the scored positions, in nats."""
    return F.cross_entropy(logits[batch.scored].float(), batch.targets[batch.scored], reduction="none")


def _beside(plain: Tensor, logits: Tensor, batch: Batch) -> tuple[float, float]:
    same = plain[batch.scored].argmax(-1) == logits[batch.scored].argmax(-1)
    return float(divergence(plain, logits, batch).mean()), float(same.float().mean())
