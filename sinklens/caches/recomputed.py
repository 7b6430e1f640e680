"""What a cut would be if nothing were cached: every forward reads the whole text anew, without the keys that are gone.

A key that is not kept is then hidden from the context's own queries, too, so that other keys of later layers are not
what they were; and what is kept is chosen anew at every step. Published budgets are of caches; many an emulation
computes this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.caches.cut import Cut, Layer, graded, scores_of
from sinklens.errors import ScopeError
from sinklens.hooks import Hook, block_of, by_query


def answers_recomputed(
    dlm: Any,
    context: Int[Tensor, " pos"],
    question: Int[Tensor, " asked"],
    answer: Int[Tensor, " answer"],
    cuts: Sequence[Cut],
) -> tuple[Bool[Tensor, " row"], Float[Tensor, " row"]]:
    """Whether a model would answer so where the context's other keys are seen by nobody, a row for each cut.

    What is kept of a context does not depend on what follows it, so one forward says what every step would. A query
    that would see no key at all sees itself.

    Args:
        dlm: An autoregressive model.
        context: Whose keys are cut.
        question: What follows it; all of its keys stay.
        answer: What is to follow.
        cuts: By norm, recency or at random, all skipping the same layers.

    Returns:
        As `Cache.answers`.

    Raises:
        ScopeError: a cut by attention, which is known only when the layer is done.
    """
    if wrong := [cut.by for cut in cuts if cut.by.startswith("attended")]:
        raise ScopeError(
            f"by={wrong[0]!r} needs attention that a cut changes; recomputed are norms, recency and random"
        )
    text = torch.cat([context, question, answer[:-1]]).expand(len(cuts), -1)
    hooks = [hook for layer in range(dlm.n_layers) for hook in _hooks(layer, cuts, len(context))]
    with torch.no_grad():
        logits = dlm.run_with_hooks(text.to(dlm.device), fwd_hooks=hooks, logits_to_keep=len(answer))
    return graded(logits, answer)


def _hooks(index: int, cuts: Sequence[Cut], context: int) -> list[Hook]:
    """Those of a layer: the keys say which of them are gone, and no score of these is left."""
    if index in cuts[0].skip_layers:
        return []
    gone: list[Tensor] = []

    def choose(keys: Tensor, *, hook: Any) -> None:
        heads = keys.detach()[:, :context].transpose(1, 2)
        places = torch.arange(context, device=keys.device).expand(*heads.shape[:2], -1)
        for row, cut in enumerate(cuts):
            one = slice(row, row + 1)
            layer = Layer(heads[one], heads[one], places[one], heads[one].norm(dim=-1))
            scores = scores_of(layer, cut, index, context)
            kept = scores.topk(cut.number(context), dim=-1).indices
            gone.append(torch.ones_like(scores, dtype=torch.bool).scatter(-1, kept, False))

    def hide(scores: Tensor, *, hook: Any) -> Tensor:
        every = torch.stack(gone).to(scores.device)
        every = every.repeat_interleave(scores.shape[1] // every.shape[1], 1)
        hidden = torch.nn.functional.pad(every, (0, scores.shape[-1] - context))[:, :, None]
        block = block_of(hook, scores)
        itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)[block]
        left = scores.masked_fill(hidden, float("-inf"))
        alone = left.amax(-1, keepdim=True) == float("-inf")
        return torch.where(alone & itself, scores, left)

    return [(f"blocks.{index}.attn.hook_rot_k", choose), (f"blocks.{index}.attn.hook_attn_scores", by_query(hide))]
