"""Which tokens a gate keeps as keys, at several rates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import ContentError, GateError, HookNeverFired, ScopeError
from sinklens.hooks import Canvas, Hook, Scope, chosen
from sinklens.models.told import known_canvas
from sinklens.probes.base import Measurement, derived, only
from sinklens.selection import reading
from sinklens.selection.places import AUTO
from sinklens.values.kinds import Rate

RATES = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9)


@dataclass(frozen=True, repr=False)
class Kept(Measurement):
    """1 where a gate keeps the token as a key of the layer, 0 where it drops it, at each of several rates.

    The gate reads the residual stream of the run as it is; it drops nothing here, unless an edit does
    (`interventions.LearnedSelection`). Unit: yes/no (1/0); the mean over keys is the share that is kept. Layers before
    the first in which the gate selects (`Gate.shape.first`) keep everything and are left out, so that no share is
    diluted by them. Source: sinklens (`selection.Gate`; arXiv 2405.02330).

    Attributes:
        gate: The folder of a gate, the name of one that comes with sinklens, or "auto": the one for the model.
        rates: Shares of keys that are asked for, above 0 and at most 1.
        mark: As in `LearnedSelection`: digest of the gate, read when None.
        where: Layers and steps to look at.

    Raises:
        ContentError: a rate outside (0, 1], none, or one that is named twice.
        GateError: no such gate, one with another mark; in a run: a gate of another model.
    """

    gate: str = AUTO
    rates: tuple[Rate, ...] = RATES
    mark: str | None = None
    where: Scope = Scope()
    own = "kept"
    dims = ("layer", "rate", "key")
    unit = "1/0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rates or len(set(self.rates)) < len(self.rates):
            raise ContentError(f"rates={list(self.rates)} " + ("names one twice" if self.rates else "is empty"))
        object.__setattr__(self, "mark", self._same())

    def _same(self) -> str:
        """The mark of the gate as it is now, which must be the probe's."""
        found = reading.mark(self.gate)
        if self.mark not in (None, found):
            raise GateError(
                f"gate={self.gate!r} has the mark {found!r}, not mark={self.mark!r}: it is another gate now"
            )
        return found

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"1 where the gate {self.mark} keeps the token as a key of the layer, at this rate"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """Hooks on the residual streams that the gate reads.

        Raises:
            GateError: a gate of another model, or one that was trained anew since the probe was made.
            ScopeError: layers in scope of which the gate selects in none.
        """
        self._same()
        gate = reading.load(self.gate, model)
        seen["values"] = {}
        reads: dict[int, list[int]] = {}
        for layer in chosen(self.where.layers, int(model.cfg.n_layers), "layer"):
            if (source := gate.source(layer)) is not None:
                reads.setdefault(source, []).append(layer)
        if not reads:
            raise ScopeError(f"{self!r}: its gate selects from layer {gate.shape.first} on, and no such layer is named")

        def look(layers: list[int], residual: Tensor, *, hook: Any) -> None:
            with torch.no_grad():
                everywhere = Canvas.plain(torch.ones(residual.shape[:2], dtype=torch.bool))
                valid = (known_canvas(canvas) or everywhere).positions("all").to(residual.device)
                for layer in layers:
                    flags = [gate.keeps(residual.detach(), layer, rate, valid) for rate in self.rates]
                    seen["values"][layer] = only(torch.stack(flags, 1).float(), valid)

        return [(f"blocks.{source}.hook_in", partial(look, layers)) for source, layers in reads.items()]

    def values(self, seen: dict[Any, Any]) -> Float[Tensor, "batch layer rate key"]:
        """What a forward showed."""
        by_layer = seen.get("values")
        if not by_layer:
            raise HookNeverFired(f"{self!r} has measured nothing; run a forward with its hooks first")
        device = next(iter(by_layer.values())).device
        return torch.stack([by_layer[layer].to(device) for layer in sorted(by_layer)], 1)

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        """The layers that were measured, and the rates."""
        return {"layer": sorted(seen.get("values", ())), "rate": list(self.rates)}
