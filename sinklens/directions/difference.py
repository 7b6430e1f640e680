"""Directions as differences of means: what the residual stream holds of some prompts more than of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.decoding.forwards import forward
from sinklens.decoding.prompts import left_padded, token_rows
from sinklens.directions.direction import At, Direction
from sinklens.errors import DirectionError
from sinklens.hooks import Canvas, Hook, Probe, chosen
from sinklens.hooks.scope import Selection
from sinklens.models.fingerprint import ModelId
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.norms import keep_watched
from sinklens.models.prompts import Given
from sinklens.sinks import Positions
from sinklens.values import digest
from sinklens.values.kinds import Count, Index, reads
from sinklens.version import __version__

SIDES = ("positive", "negative")
NOTHING = 1e-5  # of the residual stream's norm: a difference below this is rounding


@dataclass(frozen=True, repr=False)
class _Means(Probe):
    """Means of the residual stream, and of its norm, over a set of positions [batch, layer, d_model + 1]."""

    layers: tuple[Index, ...]
    at: At
    positions: Positions
    name: str = field(default="means", init=False)

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """One on each layer."""
        counted = (canvas or Canvas.plain(torch.ones(1, 1).bool())).positions(self.positions).double()

        def look(residual: Tensor, *, hook: Any) -> None:
            wide = residual.double()
            wide = torch.cat([wide, wide.norm(dim=-1, keepdim=True)], -1)
            share = (counted / counted.sum(-1, keepdim=True)).to(wide.device)
            seen[hook.name] = torch.einsum("bp,bpd->bd", share, wide)

        return [(f"blocks.{layer}.{self.at}", look) for layer in self.layers]

    def values(self, seen: dict[Any, Any]) -> Tensor:
        """In the order of the layers."""
        return torch.stack([seen[f"blocks.{layer}.{self.at}"].cpu() for layer in self.layers], 1)


@reads("dlm", "positive", "negative")
def difference(
    dlm: HookedDLM,
    positive: Given,
    negative: Given,
    *,
    layers: Selection = None,
    at: At = "hook_out",
    positions: Positions = "all",
    masks: Index = 0,
    chat: bool = False,
    batch_size: Count = 32,
) -> Direction:
    """The mean of the residual stream over some prompts, minus that over others, in every layer.

    Each prompt is seen in one forward, as it is: no trajectory. Of each prompt the mean over its positions is taken,
    and of these the mean over the prompts, so that long prompts count as much as short ones; pads never count. Over
    all positions a sink with a massive norm weighs by one over the length of its prompt: where the kinds differ in
    length, the direction says so ("last" and "masked" leave it out, and `agreement` shows it: near 1, or below 0).
    Source: arXiv 2512.24143 (masked diffusion models, one forward), arXiv 2312.06681 (autoregressive models).

    ```python
    warm = sl.directions.difference(dlm, ["What a lovely day!", "I love it."], ["What a dull day.", "I hate it."])
    run = sl.denoise(dlm, "The film was", plan, interventions=[sl.Steer(warm, 2.0, where=sl.Scope(layers=[12]))])
    ```

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> sl.directions.difference(dlm, ["pante dolko"], ["pante tuste"], layers=[0], positions="last").vectors.shape
        torch.Size([1, 96])

    Args:
        dlm: The model.
        positive: Prompts of one kind, in any form that `denoise` takes. They may hold mask tokens.
        negative: Prompts of the other kind.
        layers: In which layers; all when None.
        at: Before each layer ("hook_in") or after it ("hook_out"); add it there, too.
        positions: At which positions: "all", "masked" (or "response"), "committed" (or "prompt"), or "last".
        masks: Mask tokens to append to each prompt, as a response that is not written yet; diffusion models only.
        chat: Put prompts that are texts into the chat template.
        batch_size: Prompts in a forward.

    Returns:
        A direction, with the number and the hash of the prompts, and the shortest cosine between its halves
        (`made["agreement"]`: of the vectors that every second prompt gives, for each layer; near 1 where they agree,
        near 0 where prompts are too few or do not differ as said; null with fewer than two prompts of a kind).

    Raises:
        DirectionError: the same prompts on both sides, one without a position of the kind asked for, layers in which
            the two means are the same (at the input of layer 0 all masks are), or masks that cannot be appended.
        ScopeError: layers that do not exist.
        PlanError, PromptError: prompts that cannot be read, or are longer than the context.
        NotFinite: a forward whose numbers are none.
    """
    asked = chosen(layers, dlm.n_layers, "layer")
    probe = _Means(tuple(asked), at, positions)
    sides = [_rows(dlm, name, given, masks, chat) for name, given in zip(SIDES, (positive, negative), strict=True)]
    if sides[0] == sides[1]:
        raise DirectionError("positive and negative are the same prompts, so that nothing tells them apart")
    means = [_means(dlm, name, rows, probe, batch_size) for name, rows in zip(SIDES, sides, strict=True)]
    residuals, lengths = [each[..., :-1] for each in means], torch.cat(means)[..., -1].mean(0)
    vectors = residuals[0].mean(0) - residuals[1].mean(0)
    for layer, size, norm in zip(asked, vectors.norm(dim=-1).tolist(), lengths.tolist(), strict=True):
        if not size > NOTHING * norm:
            raise DirectionError(
                f"in layer {layer} ({at}, positions={positions!r}) the two means are the same up to rounding: they "
                f"differ by {size:.3g}, where the residual stream has a norm of {norm:.3g}. Name other layers or "
                "positions (before layer 0 all mask tokens are alike)"
            )
    made = {
        "by": "difference of means",
        **{name: {"prompts": len(rows), "digest": digest(rows)} for name, rows in zip(SIDES, sides, strict=True)},
        "masks": masks,
        "agreement": _agreement(*residuals),
        "dtype": str(dlm.dtype),
        "sinklens": __version__,
    }
    return Direction(vectors.float(), tuple(asked), at, tuple(lengths.tolist()), positions, ModelId.of(dlm), made)


def _rows(dlm: HookedDLM, name: str, given: Given, masks: int, chat: bool) -> list[list[int]]:
    """Prompts as token ids, with masks behind them."""
    rows = token_rows(dlm, given, chat=chat)
    if masks and dlm.is_causal:
        raise DirectionError(f"masks={masks}: {dlm.name} is autoregressive and sees no masks; leave masks out")
    if masks and dlm.closing and any(row[-1:] == dlm.closing for row in rows):
        raise DirectionError(f"masks={masks}: nothing follows the end of a text of {dlm.name}; put masks into prompts")
    rows = [[*row, *[dlm.ids.mask or 0] * masks] for row in rows]
    for index, row in enumerate(rows):
        if not 0 < len(row) <= dlm.n_ctx:
            raise DirectionError(f"{name}[{index}] has {len(row)} tokens; {dlm.name} takes 1 to {dlm.n_ctx}")
    return rows


@torch.no_grad()
def _means(
    dlm: HookedDLM, name: str, rows: Sequence[Sequence[int]], probe: _Means, size: int
) -> Float[Tensor, "prompt layer width"]:
    """What the probe shows of each prompt."""
    keep_watched(dlm)
    found: list[Tensor] = []
    for first in range(0, len(rows), size):
        tokens, valid, _ = left_padded(dlm, rows[first : first + size])
        masked = torch.zeros_like(valid) if dlm.is_causal else valid & (tokens == dlm.ids.mask)
        canvas = Canvas(tokens, valid, masked, valid & ~masked, seeds=(0,) * len(tokens))
        without = ~canvas.positions(probe.positions).any(-1)
        if bool(without.any()):
            index = first + int(without.nonzero()[0])
            advice = "; say masks=8 to append some" if probe.positions in ("masked", "response") else ""
            raise DirectionError(f"{name}[{index}] has no position of positions={probe.positions!r}{advice}")
        seen: dict[Any, Any] = {}
        forward(dlm, canvas, probes=[probe], seen=[seen])
        found.append(probe.values(seen))
    return torch.cat(found)


def _agreement(positive: Tensor, negative: Tensor) -> list[float] | None:
    """Cosines of the directions that the two halves of the prompts give, by layer."""
    if min(len(positive), len(negative)) < 2:
        return None
    halves = [positive[which::2].mean(0) - negative[which::2].mean(0) for which in (0, 1)]
    return torch.nn.functional.cosine_similarity(halves[0], halves[1], dim=-1).tolist()
