"""Residual streams and logits of stock transformers models, by plain torch hooks and without sinklens."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = {"LLaDA": "Llama", "Dream": "Qwen2", "Llama": "Llama", "BERT": "Bert"}  # the stock class of a family
Change = Callable[[int, Tensor], Tensor]  # of a layer's residual stream, and what it becomes


@lru_cache
def stock(tiny_stock: Any, family: str) -> Any:
    """The same random model as `tiny_model(family, layers=3)`, never wrapped."""
    model = tiny_stock(KINDS[family], layers=3)
    model.set_attn_implementation("eager")
    return model


def logits(family: str, tiny_stock: Any, tokens: Tensor, valid: Tensor, at: str, change: Change) -> Tensor:
    """Logits [batch, pos, vocab] with the residual stream before or after each layer changed; row i as sinklens has it.

    Pads are hidden from every real query, and positions count from each row's first real token.
    """
    model, size = stock(tiny_stock, family), tokens.shape[1]
    layers = model.bert.encoder.layer if family == "BERT" else model.model.layers
    handles = []

    def attach(index: int, layer: Any) -> None:
        def before(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(index, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(index, kwargs["hidden_states"])}

        def after(module: Any, args: Any, out: Any) -> Any:
            return (change(index, out[0]), *out[1:]) if isinstance(out, tuple) else change(index, out)

        if at == "hook_in":
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(after))

    for index, layer in enumerate(layers):
        attach(index, layer)
    places = (valid.long().cumsum(-1) - 1).clamp(min=0)
    seen = valid[:, None, None, :].expand(-1, 1, size, size) | torch.eye(size).bool()
    if family == "Llama":
        seen = seen & torch.ones(size, size).tril().bool()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = valid.long() if family == "BERT" else mask
    try:
        with torch.no_grad():
            found = model(input_ids=tokens, attention_mask=mask, position_ids=places).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([found[:, :1], found[:, :-1]], 1) if family == "Dream" else found


def residuals(family: str, tiny_stock: Any, row: list[int], at: str) -> np.ndarray:
    """The residual stream of one prompt [layer, pos, d_model]."""
    seen: dict[int, Tensor] = {}

    def note(layer: int, tensor: Tensor) -> Tensor:
        seen[layer] = tensor.clone()
        return tensor

    tokens = torch.tensor([row])
    logits(family, tiny_stock, tokens, torch.ones_like(tokens).bool(), at, note)
    return torch.stack([seen[layer][0] for layer in sorted(seen)]).double().numpy()
