"""What a sparse autoencoder reads at every position: its largest features, or given ones."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.autoencoders import Autoencoder
from sinklens.autoencoders.reading import Source, load, same
from sinklens.errors import ContentError, HookNeverFired, NotFinite
from sinklens.hooks import Canvas, Hook, Scope
from sinklens.models.told import positions
from sinklens.probes.base import Measurement, derived, only
from sinklens.sinks import Positions
from sinklens.values.kinds import Count, Index


@dataclass(frozen=True, repr=False)
class Features(Measurement):
    """Activations of a sparse autoencoder's features, of the stream that the model goes on with.

    Unit: the autoencoder's own, in [0, inf); 0: the feature is not active; 1 means nothing by itself: compare positions
    and steps of one feature. With `top_k` the largest of each position, in falling order (dim "rank"), and with
    what="id" which these are; an id is nan where fewer are active. With `ids` those features (dim "feature"). At a hook
    point that is edited they are read off the edited activation, encoded anew. Source: arXiv 2602.05859 (DLM-Scope),
    which compares the 50 largest across steps.

        Features(sae, top_k=8), Features(sae, top_k=8, what="id"), Features(sae, ids=[17, 203])

    Attributes:
        sae: The autoencoder, or its folder.
        top_k: How many of the largest; None with `ids`.
        ids: Which features; None with `top_k`.
        what: "activation" (the variable "features"), or "id" (the variable "feature_ids").
        where: Steps to look at; the layer is the autoencoder's.
        positions: Which positions; others are nan and cost nothing.
        mark: Hash of the autoencoder's content. Read when None.
        max_bytes: Refuse before the forward when one step's record would take more than this.

    Raises:
        AutoencoderError: an autoencoder that cannot be read, or has another mark; in a run: one of another model.
        ContentError: both `top_k` and `ids`, or neither; features that are not there; ids of given features.
        ScopeError: layers or heads are named.
    """

    sae: Source
    top_k: Count | None = None
    ids: tuple[Index, ...] | None = None
    what: Literal["activation", "id"] = "activation"
    _: KW_ONLY
    where: Scope = Scope()
    positions: Positions = "all"
    mark: str | None = None
    max_bytes: Count = 2**30

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mark", same(self.sae, self.mark))
        count = load(self.sae).features
        if (self.top_k is None) == (self.ids is None):
            raise ContentError(
                f"top_k={self.top_k} and ids={self.ids}: give one of them, Features(sae, top_k=8) or "
                "Features(sae, ids=[17])"
            )
        if self.top_k is not None and self.top_k > count:
            raise ContentError(f"top_k={self.top_k}, and the autoencoder has {count} features")
        if self.ids is not None:
            if not self.ids or len(set(self.ids)) < len(self.ids) or max(self.ids) >= count:
                raise ContentError(f"ids={list(self.ids)} must name features, each once, out of 0 to {count - 1}")
            if self.what == "id":
                raise ContentError("what='id' says which features are largest (top_k); given ids are known")

    @derived
    def own(self) -> str:
        """The variable."""
        return "feature_ids" if self.what == "id" else "features"

    @derived
    def dims(self) -> tuple[str, ...]:
        """Features by number or by rank, then positions."""
        return ("rank" if self.ids is None else "feature", "key")

    @derived
    def unit(self) -> str:
        """That of the numbers."""
        return "id" if self.what == "id" else "activation"

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        which = "given features" if self.ids is not None else f"{self.top_k} largest features"
        what = "number of each" if self.what == "id" else "activation of each"
        return f"{what} of the {which} of the autoencoder {self.mark} ({self.positions} positions)"

    def attributes(self) -> dict[str, Any]:
        """Which positions, and where the autoencoder sits."""
        return super().attributes() | {"autoencoder": self.mark, "hook_point": load(self.sae).place.point}

    def bytes(self, positions: int, steps: int = 1, prompts: int = 1) -> int:
        """Bytes that the record takes, as float32.

        Args:
            positions: Length of the canvas, prompt included.
            steps: Number of steps recorded.
            prompts: Number of prompts.
        """
        return 4 * steps * prompts * positions * (self.top_k or len(self.ids or ()))

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """One hook, where the autoencoder sits.

        Raises:
            AutoencoderError: an autoencoder of another model, or another one in the folder than there was.
            ValueError: one step's record would exceed `max_bytes`; without a canvas, raised by the hook.
        """
        same(self.sae, self.mark)
        sae = load(self.sae)
        sae.check(model)
        seen["step"] = 0 if canvas is None else canvas.step
        if canvas is not None:
            self._refuse(*canvas.valid.shape)

        def look(stream: Tensor, *, hook: Any) -> None:
            with torch.no_grad():
                self._refuse(*stream.shape[:2])
                asked = positions(canvas, self.positions, stream)
                rows = stream.detach()[asked].split(sae.rows)
                found = torch.cat([self._read(sae, x) for x in rows])
                values = found.new_full((*stream.shape[:2], found.shape[-1]), float("nan"))
                values[asked] = found
                seen["values"] = values.movedim(-1, 1)
                seen["broken"] = torch.stack([x.float().sum() for x in rows]).sum()

        return [(sae.place.point, look)]

    def _read(self, sae: Autoencoder, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n feature"]:
        f = sae.encode(x)
        if self.ids is not None:
            return f[:, list(self.ids)]
        largest = f.topk(self.top_k or 1, dim=-1)
        return largest.values if self.what == "activation" else only(largest.indices.float(), largest.values > 0)

    def values(self, seen: dict[Any, Any]) -> Float[Tensor, "batch feature key"]:
        """What a forward showed.

        Raises:
            HookNeverFired: no forward was run with the hooks that were given this `seen`.
            NotFinite: the activation held a nan.
        """
        if "values" not in seen:
            raise HookNeverFired(f"{self!r} has measured nothing; run a forward with its hooks first")
        if not bool(seen["broken"].isfinite()):
            raise NotFinite(
                f"the activation at {load(self.sae).place.point} at step {seen['step']} holds nan or infinity"
            )
        return seen["values"]

    def coords(self, seen: dict[Any, Any]) -> dict[str, list[Any]]:
        """Ranks from 0, or the features' numbers."""
        return {"rank": list(range(self.top_k or 0))} if self.ids is None else {"feature": list(self.ids)}

    def _refuse(self, prompts: int, length: int) -> None:
        size = self.bytes(length, prompts=prompts)
        if size > self.max_bytes:
            raise ValueError(
                f"{self.top_k or len(self.ids or ())} features x {length} positions x {prompts} prompts take {size:,} "
                f"bytes per step, more than max_bytes={self.max_bytes:,}; record fewer features, give fewer prompts at "
                "once, or raise max_bytes"
            )
