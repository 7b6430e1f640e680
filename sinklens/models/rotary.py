"""Rotary frequencies as a freshly loaded model has them, whatever forwards and casts came before."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_STATEFUL = ("dynamic", "longrope")  # transformers changes their frequencies in a forward, and may keep the change


@torch.no_grad()
def settle(model: Any) -> None:
    """Give a stock decoder the frequencies that it has when it is loaded.

    A cast (`dlm.to(torch.bfloat16)`) rounds them, loading in that dtype does not; and after a text beyond the context a
    dynamic scaling stays for texts that are shorter.

    Args:
        model: The transformers model.
    """
    rotary = getattr(getattr(model, model.base_model_prefix, None), "rotary_emb", None)
    if rotary is None:
        return
    rotary = getattr(rotary, "original_component", rotary)  # the bridge's component may stand in its place now
    rounded = rotary.inv_freq.dtype != torch.float32
    if not rounded and rotary.rope_type not in _STATEFUL:
        return
    make: Any = ROPE_INIT_FUNCTIONS.get(rotary.rope_type, rotary.compute_default_rope_parameters)
    frequencies, rotary.attention_scaling = make(model.config)
    frequencies = frequencies.to(device=rotary.inv_freq.device, dtype=torch.float32)
    rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    rotary.__dict__.pop("long_inv_freq", None)
