"""What a patching sweep will take, before it is run: patches, forwards, time, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from sinklens.decoding.plan import Plan
from sinklens.hooks import Scope, chosen
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.norms import keep_watched
from sinklens.models.prompts import Given
from sinklens.patching.forwards import RowPatch, logits_of, take
from sinklens.patching.pairs import read_pairs
from sinklens.patching.patches import SITES, Patches
from sinklens.probes.estimate import readable
from sinklens.values.kinds import Count, reads


@dataclass(frozen=True)
class PatchEstimate:
    """What `estimate` returns.

    Attributes:
        patches: How many there are at most: positions of the answer may all be decided before the last step.
        forwards: Forwards of patched rows; with `outcome="end"` those of the steps behind each patch, too.
        seconds: How long they take, by the time of the one that was tried.
        bytes: What the largest tensors of one forward take: its logits, twice in float64, and the patterns if they
            are formed. The model's weights and its own activations come on top.
    """

    patches: int
    forwards: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return (
            f"at most {self.patches} patches in {self.forwards} forwards, about {self.seconds:.0f} s; "
            f"{readable(self.bytes)} for the largest tensors of a forward"
        )


@reads("clean", "corrupt")
def estimate(
    dlm: HookedDLM,
    clean: Given,
    corrupt: Given,
    plan: Plan | None = None,
    patches: Patches | None = None,
    *,
    batch_size: Count = 32,
) -> PatchEstimate:
    """What `patch` with the same arguments will take. Runs two forwards, of the prompts as they are at step 0.

    Raises:
        PromptError, PlanError, ScopeError: as in `patch`, before any forward.
    """
    patches, asked = patches or Patches(), read_pairs(dlm, clean, corrupt, plan or Plan(), None, 0)
    layers, count, forwards, batches = patches.at_layers(dlm), 0, 0, 0
    for each in asked:
        width, total = each.clean.canvas.tokens.shape[1], max(each.clean.limits)
        for step in chosen(patches.steps, total, "step"):
            seen = width - total + step if dlm.is_causal else width
            rows = len(patches.rows(dlm, width, seen)) * len(layers)
            several = -(-len(patches.rows(dlm, width, seen)) // batch_size) * len(layers)
            count, batches = count + rows, batches + several
            forwards += several * (total - step if patches.outcome == "end" else 1)
    canvas = asked[0].clean.canvas
    middle = layers[len(layers) // 2]
    rows = patches.rows(dlm, canvas.tokens.shape[1], canvas.tokens.shape[1])[:batch_size]
    keep_watched(dlm)
    with torch.no_grad():
        taken = take(dlm, canvas, patches.site, [middle])[middle]
        edit = RowPatch.of(patches.site, middle, rows, taken, Scope())
        began = time.perf_counter()
        logits = logits_of(dlm, canvas, edit.hooks(dlm, None, edit.memory()), rows=edit.size)
        seconds = time.perf_counter() - began
    size = edit.size * canvas.tokens.shape[1]
    largest = logits.numel() * (logits.element_size() + 16)
    largest += 2 * 4 * size * canvas.tokens.shape[1] * dlm.n_heads * (SITES[patches.site].point == "attn.hook_pattern")
    return PatchEstimate(count, forwards, seconds * forwards, largest)
