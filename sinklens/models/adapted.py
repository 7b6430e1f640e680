"""Models adapted from fetched ones: a small adapter that comes with sinklens, merged into its base on load."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from sinklens.errors import CheckpointError
from sinklens.models.families import Family, named

HOME = Path(__file__).parents[1] / "adapted"


@dataclass(frozen=True)
class Adapted:
    """A model that is a fetched one with an adapter.

    Attributes:
        name: What users call it; its folder in the package.
        base: The model that was adapted, as `models.packages` names it.
        family: What kind of model it became.
        mask: Its mask token, an id that the base never used.
    """

    name: str
    base: str
    family: str
    mask: int

    def file(self, revision: str | None = None) -> Path:
        """The adapter, or one from along its training.

        Args:
            revision: "step-N"; the last if None.

        Raises:
            CheckpointError: there is no such step.
        """
        folder = HOME / self.name
        steps = sorted((path.stem for path in folder.glob("step-*.safetensors")), key=lambda step: int(step[5:]))
        if revision is not None and revision not in steps:
            raise CheckpointError(f"{self.name} has no revision {revision!r}; along its training there are {steps}")
        return folder / f"{revision or 'adapter'}.safetensors"

    def asked(self, family: Family | str | None, mask: int | None) -> Adapted:
        """Itself, if what is asked of it is what it is.

        Raises:
            CheckpointError: another family or mask token.
        """
        other = named(family) if isinstance(family, str) else family
        if other is not None and other.name != self.family:
            raise CheckpointError(f"{self.name} is of the family {self.family}, and of no other ({other.name})")
        if mask not in (None, self.mask):
            raise CheckpointError(f"the mask token of {self.name} is {self.mask}, not {mask}")
        return self


ADAPTED = {
    each.name: each
    for each in (Adapted("smollm2-135m-diffusion", base="smollm2-135m", family="SmolLM2-diffusion", mask=16),)
    if (HOME / each.name).is_dir()
}


def digest_of(model: PreTrainedModel) -> str:
    """SHA-256 of a model's weights in bfloat16, by name: what an adapter was trained on, whatever it is loaded in."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def merge(model: PreTrainedModel, path: Path) -> None:
    """Put an adapter into the weights of its base, in place.

    For each matrix W with A [rank, in] and B [out, rank]: W + scale * B A (LoRA, arXiv 2106.09685, section 4.1). The
    mask token's vector is a row of the embedding.

    Args:
        model: The base, in float32: rounding comes after.
        path: A file of `write`.

    Raises:
        CheckpointError: a base with other weights than the adapter was trained on, or a file that cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the adapter {path.name} could not be read: {error}") from error
    found = digest_of(model)
    if found != said["base_sha256"]:
        raise CheckpointError(
            f"{path.name} was trained on {said['base']} with weights of the SHA-256 {said['base_sha256']}, and these "
            f"have {found}; fetch the base again (sinklens models get {said['base']})"
        )
    weights: dict[str, Any] = dict(model.named_parameters())
    for name in {each.rsplit(".", 1)[0] for each in tensors if each.endswith((".A", ".B"))}:
        change = float(said["scale"]) * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
        weights[f"{name}.weight"].add_(change.to(weights[f"{name}.weight"].device))
    embedding: Any = model.get_input_embeddings()
    embedding.weight[int(said["mask"])] = tensors["mask"].to(embedding.weight.device)
