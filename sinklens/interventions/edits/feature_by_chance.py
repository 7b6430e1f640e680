"""The control of an edit of features: at each position as many other active ones, drawn by chance."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.autoencoders import Autoencoder
from sinklens.errors import AutoencoderError, ScopeError
from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.edits.features import Feature, FeatureEdit, Rows
from sinklens.interventions.noise import noise
from sinklens.values.kinds import Seed


@dataclass(frozen=True, repr=False)
class ChanceFeature(FeatureEdit):
    """The control of Feature: at each position as many other active features, drawn by chance, are scaled instead.

    Where m of the features in question are active, m of the other active ones take their place, or as many as there
    are. Drawn anew at each position and step: neighbours by number, from one that is drawn.

    Conserves: as Feature.
    Assumes: as Feature. Matched are the positions and the number of features there, not how much they write.
    Source: sinklens.

    Args:
        sae: As in AutoencoderEdit; `controls.control` takes all but the seed from the Feature.
        ids: The features whose place others take.
        factor: As in Feature.
        seed: For the draw.
        mark: As in AutoencoderEdit; likewise `where` and `queries`.

    Raises:
        ContentError: as in Feature.
    """

    _: KW_ONLY
    seed: Seed = 0

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """One hook, where the autoencoder sits.

        Raises:
            ScopeError: a forward outside the denoising loop, whose positions and steps nobody counts.
        """
        if canvas is None:
            raise ScopeError(f"{self!r} draws by position and step; use it in denoise, or fwd_hooks(model, canvas)")
        return super().acting(model, canvas, memory)

    def edited(
        self, sae: Autoencoder, features: Float[Tensor, "n feature"], rows: Rows, canvas: Canvas | None
    ) -> Float[Tensor, "n d_model"]:
        """The activation, moved by what the drawn features write."""
        drawn = self.drawn(features, rows, canvas, sae.place.layer)
        return rows.x + sae.moved((self.factor - 1) * features * drawn, rows.x)

    def drawn(
        self, features: Float[Tensor, "n feature"], rows: Rows, canvas: Any, layer: int
    ) -> Bool[Tensor, "n feature"]:
        """Which features are scaled."""
        ids = torch.tensor(self.ids, device=features.device)
        others = features > 0
        wanted = others[:, ids].sum(-1, keepdim=True)
        others[:, ids] = False
        among = others.sum(-1, keepdim=True)
        uniform = noise(self.seed, canvas, layer, 1)[:, 0].to(features.device)[rows.owner, rows.place][:, None]
        place = others.cumsum(-1) - 1 - (uniform * among).floor().long()
        return others & (place.remainder(among.clamp(min=1)) < wanted)


def chance(edit: Feature, seed: int) -> ChanceFeature:
    """The control of a Feature.

    Raises:
        AutoencoderError: a boost, for which features that are not active would have to be drawn.
    """
    if edit.boost:
        raise AutoencoderError(
            f"{edit!r} adds to features whether they are active or not, and no chance control matches that; say "
            "controls=None, and name another feature as a condition beside it"
        )
    return ChanceFeature(
        edit.sae, edit.ids, edit.factor, seed=seed, mark=edit.mark, where=edit.where, queries=edit.queries
    )
