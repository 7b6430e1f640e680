"""Many patches in one forward: every row of a batch is the same canvas, with another place patched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.decoding.finite import finite
from sinklens.decoding.loop import steps_from
from sinklens.decoding.prompts import Start
from sinklens.decoding.step import Moment, Step
from sinklens.errors import PatchError
from sinklens.hooks import Canvas, Edit, Hook, Memory, Scope, with_hooks
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.patching.patches import SITES, Row

Taken = dict[int, Tensor]  # what a run has at a site, by layer [pos, (head,) ...]


def point(dlm: HookedDLM, site: str, layer: int) -> str:
    """The hook point of a site in a layer; the residual stream has one more, behind the last layer."""
    if layer == dlm.n_layers:
        return f"blocks.{layer - 1}.hook_out"
    return f"blocks.{layer}.{SITES[site].point}"


@dataclass(frozen=True, repr=False, eq=False)
class RowPatch(Edit):
    """Each row but the first gets a patch of its own at one site of one layer; the first stays as it is.

    A forward of one row becomes one of all rows here: what comes before is the same in all of them, and computed once.

    Args:
        site: The name of the site.
        layer: The layer.
        size: Rows of the batch, one more than patches.
        heads: Of each patch its head; None if each is of all heads.
        places: Of each patch its position; None if each is of all positions.
        taken: What the other run has there [pos, (head,) ...].
        where: The step; every one when nothing is said.
    """

    site: str
    layer: int
    size: int
    heads: Tensor | None
    places: Tensor | None
    taken: Tensor
    where: Scope = Scope()

    @classmethod
    def of(cls, site: str, layer: int, rows: Sequence[Row], taken: Tensor, where: Scope) -> RowPatch:
        """One for patches as they are named: either all name a head or none does; likewise positions."""
        heads, places = (
            None if named[0] is None else torch.tensor(named, device=taken.device) for named in zip(*rows, strict=True)
        )
        return cls(site, layer, len(rows) + 1, heads, places, taken, where)

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The hook that patches, behind one that makes a batch of the layer's input if it must be one by then."""
        row, head, place = torch.arange(1, self.size, device=self.taken.device), self.heads, self.places

        def widen(tensor: Tensor, *, hook: Any) -> Tensor | None:
            return None if len(tensor) == self.size else tensor.expand(self.size, *tensor.shape[1:])

        def put(tensor: Tensor, *, hook: Any) -> Tensor:
            out = tensor.expand(self.size, *tensor.shape[1:]).clone()
            view = by_position(self.site, out)
            if place is None:
                view[row, :, head] = self.taken[:, head].transpose(0, 1)
            elif head is None:
                view[row, place] = self.taken[place]
            else:
                view[row, place, head] = self.taken[place, head]
            return out

        before = [(f"blocks.{self.layer}.hook_in", widen)] if SITES[self.site].inside else []
        return [*before, (point(model, self.site, self.layer), put)]

    def __repr__(self) -> str:
        return f"{self.size - 1} patches of {self.site}, layer {self.layer}"


def by_position(site: str, tensor: Tensor) -> Tensor:
    """What a site's hook point carries as [batch, pos, (head,) ...]; the same memory."""
    return tensor.transpose(1, 2) if site == "pattern" else tensor


def take(dlm: HookedDLM, canvas: Canvas, site: str, layers: Sequence[int]) -> Taken:
    """What a forward of one canvas has at a site, by layer."""
    taken: Taken = {}

    def keep(layer: int) -> Any:
        def hook_function(tensor: Tensor, *, hook: Any) -> None:
            taken[layer] = by_position(site, tensor)[0].detach().clone()

        return hook_function

    logits_of(dlm, canvas, [(point(dlm, site, layer), keep(layer)) for layer in layers], f"{site} of a run")
    return taken


def logits_of(
    dlm: HookedDLM, canvas: Canvas, hooks: Sequence[Hook] = (), label: str = "patches", rows: int = 1
) -> Float[Tensor, "batch scored vocab"]:
    """Logits of one canvas without padding, under hooks that make `rows` of it. Row i scores the token at position i.

    Raises:
        NotFinite: logits that are no numbers.
        HookNeverFired: a hook that the forward did not call.
    """

    def hooked() -> Tensor:
        parts = [(label, hooks)]
        return dlm.wiring.held(lambda: with_hooks(dlm, parts, {}, lambda: dlm(canvas.tokens, levels=canvas.levels)))

    return dlm.by_position(finite(dlm, repeated(canvas, rows), hooked, hooks))


def repeated(canvas: Canvas, rows: int) -> Canvas:
    """A canvas of one row as one of several; the same memory."""
    parts = {name: getattr(canvas, name).expand(rows, -1) for name in ("tokens", "valid", "masked", "prompt")}
    active = None if canvas.active is None else canvas.active.expand(rows)
    parts |= {
        name: None if getattr(canvas, name) is None else getattr(canvas, name).expand(rows, -1)
        for name in ("block", "levels", "edited")
    }
    return replace(canvas, **parts, seeds=canvas.seeds * rows, active=active)


def onward(
    dlm: HookedDLM, start: Start, moment: Moment, edit: RowPatch, decided: Tensor, ever: Tensor
) -> tuple[Tensor, Canvas]:
    """The run goes on from a moment, the step that comes patched, those behind it not.

    Args:
        dlm: The model.
        start: The start of as many rows as the edit has.
        moment: Before the patched step, of one row.
        edit: The patches.
        decided: By which logits the run had decided each position until then [1, pos, vocab].
        ever: Positions that the unpatched run ever decides [pos]; others (behind a baseline's EOS) stay 0.

    Returns:
        The logits by which each position was decided in each row, and the last canvas.

    Raises:
        PatchError: a position is never decided.
    """
    found = decided.expand(edit.size, -1, -1).clone()
    canvas = moment.canvas
    for step in steps_from(dlm, start, interventions=[edit], since=moment.repeated(edit.size)):
        scored = slice(step.first, step.first + step.logits.shape[1])
        now = step.committed[:, scored, None] & ever[scored, None]
        found[:, scored] = torch.where(now, step.logits, found[:, scored])
        canvas = step.after
    if bool(canvas.masked.any()):
        raise PatchError(
            f"a run that was patched at step {moment.canvas.step} leaves positions masked, which nothing decides; say "
            "outcome='step', or allow_mask=False in the plan"
        )
    return found, canvas


def commits_of(step: Step) -> tuple[Tensor, Tensor]:
    """The positions that a step of one row commits [pos], and the logits by which [n, vocab]."""
    where, first, scored = step.committed[0].clone(), step.first, step.logits.shape[1]
    where[:first] = where[first + scored :] = False
    return where, step.logits[0, where[first : first + scored]]
