"""Which way a transformers model sees: config, attention layers and its own generation agree."""

from __future__ import annotations

from typing import Any, NoReturn

from transformers import PreTrainedModel

from sinklens.errors import Unsupported


def set_direction(model: PreTrainedModel, *, causal: bool) -> None:
    """Make config and every attention layer agree on the mask (sdpa reads the layer's own attribute).

    A model that sees both ways does not write from left to right, so its own `generate` refuses.
    """
    model.config.is_causal = causal
    model.__dict__.pop("generate", None)
    if not causal:
        model.__dict__["generate"] = _no_generate
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.__dict__["is_causal"] = causal


def _no_generate(*args: Any, **kwargs: Any) -> NoReturn:
    raise Unsupported(
        "generate: this is a diffusion model, which does not write from left to right; use sinklens.denoise"
    )
