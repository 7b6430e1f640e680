"""Edits of what a sparse autoencoder reads in an activation: splice it in, ablate or amplify its features."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.autoencoders import Autoencoder
from sinklens.autoencoders.reading import Source, load, same
from sinklens.errors import ContentError, ScopeError
from sinklens.hooks import Canvas, Hook, Memory
from sinklens.interventions.brief import brief
from sinklens.interventions.edits.base import AttentionEdit
from sinklens.interventions.edits.layer import Count
from sinklens.interventions.selectors.base import set_field
from sinklens.models.told import positions
from sinklens.values.kinds import Finite, Index


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions of a batch that an edit touches, one after the other, as many as are encoded at once.

    Attributes:
        x: What stands there, in float32 at least.
        owner: Which row of the batch each is in.
        place: Where in that row.
    """

    x: Float[Tensor, "n d_model"]
    owner: Int[Tensor, " n"]
    place: Int[Tensor, " n"]


@dataclass(frozen=True, repr=False)
class AutoencoderEdit(AttentionEdit):
    """Base: an edit of the activation where an autoencoder sits, at some positions, each by itself.

    Counts, over steps: "positions" in scope, features that are "active" there, and how far activations are "moved" (L2
    norm, summed over positions).

    Args:
        sae: The autoencoder, or its folder.
        mark: Hash of its content, so that a folder that holds another one now is noticed. Read when None.
        where: Steps; the layer is the autoencoder's.
        queries: Positions that are touched: "all", "masked", "committed", "prompt", "response" or "last".

    Raises:
        AutoencoderError: an autoencoder that cannot be read, or has another mark; in a run: one of another model.
        ScopeError: layers or heads are named.
        ContentError: as in AttentionEdit.
    """

    sae: Source
    _: KW_ONLY
    mark: str | None = None
    counted: ClassVar[tuple[str, ...]] = ("positions", "active", "moved")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.where.refuse("layers", "heads", by=self)
        set_field(self, "mark", same(self.sae, self.mark))

    def read(self) -> Autoencoder:
        """The autoencoder, which must still be the one that the edit was made with."""
        same(self.sae, self.mark)
        return load(self.sae)

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for an autoencoder of another model."""
        self.read().check(model)

    def layers(self, model: Any) -> list[int]:
        """The layer in which the autoencoder sits."""
        return [self.read().place.layer]

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """One hook, where the autoencoder sits.

        Raises:
            ScopeError: masked or response positions, and a forward outside the denoising loop, which knows of none.
        """
        if canvas is None and self.queries in ("masked", "response"):
            raise ScopeError(
                f"{self!r}: outside the denoising loop nobody says which positions are {self.queries}; use denoise, or "
                "fwd_hooks(model, canvas)"
            )
        sae = self.read()
        sae.check(model)

        def hook_function(stream: Tensor, *, hook: Any) -> Tensor | None:
            asked = positions(canvas, self.queries, stream)
            if not bool(asked.any()):
                return None
            owner, place = asked.nonzero(as_tuple=True)
            x = stream[asked].to(torch.promote_types(stream.dtype, torch.float32))
            parts = zip(x.split(sae.rows), owner.split(sae.rows), place.split(sae.rows), strict=True)
            new = [self._counted(sae, Rows(*part), canvas, len(stream), memory.count) for part in parts]
            edited = stream.clone()
            edited[asked] = torch.cat(new).to(stream.dtype)
            return edited

        return [(sae.place.point, hook_function)]

    def _counted(self, sae: Autoencoder, rows: Rows, canvas: Canvas | None, batch: int, count: Count) -> Tensor:
        features = sae.encode(rows.x)
        new = self.edited(sae, features, rows, canvas)
        found = torch.ones_like(rows.owner), (features > 0).sum(-1), (new - rows.x).norm(dim=-1)
        for name, each in zip(self.counted, found, strict=True):
            count(name, each.new_zeros(batch).index_add(0, rows.owner, each))
        return new

    @abstractmethod
    def edited(
        self, sae: Autoencoder, features: Float[Tensor, "n feature"], rows: Rows, canvas: Canvas | None
    ) -> Float[Tensor, "n d_model"]:
        """What stands at the positions afterwards."""

    def __repr__(self) -> str:
        return brief(self, mark="")


@dataclass(frozen=True, repr=False)
class Splice(AutoencoderEdit):
    """Put the autoencoder's reconstruction in the place of the activation.

    With the error term the activation is the reconstruction plus what it leaves unexplained, which is the activation
    itself, bit for bit: the control of the instrument.

    Conserves: nothing without the error term but what the autoencoder explains; everything with it.
    Assumes: an autoencoder of this very place. The reconstruction is computed in float32.
    Source: arXiv 2602.05859 (DLM-Scope), section on functional faithfulness; SAELens's `use_error_term`.

    Args:
        sae: As in AutoencoderEdit.
        error: Whether the error term is added.
        mark: As in AutoencoderEdit; likewise `where` and `queries`.
    """

    error: bool = False

    @property
    def changes(self) -> bool:
        """Unless the error is added."""
        return not self.error

    def edited(
        self, sae: Autoencoder, features: Float[Tensor, "n feature"], rows: Rows, canvas: Canvas | None
    ) -> Float[Tensor, "n d_model"]:
        """The reconstruction, or the activation."""
        return rows.x if self.error else sae.decode(features, rows.x)


@dataclass(frozen=True, repr=False)
class FeatureEdit(AutoencoderEdit):
    """Base: an edit of some features; all else about the activation stays, also what nothing explains (the error term).

    Args:
        sae: As in AutoencoderEdit.
        ids: Which features.
        factor: What activations are multiplied by.
        mark: As in AutoencoderEdit; likewise `where` and `queries`.

    Raises:
        ContentError: no feature, one that is named twice, or that the autoencoder does not have.
    """

    ids: tuple[Index, ...]
    factor: Finite = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.read().features
        if not self.ids or len(set(self.ids)) < len(self.ids) or max(self.ids) >= count:
            raise ContentError(f"ids={list(self.ids)} must name features, each once, out of {count}: 0 to {count - 1}")

    @property
    def changes(self) -> bool:
        """Unless activations are multiplied by 1."""
        return self.factor != 1


@dataclass(frozen=True, repr=False)
class Feature(FeatureEdit):
    """Ablate, scale or amplify features, the error term kept.

    Activation f of a feature becomes `factor f + boost m`, where m is the largest activation at the position. The
    activation moves by the change times what the feature writes; where nothing changes it stays, bit for bit. For
    example:

        Feature(sae, [17])                          # ablate feature 17
        Feature(sae, [17], factor=1.0, boost=2.0)   # DLM-Scope's steering

    Conserves: the other features and the error term.
    Assumes: that features stand for themselves: which of them are active is not chosen anew ("topk").
    Source: arXiv 2602.05859 (DLM-Scope) and its released code, steering (amp_factor 2.0, error term kept).

    Args:
        sae: As in AutoencoderEdit.
        ids: Which features.
        factor: What activations are multiplied by: 0 ablates, 1 leaves them.
        boost: Added, in units of the largest activation at the position.
        mark: As in AutoencoderEdit; likewise `where` and `queries`.

    Raises:
        ContentError: no feature, one that is named twice, or that the autoencoder does not have.
    """

    boost: Finite = 0.0

    @property
    def changes(self) -> bool:
        """Unless activations are multiplied by 1 and nothing is added."""
        return (self.factor, self.boost) != (1, 0)

    def edited(
        self, sae: Autoencoder, features: Float[Tensor, "n feature"], rows: Rows, canvas: Canvas | None
    ) -> Float[Tensor, "n d_model"]:
        """The activation, moved by what the features write."""
        ids = torch.tensor(self.ids, device=features.device)
        change = (self.factor - 1) * features[:, ids] + self.boost * features.amax(-1, keepdim=True)
        return rows.x + sae.moved(change, rows.x, ids)
