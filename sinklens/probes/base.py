"""What the probes share: a scope of which nothing is dropped, and one reduction per layer, by blocks of queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import HookNeverFired, NotFinite
from sinklens.hooks import Canvas, Hook, Probe, block_of, canvas_of, chosen, only_new, sight_of, watching
from sinklens.models.told import known_canvas
from sinklens.sinks import Positions, Received, Sight

PATTERN = "attn.hook_pattern"
T = TypeVar("T")


def derived(function: Callable[[Any], T]) -> T:
    """A property, where `Probe` has a plain attribute, for what follows from a probe's fields."""
    return cast(T, property(function))


@dataclass(frozen=True, repr=False)
class Measurement(Probe):
    """A probe of sinklens. It refuses those parts of a scope for which it has no dim.

    A field `queries` (whose attention counts) or `positions` (which are measured) names a set of positions and is
    recorded as an attribute of the variable.

    Attributes:
        variable: Name of the record variable, for two probes of a kind in one run; the probe's own when empty.
    """

    variable: str = field(default="", kw_only=True)
    own = ""

    def __post_init__(self) -> None:
        for dim, part in (("layer", "layers"), ("head", "heads")):
            if dim not in self.dims:
                self.where.refuse(part, by=self)

    def _sets(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self) if f.name in ("queries", "positions")]

    @derived
    def name(self) -> str:
        """The record variable; of store events another than of steps."""
        return self.variable or (f"stored_{self.own}" if self.where.event == "store" else self.own)

    def attributes(self) -> dict[str, Any]:
        """Whose attention counted, or which positions were measured."""
        return {name: which for name, which in self._sets() if isinstance(which, str)}


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one forward, as a measurement sees it.

    Attributes:
        model: The model.
        index: Which layer.
        canvas: What the forward sees; outside the denoising loop one where every real position is committed.
        sight: Who sees whom.
        seen: What the probe's hooks share in this forward.
    """

    model: Any
    index: int
    canvas: Canvas
    sight: Sight
    seen: dict[Any, Any]

    def keys(self, which: Positions, like: Tensor) -> Bool[Tensor, "batch key"]:
        """Keys of one kind, on the device of a tensor."""
        return self.canvas.positions(which).to(like.device)

    def queries(self, which: Positions, like: Tensor) -> Bool[Tensor, "batch query"]:
        """Queries of one kind: the last positions of the canvas, or all of them."""
        return self.keys(which, like)[:, -self.sight.count :]


class LayerProbe(Measurement):
    """A probe that reduces each layer by itself.

    A subclass names its `points` (hook points inside a block) and writes `measure`, which gets their tensors as soon as
    the last of them has fired. Nothing else is kept. Positions that were not measured are nan.

    The pattern comes in blocks of queries. `gather` says what is kept of a block, and `gathered` what becomes of all
    blocks, which `measure` then gets in place of the pattern: as they stand, the pattern itself.
    """

    points: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def measure(self, layer: Layer, *tensors: Tensor) -> Float[Tensor, "batch ..."]:
        """The dims after "layer", of all heads; those in scope are then taken out."""

    def points_of(self, model: Any) -> tuple[str, ...]:
        """The hook points, where they depend on the model."""
        return self.points

    def gather(self, kept: list[Any], pattern: Tensor, layer: Layer, block: slice) -> None:
        """Add to `kept` what is wanted of a block of queries, [batch, head, query, key]."""
        kept.append(pattern)

    def gathered(self, kept: list[Any]) -> Tensor:
        """What became of all blocks: the parts side by side, along their queries."""
        return torch.cat(kept, 2) if len(kept) > 1 else kept[0]

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """Hooks on the layers in scope."""
        layers = chosen(self.where.layers, int(model.cfg.n_layers), "layer")
        seen |= {"values": {}, "broken": {}, "step": 0 if canvas is None else canvas.step}
        if "head" in self.dims:
            seen["heads"] = chosen(self.where.heads, int(model.cfg.n_heads), "head")
        points = self.points_of(model)
        return [hook for index in layers for hook in self._of_layer(model, index, points, canvas, seen)]

    def _of_layer(
        self, model: Any, index: int, points: tuple[str, ...], canvas: Canvas | None, seen: dict[Any, Any]
    ) -> list[Hook]:
        arrived: dict[str, Tensor] = {}
        kept: list[Any] = []

        def arrive(point: str, tensor: Tensor, layer: Layer) -> None:
            arrived[point] = tensor
            if len(arrived) == len(points):
                values = self.measure(layer, *map(arrived.pop, points))
                if self.where.heads is not None:
                    heads = torch.tensor(seen["heads"], device=values.device)
                    values = values.index_select(self.dims.index("head"), heads)
                seen["values"][index] = values

        def layer_of(tensor: Tensor, hook: Any) -> Layer:
            known = known_canvas(canvas)
            sight = sight_of(model, hook, tensor, known)
            return Layer(model, index, canvas_of(known, sight, len(tensor)), sight, seen)

        def on_pattern(pattern: Tensor, *, hook: Any) -> None:
            with torch.no_grad():
                layer, block = layer_of(pattern, hook), block_of(hook, pattern)
                if block.start == 0:
                    kept.clear()
                self.gather(kept, pattern.detach(), layer, block)
                if block.stop == layer.sight.count:
                    whole = self.gathered(kept)
                    kept.clear()
                    seen["broken"][index] = whole.sum()
                    arrive(PATTERN, whole, layer)

        def on(point: str, tensor: Tensor, *, hook: Any) -> None:
            with torch.no_grad():
                positions = tensor[(..., *[0] * (tensor.ndim - 2))]  # `sight_of` counts the last dim
                arrive(point, tensor.detach(), layer_of(positions, hook))

        return [
            (f"blocks.{index}.{point}", watching(on_pattern) if point == PATTERN else partial(on, point))
            for point in points
        ]

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        """The layers and heads that were measured."""
        values = seen.get("values", {})
        coords: dict[str, list[Any]] = {"layer": sorted(values)}
        if "heads" in seen:
            coords["head"] = list(seen["heads"])
        if "kv_head" in self.dims and values:
            heads = next(iter(values.values())).shape[self.dims.index("kv_head")]
            coords["kv_head"] = list(range(heads))
        return coords

    def values(self, seen: dict[Any, Any]) -> Float[Tensor, "batch layer ..."]:
        """What a forward showed, batch first, then `dims`.

        Raises:
            NotFinite: the attention that was reduced held a nan; the message names layer and step.
            HookNeverFired: no forward was run with the hooks that were given this `seen`.
        """
        by_layer = seen.get("values", {})
        if not by_layer:
            raise HookNeverFired(f"{self!r} has measured nothing; run a forward with its hooks first")
        for layer, total in sorted(seen["broken"].items()):
            if bool(total.isnan()):  # a record's nan means "there is no such key", so no number may turn into one
                raise NotFinite(
                    f"the pattern of layer {layer} at step {seen['step']} holds nan; an edit that leaves a row without "
                    "a key, or a dtype that overflows, makes one"
                )
        device = next(iter(by_layer.values())).device
        return torch.stack([by_layer[layer].to(device) for layer in sorted(by_layer)], 1)


class ReceivedProbe(LayerProbe):
    """A probe that is made from received attention: `measure` gets it as [set, batch, head, key]."""

    points = (PATTERN,)

    @abstractmethod
    def whose(self, model: Any) -> tuple[Positions, ...]:
        """The sets of queries whose attention counts."""

    def of_new(self, model: Any) -> bool:
        """Whether all sets are of new queries, and nothing but the pattern is asked for."""
        return self.points_of(model) == (PATTERN,) and only_new(model, self.whose(model))

    def gather(self, kept: list[Any], pattern: Tensor, layer: Layer, block: slice) -> None:
        """Add up what the keys receive from each set."""
        sets = self.whose(layer.model)
        kept.extend(Received() for _ in range(len(sets) - len(kept)))
        for received, which in zip(kept, sets, strict=True):
            received.add(pattern, layer.queries(which, pattern)[:, None, block])

    def gathered(self, kept: list[Any]) -> Tensor:
        """The sums [set, batch, head, key]."""
        return torch.stack([received.total for received in kept])


def only(values: Float[Tensor, "batch *dims pos"], keep: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch *dims pos"]:
    """The values at the positions to keep, nan elsewhere."""
    keep = keep.to(values.device).view(len(keep), *[1] * (values.ndim - 2), -1)
    return values.masked_fill(~keep, float("nan"))


def norms(
    vectors: Float[Tensor, "batch pos head d_head"], keep: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch head pos"]:
    """L2 norm of each head's vector at every position to keep, nan elsewhere."""
    return only(rearrange(vectors.float().norm(dim=-1), "batch pos head -> batch head pos"), keep)


def to_query_heads(shared: Float[Tensor, "batch pos head *d"], heads: int) -> Float[Tensor, "batch pos heads *d"]:
    """What each of `heads` query heads uses of the keys or values that groups of them share."""
    return repeat(shared, "batch pos head ... -> batch pos (head group) ...", group=heads // shared.shape[2])
