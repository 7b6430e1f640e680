"""Where an autoencoder sits: its hook point, under whatever name, and whether a model is the right one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sinklens.errors import AutoencoderError
from sinklens.models.fingerprint import ModelId
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.values import Value

# What follows "blocks.{i}." as SAELens and TransformerLens 3 call it, and as the bridge does. [batch, pos, d_model].
POINTS = {
    "hook_resid_pre": "hook_in",
    "hook_resid_post": "hook_out",
    "hook_attn_out": "attn.hook_out",
    "hook_mlp_out": "mlp.hook_out",
}
NAME = re.compile(r"blocks\.(\d+)\.(.+)")


def bridge_point(name: str) -> str:
    """A hook point under the bridge's name: "blocks.3.hook_resid_post" is "blocks.3.hook_out".

    Raises:
        AutoencoderError: a point at which no autoencoder of whole positions can sit, or whose meaning is not known.
    """
    found = NAME.fullmatch(name)
    if found is not None and (found[2] in POINTS or found[2] in POINTS.values()):
        return f"blocks.{found[1]}.{POINTS.get(found[2], found[2])}"
    known = ", ".join(f"{old} ({new})" for old, new in POINTS.items())
    raise AutoencoderError(
        f"the hook point {name!r} is none that sinklens knows for autoencoders; it knows blocks.0. and so on, followed "
        f"by {known}"
    )


@dataclass(frozen=True, repr=False)
class Place(Value):
    """Where an autoencoder sits, and in which model.

    Attributes:
        point: The hook point, under either name; kept under the bridge's.
        model: Name of the model that it was trained on.
        family: The model's family, and
        weights: the digest of its weights, where sinklens made the files; other files have its name alone.
        uncentred: False if it was trained on weights that TransformerLens had processed, so that what a LayerNorm model
            writes into the residual stream had mean 0 (`center_writing_weights`).
    """

    point: str
    model: str
    family: str | None = None
    weights: str | None = None
    uncentred: bool = True
    kind_error = AutoencoderError

    def __post_init__(self) -> None:
        object.__setattr__(self, "point", bridge_point(self.point))
        if not self.model:
            raise AutoencoderError("model='' must name the model that the autoencoder was trained on")

    @classmethod
    def of(cls, dlm: HookedDLM, point: str) -> Place:
        """A place in a model that is at hand."""
        model = ModelId.of(dlm)
        return cls(point, model.name, model.family, model.weights)

    @property
    def layer(self) -> int:
        """The layer, from 0."""
        return int(self.point.split(".")[1])

    def check(self, dlm: Any, d_model: int) -> None:
        """Raise for a model in which the autoencoder does not belong.

        Args:
            dlm: A HookedDLM, or its outline, of which only the name, family and layers are compared.
            d_model: Width of the autoencoder.

        Raises:
            AutoencoderError: another width, a layer that is not there, another model.
        """
        layers, width = int(dlm.cfg.n_layers), int(getattr(dlm.cfg, "d_model", d_model))
        if self.layer >= layers or width != d_model:
            raise AutoencoderError(
                f"the autoencoder sits at {self.point} and has d_model {d_model}; {dlm.name} has the layers 0 to "
                f"{layers - 1} and d_model {width}"
            )
        if not self._names(dlm):
            raise AutoencoderError(
                f"the autoencoder was trained on {self.model!r}, and this model is {dlm.name!r}"
                + (", or other weights of that name" if self.weights else "")
                + f"; if it is meant for it all the same, say Autoencoder.load(folder, model={dlm.name!r})"
            )
        if not self.uncentred and str(getattr(dlm.cfg, "normalization_type", "")).startswith("LN"):
            raise AutoencoderError(
                f"the autoencoder was trained on {self.model!r} as TransformerLens processes it (its cfg.json does not "
                "say center_writing_weights=False), where what is written into the residual stream has mean 0; the "
                "model here is as published, and each activation would be another. It cannot be used"
            )

    def _names(self, dlm: Any) -> bool:
        """Whether a model is the one: by its weights if they are known, else by its name, whatever folder it is in."""
        if self.weights is not None:
            if not isinstance(dlm, HookedDLM):
                return self.family == dlm.family.name
            return ModelId.of(dlm) == ModelId(self.model, self.family or "", self.weights)
        own = re.split(r"[/\\]", self.model.rstrip("/\\"))[-1].casefold()
        return own in re.split(r"[/\\]|--", str(dlm.name).casefold())
