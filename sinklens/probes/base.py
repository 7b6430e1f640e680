"""What the probes share: one reduction per layer, from one or more hook points of its block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.errors import BrokenPattern, HookNeverFired
from sinklens.hooks import Canvas, Hook, Where, chosen, nothing, plain_canvas, rows_of, rowwise

Score = Literal["token", "probability", "entropy"]
SCORES: dict[str, tuple[str, str]] = {
    "token": ("id", "id of the likeliest token"),
    "probability": ("probability", "probability of the likeliest token"),
    "entropy": ("nats", "entropy of the predicted token"),
}


class LayerProbe:
    """A probe that reduces each layer by itself.

    A subclass names its `points` (hook points inside a block) and writes `_measure`, which gets their tensors as
    soon as the last of them has fired. Nothing else is kept. Positions that were not measured are nan.

    One that looks at the pattern query by query also writes `_reduce`, which gets a block of rows; `_measure` then gets
    what became of all blocks (added up, or side by side if `join` is True) in place of the pattern, and the whole
    pattern need not be formed.

    Args:
        where: The scope.
    """

    name: str
    dims: tuple[str, ...]
    unit: str
    points: tuple[str, ...]
    join = False

    def __init__(self, where: Where | None = None) -> None:
        self.where = where or Where()
        self._by_layer: dict[int, Tensor] = {}
        self._broken: dict[int, Tensor] = {}
        self._step = 0

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on the layers in scope; what the last forward measured is forgotten."""
        self._by_layer, self._broken = {}, {}
        self._step = canvas.step if canvas is not None else 0
        points = self._points(model)
        layers = chosen(self.where.layers, int(model.cfg.n_layers), "layer")
        return [hook for layer in layers for hook in self._layer_hooks(model, layer, points, canvas)]

    def _points(self, model: Any) -> tuple[str, ...]:
        return self.points

    def _layer_hooks(self, model: Any, layer: int, points: Sequence[str], canvas: Canvas | None) -> list[Hook]:
        arrived: dict[str, Tensor] = {}
        parts: list[Tensor] = []

        def at(point: str) -> Callable[..., None]:
            def look(tensor: Tensor, *, hook: Any) -> None:
                with torch.no_grad():
                    if point == "attn.hook_pattern":
                        whole = collect(tensor.detach(), rows_of(hook, tensor))
                        if whole is None:
                            return
                        arrived[point] = whole
                    else:
                        arrived[point] = tensor.detach()
                    if len(arrived) == len(points):
                        self._by_layer[layer] = self._measure(model, layer, canvas, *map(arrived.pop, points))

            return rowwise(look, type(self)._reduce is not LayerProbe._reduce, look=nothing)

        def collect(pattern: Tensor, rows: slice) -> Tensor | None:
            """What became of all rows, once the last block is there."""
            full = seen(canvas, len(pattern), pattern.shape[-1], pattern.device)
            part = self._reduce(pattern, full, rows)
            total = part.sum()
            self._broken[layer] = total + self._broken[layer] if layer in self._broken else total
            if self.join or not parts:
                parts.append(part)
            else:
                parts[0] += part
            if rows.stop < pattern.shape[-1]:
                return None
            done = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
            parts.clear()
            return done

        return [(f"blocks.{layer}.{point}", at(point)) for point in points]

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        """What to keep of some rows of the pattern [batch, head, row, key]."""
        return pattern

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        raise NotImplementedError

    def coords(self) -> dict[str, list[int]]:
        """The layers that were measured, and the key heads where there are any."""
        coords = {"layer": sorted(self._by_layer)}
        if "kv_head" in self.dims and self._by_layer:
            heads = next(iter(self._by_layer.values())).shape[self.dims.index("kv_head")]
            coords["kv_head"] = list(range(heads))
        return coords

    def values(self) -> Float[Tensor, "batch layer ..."]:
        """What the last forward measured, batch first, then `dims`.

        Raises:
            BrokenPattern: the attention that was reduced held a nan; the message names layer and step.
        """
        refuse_nan(self._broken, self._step)
        if not self._by_layer:
            raise HookNeverFired(f"{self!r} has measured nothing; run a forward with its fwd_hooks first")
        device = next(iter(self._by_layer.values())).device
        return torch.stack([self._by_layer[layer].to(device) for layer in sorted(self._by_layer)], 1)

    def _arguments(self) -> list[str]:
        """Arguments that are not the default, as text."""
        return []

    def __repr__(self) -> str:
        return label(self, self._arguments())


def refuse_nan(broken: Mapping[int, Tensor], step: int) -> None:
    """Stop at a pattern with nan: a record's nan means "there is no such key", so no number may turn into one.

    Args:
        broken: Per layer, a sum that is nan if its pattern held one (on the device until here, where it is read once).
        step: Step of the forward.

    Raises:
        BrokenPattern: naming the layer and the step.
    """
    for layer in sorted(broken):
        if bool(broken[layer].isnan()):
            raise BrokenPattern(
                f"the pattern of layer {layer} at step {step} holds nan; an edit that leaves a row without a key, or a "
                "dtype that overflows, makes one"
            )


def label(probe: Any, arguments: Sequence[str]) -> str:
    """A short repr: the class and the arguments that are not the default."""
    scope = [] if probe.where == Where() else [f"where={probe.where!r}"]
    return f"{type(probe).__name__}({', '.join([*arguments, *scope])})"


def seen(canvas: Canvas | None, batch: int, positions: int, device: torch.device) -> Canvas:
    """The canvas, or a plain one: every position real and committed."""
    return canvas or plain_canvas((batch, positions), device)


def only(values: Float[Tensor, "batch *dims pos"], keep: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch *dims pos"]:
    """The values at the positions to keep, nan elsewhere."""
    keep = keep.to(values.device).view(len(keep), *[1] * (values.ndim - 2), -1)
    return values.masked_fill(~keep, float("nan"))


def norms(vectors: Float[Tensor, "batch pos head d_head"], canvas: Canvas | None) -> Float[Tensor, "batch head pos"]:
    """L2 norm of each head's vector at every real position, nan elsewhere."""
    valid = seen(canvas, vectors.shape[0], vectors.shape[1], vectors.device).valid
    return only(vectors.float().norm(dim=-1).transpose(1, 2), valid)


def score(logits: Float[Tensor, "row vocab"], what: Score) -> Float[Tensor, " row"]:
    """One number per row of logits: see SCORES. Token ids are floats, exact up to 2**24."""
    logits = logits.float()
    if what == "token":
        return logits.argmax(-1).float()
    if what == "probability":
        return (logits.amax(-1) - logits.logsumexp(-1)).exp()
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def score_positions(
    states: Float[Tensor, "batch pos d"],
    to_logits: Callable[[Tensor], Tensor],
    what: Score,
    canvas: Canvas,
    where: Where,
    shift: bool,
    chunk: int,
) -> Float[Tensor, "batch pos"]:
    """Score the prediction for each position in scope, `chunk` positions at a time; nan elsewhere.

    Args:
        states: What the predictions are made from.
        to_logits: Rows of `states` -> rows of logits.
        what: Which score.
        canvas: Which positions are real.
        where: Its `queries` are the positions to score.
        shift: The prediction for a position sits one to the left (Dream).
        chunk: Positions whose logits are held at once.
    """
    wanted = canvas.where(where.queries)
    rows, positions = wanted.nonzero(as_tuple=True)
    sources = prediction_sources(canvas.valid, shift)[rows, positions]
    rows, sources = rows.to(states.device), sources.to(states.device)
    parts = [
        score(to_logits(states[rows[start : start + chunk], sources[start : start + chunk]]), what).to(states.device)
        for start in range(0, len(rows), chunk)
    ]
    out = torch.full(states.shape[:2], float("nan"), device=states.device)
    if parts:
        out[rows, positions.to(states.device)] = torch.cat(parts)
    return out


def prediction_sources(valid: Bool[Tensor, "batch pos"], shift: bool) -> Int[Tensor, "batch pos"]:
    """Where the prediction for each position sits: there, or one to the left (the row's first: there)."""
    position = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    if not shift:
        return position
    has_left = torch.cat([torch.zeros_like(valid[:, :1]), valid[:, :-1]], 1)
    return position - has_left.long()


def shifted(model: Any) -> bool:
    """Whether the model's family predicts position i at i - 1; a bare bridge has no family and counts as not."""
    return bool(getattr(getattr(model, "family", None), "shift", False))
