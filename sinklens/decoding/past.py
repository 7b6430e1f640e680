"""The past of a run: positions that nothing changes any more, whose keys and values are kept instead of computed again.

Of an autoregressive model that is all that stands to the left of its next position; of one that sees block by block,
the blocks that are finished. A forward of what is new then gives what one of the whole canvas would give, up to
rounding: earlier positions see none of the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from sinklens.decoding.plan import Plan
from sinklens.errors import PlanError
from sinklens.hooks import Canvas, Edit, Probe
from sinklens.models.driver import FORWARD, Behind, positions, running
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.outline import Sketched
from sinklens.sinks import Sight


class Past:
    """Keys and values of the first columns of a canvas.

    Attributes:
        length: How many columns.
    """

    def __init__(self, dlm: HookedDLM) -> None:
        self.dlm, self.length, self._cache = dlm, 0, DynamicCache()

    def settled(self, canvas: Canvas) -> int:
        """Columns that no active row will change, and of which none is asked what comes next.

        Args:
            canvas: What the forward of a step sees (`Sampler.seen`).
        """
        if canvas.block is None:  # of a baseline: all but the last, which says what comes next
            return canvas.tokens.shape[1] - 1
        first = canvas.block.long().argmax(-1)
        return max(0, int(first[canvas.rows].min()) - self.dlm.family.shift)  # a shifted model's row stands one before

    def finished(self, canvas: Canvas) -> Canvas:
        """What a step sees, without the block that is being decided: what a forward that stores is of."""
        if canvas.levels is None or canvas.block is None:
            return canvas.cut(canvas.valid[:, : self.settled(canvas)])
        current = torch.where(canvas.block, canvas.levels, canvas.levels.amax()).amin(-1, keepdim=True)
        valid = canvas.valid & (canvas.levels < current)
        width = int(valid[canvas.rows].any(0).nonzero().max()) + 1
        return canvas.cut(valid[:, :width])

    def forward(self, canvas: Canvas, body: Callable[[Tensor], Tensor], *, keep: int | None = None) -> Tensor:
        """What `body` gives of the tokens behind this past.

        Args:
            canvas: What the forward sees, the past included.
            body: Runs the model on tokens.
            keep: How many columns are kept from now on; as many as before when None.
        """
        seen = Sight(canvas.valid, "causal") if canvas.levels is None else Sight(canvas.valid, levels=canvas.levels)
        new = slice(self.length, canvas.tokens.shape[1])
        first = self.dlm.family.first_position(self.dlm.original_model.config)
        behind = Behind(self._cache, seen.rows(new)[:, None], positions(canvas.valid, first)[:, new])
        try:
            return running(replace(FORWARD.get(), behind=behind), lambda: body(canvas.tokens[:, new]))
        finally:
            self.length = self.length if keep is None else keep
            held = self._cache.get_seq_length()
            if held > self.length:
                self._cache.crop(self.length - held)


def has_past(dlm: Sketched) -> bool:
    """Whether anything is ever settled: of a baseline, or a model that sees block by block."""
    return dlm.is_causal or dlm.in_blocks is not None


def check_past(dlm: Sketched, plan: Plan, probes: Sequence[Probe], edits: Sequence[Edit]) -> None:
    """Raise for what needs more than a cache has, where one is asked for.

    Raises:
        PlanError: `cache=True`, or `editing="local"`, and something that needs more.
    """
    if plan.cache or plan.editing == "local":
        asked = 'editing="local"' if plan.editing == "local" else "cache=True"
        for reason in _against(dlm, plan, probes, edits):
            raise PlanError(f"{asked}: {reason}")


def past_of(dlm: HookedDLM, plan: Plan, probes: Sequence[Probe], edits: Sequence[Edit], *, whole: bool) -> Past | None:
    """The past of a run that keeps one; None of one that computes every position at every step.

    Args:
        dlm: The model.
        plan: Resolved, and checked (`check_past`). Its `cache` None keeps a past where nothing needs more than what is
            new.
        probes: Measurements.
        edits: Edits.
        whole: Whether whoever takes the steps may ask for the logits of every position.
    """
    if plan.cache or plan.editing == "local":
        return Past(dlm)
    if plan.cache is False or not has_past(dlm) or whole or dlm.hooked or any(_against(dlm, plan, probes, edits)):
        return None
    return Past(dlm)


def _against(dlm: Sketched, plan: Plan, probes: Sequence[Probe], edits: Sequence[Edit]) -> Iterator[str]:
    if not plan.new_tokens:
        yield "gaps inside a text are filled wherever they are (new_tokens=0), so nothing before them is settled"
    if any(window is not None for window in getattr(dlm, "windows", ())):  # an outline does not know
        yield f"some layers of {dlm.name} see their neighbourhood only, and its cache would forget the rest"
    for probe in probes:
        if not probe.of_new(dlm):
            yield (
                f"{probe!r} asks for positions that are settled, and a step computes only what is new; say "
                "queries='block' (of a baseline: 'last'), or cache=False"
            )
    for edit in edits:
        if plan.editing == "scratch":
            yield f"{edit!r} acts on every position from scratch, and with a cache only on what is new"
        elif not edit.of_new(dlm):
            part = next((leaf for leaf in edit.leaves() if not leaf.of_new(dlm)), edit)
            yield (
                f"{part!r} acts on more than the scores and weights of new queries, or reads the attention of others; "
                "mask:, bias:, scale: and zero: by SameStep or PreviousStep with queries='auto' do not"
            )
