"""Selectors for controls: keys that are no sinks, and match those of another selector in something."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.noise import noise
from sinklens.interventions.selectors.base import Evidence, Loop, Selector, set_field
from sinklens.sinks import Positions, Sight, SinkRule, largest
from sinklens.sinks.tokens import CLASSES, token_class
from sinklens.values.kinds import Count, Seed


@dataclass(frozen=True, repr=False)
class Matched(Selector):
    """Base: chooses keys in place of those that another selector finds, per row, layer and head.

    Keys that the other selector finds, and keys that the standard rule (epsilon 3) calls sinks at this step, are not
    chosen. Where too few are left, fewer are chosen (the edit's counts show how many in all).

    Args:
        of: The selector to be matched.
        seed: For the draw.
    """

    of: Selector
    seed: Seed = 0
    loop: Loop = field(init=False, compare=False)

    def __post_init__(self) -> None:
        set_field(self, "loop", self.of.loop)

    @property
    def looks_back(self) -> bool:
        """As the matched selector."""
        return self.of.looks_back

    @property
    def earliest(self) -> int:
        """As the matched selector."""
        return self.of.earliest

    def of_new(self, model: Any) -> bool:
        """As the matched selector."""
        return self.of.of_new(model)

    def counting(self, auto: Positions) -> Positions:
        """As the matched selector."""
        return self.of.counting(auto)

    def candidates(self) -> Positions:
        """As the matched selector."""
        return self.of.candidates()

    def ahead(self, layer: int, memory: Memory) -> bool:
        """No: which keys are no sinks now, only this forward's attention tells."""
        return False

    def check(self, model: Any, canvas: Canvas) -> None:
        """As the matched selector."""
        self.of.check(model, canvas)

    def hooks(self, model: Any, layer: int, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Those of the matched selector."""
        return self.of.hooks(model, layer, canvas, memory)

    def observe(self, evidence: Evidence) -> None:
        """Let the matched selector observe."""
        self.of.observe(evidence)

    def find(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """The keys instead, and the heads in which there are fewer than the matched selector's."""
        sinks, _ = self.of.find(evidence)
        received, eligible = evidence.received, evidence.eligible
        free = eligible & ~sinks & ~SinkRule()(received, eligible)
        draw = noise(self.seed, evidence.canvas, evidence.layer, received.shape[1]).to(received.device)
        chosen = self.choose(sinks, free, draw, evidence) & free
        return chosen, chosen.sum(-1) < sinks.sum(-1)

    def select(self, evidence: Evidence) -> Tensor:
        """The keys instead."""
        return self.find(evidence)[0]

    @abstractmethod
    def choose(self, sinks: Tensor, free: Tensor, draw: Tensor, evidence: Evidence) -> Tensor:
        """Keys in place of the sinks.

        Args:
            sinks: What the matched selector finds [batch, head, key].
            free: Keys that may be chosen, likewise.
            draw: Uniform random numbers, likewise.
            evidence: What the forward shows.
        """


@dataclass(frozen=True, repr=False)
class RandomKeys(Matched):
    """As many random keys; where not all keys are seen alike, each from the neighbourhood of the sink it stands for.

    In a causal model a key's place decides how many queries see it (and where windows or blocks limit attention, which
    ones), so there a key is drawn among the quarter of the free keys (at least 4) that are nearest to the sink.
    """

    def choose(self, sinks: Tensor, free: Tensor, draw: Tensor, evidence: Evidence) -> Tensor:
        """Random free keys."""
        anywhere = largest(draw, free, sinks.sum(-1, keepdim=True))
        alike = _seen_alike(evidence.canvas, evidence.sight).to(free.device)[:, None, None]  # of each row by itself
        if bool(alike.all()):
            return anywhere
        nearby = _one_by_one(sinks, free, draw, lambda place, able: _near(place, able, free))
        return torch.where(alike, anywhere, nearby)


@dataclass(frozen=True, repr=False)
class SameMass(Matched):
    """Random keys that together receive about as much attention as the sinks: equal mass, not equal number.

    Keys are drawn until their received attention would pass that of the sinks; if all free keys receive less, all are
    taken. The edit's count "mass" shows how well it went.
    """

    def choose(self, sinks: Tensor, free: Tensor, draw: Tensor, evidence: Evidence) -> Tensor:
        """Random free keys up to the sinks' mass."""
        received = evidence.received
        target = (received * sinks).sum(-1, keepdim=True)
        order = draw.masked_fill(~free, -1.0).argsort(dim=-1, descending=True, stable=True)
        reached = (received * free).gather(-1, order).cumsum(-1)
        before = torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
        # The key that crosses the target is taken if that comes nearer than stopping before it.
        take = (reached <= target) | ((before < target) & (reached - target < target - before))
        return torch.zeros_like(free).scatter(-1, order, take) & free


@dataclass(frozen=True, repr=False)
class BottomKeys(Matched):
    """As many keys, those that receive least (arXiv 2605.09313's "bottom_sink")."""

    def choose(self, sinks: Tensor, free: Tensor, draw: Tensor, evidence: Evidence) -> Tensor:
        """The free keys that receive least."""
        return largest(-evidence.received, free, sinks.sum(-1, keepdim=True))


@dataclass(frozen=True, repr=False)
class SameClass(Matched):
    """For each sink a random other key that holds a token of the same class (`sinks.tokens`) and is no sink.

    A sink whose class has no other free key gets none. Needs a tokenizer, or else compares token ids.
    """

    def choose(self, sinks: Tensor, free: Tensor, draw: Tensor, evidence: Evidence) -> Tensor:
        """Random free keys of the sinks' classes."""
        notes = evidence.memory.notes
        if "classes" not in notes:
            notes["classes"] = _class_of_ids(evidence.model).to(sinks.device)
        classes = notes["classes"].to(sinks.device)  # a model's layers may lie on several devices
        kinds = classes[evidence.canvas.tokens.to(sinks.device)][:, None].expand(sinks.shape)
        return _one_by_one(sinks, free, draw, lambda place, able: able & (kinds == kinds.gather(-1, place)))


@dataclass(frozen=True, repr=False)
class ShiftedKeys(Matched):
    """The keys that stand `by` positions to the right of the sinks (to the left where there is nothing).

    Args:
        of: The selector to be matched.
        seed: Not used.
        by: How far.

    Raises:
        ContentError: less than one position.
    """

    by: Count = 1

    def choose(self, sinks: Tensor, free: Tensor, draw: Tensor, evidence: Evidence) -> Tensor:
        """The neighbours, if they are free."""
        place = torch.arange(sinks.shape[-1], device=sinks.device)
        end = evidence.canvas.positions("last").int().argmax(-1)[:, None, None].to(sinks.device)
        stuck = sinks & (place + self.by > end)
        right = torch.nn.functional.pad(sinks & ~stuck, (self.by, 0))[..., : len(place)]
        left = torch.nn.functional.pad(stuck, (0, self.by))[..., self.by :]
        return (right | left) & free


def _seen_alike(canvas: Canvas, sight: Sight) -> Tensor:
    """Rows in which every real key is seen by as many queries, of those that may be edited, as every other [batch]."""
    among = None if canvas.edited is None else canvas.edited[:, sight.keys - sight.count :].to(sight.valid.device)
    seen = sight.seen_by(among)
    most = seen.amax(-1, keepdim=True)
    return ((seen == most) | ~sight.valid).all(-1)


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
    if getattr(model, "tokenizer", None) is None:
        return torch.arange(int(model.cfg.d_vocab))
    texts = model.tokenizer.batch_decode([[index] for index in range(int(model.cfg.d_vocab))])
    classes = torch.tensor([CLASSES.index(token_class(text)) for text in texts])
    mask = getattr(getattr(model, "ids", None), "mask", None)
    if mask is not None:
        classes[mask] = CLASSES.index("mask")
    return classes
