"""Store events: a finished block is read once more, clean, and this is what all later blocks see of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.decoding.blocks import Layout
from sinklens.decoding.forwards import read_once_more
from sinklens.decoding.past import Past
from sinklens.decoding.step import Stored
from sinklens.errors import PlanError
from sinklens.hooks import Canvas, Edit, Memory, Probe
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.outline import Sketched


class Stores:
    """The store events of one run.

    Args:
        dlm: The model.
        layout: Its blocks.
        probes: The run's probes.
        edits: Its edits.
        memories: Theirs.
        past: Where keys and values are kept; None if nothing is.
        forwards: Counts of forwards, added to: "store".
        fired: Firing counts, likewise.
    """

    def __init__(
        self,
        dlm: HookedDLM,
        layout: Layout,
        probes: Sequence[Probe],
        edits: Sequence[Edit],
        memories: Sequence[Memory],
        past: Past | None,
        forwards: Counter[str],
        fired: dict[str, int],
    ) -> None:
        self.dlm, self.layout, self.past = dlm, layout, past
        self.probes, self.edits, self.memories = probes, edits, memories
        self.forwards, self.fired = forwards, fired
        self.done = torch.full_like(layout.levels[:, 0], -1)
        if len(self.done) > 1 and any(leaf.where.event == "store" for edit in edits for leaf in edit.leaves()):
            raise PlanError(
                f"edits of store events, and {len(self.done)} prompts: rows finish their blocks at different steps, "
                "and what is kept must be so for all of them; give one prompt at a time"
            )

    def of(self, canvas: Canvas, rows: Bool[Tensor, " batch"]) -> tuple[Stored, ...]:
        """The event that a canvas brings; none if no block is finished that was not before.

        Args:
            canvas: The whole canvas, now.
            rows: Rows that take part: those whose text has ended go no further.
        """
        levels = self.layout.levels
        masked = canvas.masked & canvas.valid
        current = torch.where(masked, levels, levels.amax() + 1).amin(-1)
        finished = torch.where(masked.any(-1), current - 1, torch.where(canvas.valid, levels, -1).amax(-1))
        new = rows & (finished > self.done)
        if not bool(new.any()):
            return ()
        valid = canvas.valid & (levels <= finished[:, None])
        block = valid & (levels > self.done[:, None]) & new[:, None]
        width = int(valid[new].any(0).nonzero().max()) + 1
        now = replace(canvas, levels=levels, block=block, active=new).cut(valid[:, :width])
        seen = tuple({} if probe.where.event == "store" else None for probe in self.probes)
        ends = valid.long() * torch.arange(1, valid.shape[1] + 1, device=valid.device)
        keep = max(0, int(ends.amax(-1)[rows].min()) - self.dlm.family.shift)  # finished in every row that takes part
        read_once_more(self.dlm, now, self.edits, self.memories, self.probes, seen, self.fired, self.past, keep)
        self.forwards["store"] += 1
        self.done = torch.where(new, finished, self.done)
        return (Stored(now, torch.where(new, finished, -1), seen),)


def wanted(dlm: Sketched, probes: Sequence[Probe], edits: Sequence[Edit], editing: str) -> bool:
    """Whether anybody subscribes to store events.

    Raises:
        PlanError: of a model that has none, or an edit of them where nothing is stored.
    """
    parts = [*probes, *(leaf for edit in edits for leaf in edit.leaves())]
    asked = [part for part in parts if part.where.event == "store"]
    if not asked:
        return False
    if dlm.in_blocks is None:
        raise PlanError(f"{asked[0]!r} is of store events, and {dlm.name} has none: it does not see block by block")
    edit = next((part for part in asked if isinstance(part, Edit)), None)
    if edit is not None and editing != "local":
        raise PlanError(
            f"{edit!r} edits what is stored, and editing={editing!r} computes every position anew at each step, so "
            "that it would never act; say Plan(editing='local')"
        )
    return True
