"""Controls: the same edit, done to keys that are no sinks. Each matches another detector in something."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
import xarray as xr
from torch import Tensor

from sinklens.hooks import Canvas, Hook, is_causal
from sinklens.interventions.edits.base import SinkEdit
from sinklens.interventions.edits.budget import KeepKeys
from sinklens.interventions.edits.weights import NoOp
from sinklens.interventions.noise import noise
from sinklens.interventions.selectors.attention import Detector
from sinklens.interventions.selectors.places import FromRecord
from sinklens.sinks import SinkRule, largest


class Matched(Detector):
    """Base: chooses keys in place of those that another detector selects, per row, layer and head.

    Keys that the other detector selects, and keys that the standard rule (epsilon 3) calls sinks at this step, are
    not chosen. Where too few are left, fewer are chosen (the edit's counts show how many in all).

    Args:
        of: The detector to be matched.
        seed: For the draw.
    """

    def __init__(self, of: Detector, seed: int = 0) -> None:
        super().__init__(of.rule, queries=of.queries, fewer="take", loop=of.loop)
        self.of, self.seed, self.needs_previous = of.claim(), seed, of.needs_previous

    def ahead(self, canvas: Canvas | None) -> bool:
        """No: which keys are no sinks now, only this forward's attention tells."""
        return False

    def reset(self) -> None:
        """Forget what earlier steps showed."""
        super().reset()
        if hasattr(self, "of"):
            self.of.reset()

    def own(self) -> Self:
        """A copy with a memory of its own, that of the matched detector included."""
        other = copy.copy(self)
        other.of = self.of.own()
        other.reset()
        return other

    def check(self, model: Any, canvas: Canvas) -> None:
        """As the matched detector."""
        self.of.check(model, canvas)

    def query_set(self, *, causal: bool) -> Any:
        """As the matched detector."""
        return self.of.query_set(causal=causal)

    def hooks(self, model: Any, layer: int, canvas: Canvas | None) -> list[Hook]:
        """Those of the matched detector."""
        self.causal = is_causal(model)
        return self.of.hooks(model, layer, canvas)

    def observe(self, layer: int, received: Tensor, canvas: Canvas, visible: Tensor | None = None) -> None:
        """Let the matched detector watch."""
        self.of.observe(layer, received, canvas, visible)

    def find(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The keys instead, and the heads in which there are fewer than the matched detector's."""
        sinks, _ = self.of.find(layer, received, eligible, canvas, visible)
        free = eligible & ~sinks & ~SinkRule()(received, eligible)
        draw = noise(self.seed, canvas, layer, received.shape[1]).to(received.device)
        chosen = self.choose(sinks, free, received, draw, canvas) & free
        return chosen, chosen.sum(-1) < sinks.sum(-1)

    def select(
        self, layer: int, received: Tensor, eligible: Tensor, canvas: Canvas, visible: Tensor | None = None
    ) -> Tensor:
        """The keys instead."""
        return self.find(layer, received, eligible, canvas, visible)[0]

    def choose(self, sinks: Tensor, free: Tensor, received: Tensor, draw: Tensor, canvas: Canvas) -> Tensor:
        """Keys in place of the sinks.

        Args:
            sinks: What the matched detector selects [batch, head, key].
            free: Keys that may be chosen.
            received: Received attention.
            draw: Uniform random numbers.
            canvas: What the forward sees.
        """
        raise NotImplementedError(f"{type(self).__name__} has no choose")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.of!r}, seed={self.seed})"


class RandomKeys(Matched):
    """As many random keys. In a causal model each comes from the neighbourhood of the sink that it stands for.

    A causal key's place decides how many queries see it, so there a key is drawn among the quarter of the free keys
    (at least 4) that are nearest to the sink.
    """

    causal = False

    def choose(self, sinks: Tensor, free: Tensor, received: Tensor, draw: Tensor, canvas: Canvas) -> Tensor:
        """Random free keys."""
        if not self.causal:
            return largest(draw, free, sinks.sum(-1, keepdim=True))
        return _one_by_one(sinks, free, draw, lambda place, open_: _near(place, open_, free))


class SameMass(Matched):
    """Random keys that together receive about as much attention as the sinks: equal mass, not equal number.

    Keys are drawn until their received attention would pass that of the sinks; if all free keys receive less, all are
    taken. The edit's count "mass" shows how well it went.
    """

    def choose(self, sinks: Tensor, free: Tensor, received: Tensor, draw: Tensor, canvas: Canvas) -> Tensor:
        """Random free keys up to the sinks' mass."""
        target = (received * sinks).sum(-1, keepdim=True)
        order = draw.masked_fill(~free, -1.0).argsort(dim=-1, descending=True, stable=True)
        reached = (received * free).gather(-1, order).cumsum(-1)
        before = torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
        # The key that crosses the target is taken if that comes nearer than stopping before it.
        take = (reached <= target) | ((before < target) & (reached - target < target - before))
        return torch.zeros_like(free).scatter(-1, order, take) & free


class BottomKeys(Matched):
    """As many keys, those that receive least (arXiv 2605.09313's "bottom_sink")."""

    def choose(self, sinks: Tensor, free: Tensor, received: Tensor, draw: Tensor, canvas: Canvas) -> Tensor:
        """The free keys that receive least."""
        return largest(-received, free, sinks.sum(-1, keepdim=True))


class SameClass(Matched):
    """For each sink a random other key that holds a token of the same class (`tokenclasses`) and is no sink.

    A sink whose class has no other free key gets none. Needs a tokenizer, or else compares token ids.
    """

    def hooks(self, model: Any, layer: int, canvas: Canvas | None) -> list[Hook]:
        """Those of the matched detector; finds the class of every token id once."""
        if getattr(self, "_model", None) is not model:
            self._model, self._classes = model, _class_of_ids(model)
        return super().hooks(model, layer, canvas)

    def choose(self, sinks: Tensor, free: Tensor, received: Tensor, draw: Tensor, canvas: Canvas) -> Tensor:
        """Random free keys of the sinks' classes."""
        kinds = self._classes.to(sinks.device)[canvas.tokens.to(sinks.device)][:, None].expand(sinks.shape)
        return _one_by_one(sinks, free, draw, lambda place, open_: open_ & (kinds == kinds.gather(-1, place)))


class ShiftedKeys(Matched):
    """The keys that stand `by` positions to the right of the sinks (to the left where there is nothing).

    Args:
        of: The detector to be matched.
        seed: Not used.
        by: How far.
    """

    def __init__(self, of: Detector, seed: int = 0, by: int = 1) -> None:
        super().__init__(of, seed)
        if by < 1:
            raise ValueError(f"by={by} must be at least 1")
        self.by = by

    def choose(self, sinks: Tensor, free: Tensor, received: Tensor, draw: Tensor, canvas: Canvas) -> Tensor:
        """The neighbours, if they are free."""
        place = torch.arange(sinks.shape[-1], device=sinks.device)
        end = canvas.where("last").int().argmax(-1)[:, None, None].to(sinks.device)
        stuck = sinks & (place + self.by > end)
        right = torch.nn.functional.pad(sinks & ~stuck, (self.by, 0))[..., : len(place)]
        left = torch.nn.functional.pad(stuck, (0, self.by))[..., self.by :]
        return (right | left) & free

    def __repr__(self) -> str:
        return f"ShiftedKeys({self.of!r}, by={self.by})"


def _one_by_one(sinks: Tensor, free: Tensor, draw: Tensor, candidates: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """For one sink after the other, the candidate with the largest draw; nobody is taken twice."""
    taken, rank = torch.zeros_like(sinks), sinks.cumsum(-1) * sinks
    for number in range(1, int(rank.max()) + 1):
        here = rank == number
        place = here.int().argmax(-1, keepdim=True)
        able = candidates(place, free & ~taken) & here.any(-1, keepdim=True)
        best = draw.masked_fill(~able, -1.0).argmax(-1, keepdim=True)
        taken = taken | (torch.zeros_like(taken).scatter(-1, best, True) & able)
    return taken


def _near(place: Tensor, able: Tensor, free: Tensor) -> Tensor:
    """The free keys nearest to a place: a quarter of all free ones, at least 4."""
    keys = able.shape[-1]
    distance = (torch.arange(keys, device=able.device) - place).abs().float()
    wanted = (free.sum(-1, keepdim=True) / 4).ceil().clamp(min=4)
    return largest(-distance, able, wanted)


def _class_of_ids(model: Any) -> Tensor:
    from sinklens.sinks.tokens import CLASSES, token_class

    if getattr(model, "tokenizer", None) is None:
        return torch.arange(int(model.cfg.d_vocab))
    texts = model.tokenizer.batch_decode([[index] for index in range(int(model.cfg.d_vocab))])
    classes = torch.tensor([CLASSES.index(token_class(text)) for text in texts])
    mask = getattr(getattr(model, "ids", None), "mask", None)
    if mask is not None:
        classes[mask] = CLASSES.index("mask")
    return classes


CONTROLS: dict[str, type[Matched]] = {
    "random": RandomKeys,
    "same_mass": SameMass,
    "bottom": BottomKeys,
    "same_class": SameClass,
    "shifted": ShiftedKeys,
}


def control(edit: Any, name: str = "random", seed: int = 0) -> Any:
    """The same edit in the same scope, done to other keys: "random", "same_mass", "bottom", "same_class", "shifted".

    "noop" finds the sinks and does nothing. KeepKeys has the control "random": as many keys, kept at random.

    Raises:
        ValueError: an unknown control, or an edit without keys to be matched.
    """
    known = ", ".join((*CONTROLS, "noop"))
    if name not in (*CONTROLS, "noop"):
        raise ValueError(f"control {name!r} is unknown; the controls are {known}")
    if isinstance(edit, KeepKeys):
        if name != "random":
            raise ValueError(f"{edit!r} has the control 'random' only: as many keys, kept at random")
        return KeepKeys(edit.budget, by="random", where=edit.where, seed=seed)
    if not isinstance(edit, SinkEdit):
        raise ValueError(
            f"{edit!r} acts on no detected keys, so no control can match it; say controls=None, or name edits to "
            "compare it with as conditions"
        )
    if name == "noop":
        return NoOp(edit.detector, edit.where)
    other = edit.own()
    other.detector = CONTROLS[name](edit.detector, seed)
    return other


def other_prompt(record: xr.Dataset, shift: int = 1) -> Callable[[SinkEdit], SinkEdit]:
    """Make a control out of a record: the sinks of another prompt, for `controls={"other prompt": ...}` of `ablate`.

    Each prompt gets, at the same step, layer and head, the sinks that the record shows for the prompt `shift` rows
    further, by the edit's own rule. What prompts share (a sink on BOS, say) is touched here, too.

    Args:
        record: Of the same prompts, with `received`.
        shift: How many rows further.
    """

    def made(edit: SinkEdit) -> SinkEdit:
        other = edit.own()
        other.detector = FromRecord(record, edit.detector.rule, shift=shift)
        return other

    return made
