"""Rotary frequencies as a freshly loaded model has them, whatever forwards and casts came before."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sinklens.models.calls import Around, surround

_STATEFUL = ("dynamic", "longrope")  # transformers changes their frequencies in a forward, and may keep the change


class Settled(Around):
    """A rotary embedding of transformers that begins every call with the frequencies that it has when it is loaded.

    A cast (`dlm.to(torch.bfloat16)`) rounds them, loading in that dtype does not; and after a text beyond the context a
    dynamic scaling stays for texts that are shorter.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        self.settle()
        return super().__call__(*args, **kwargs)

    def settle(self) -> None:
        """Take back what forwards and casts have done."""
        rotary: Any = self
        if rotary.inv_freq.dtype == torch.float32 and rotary.rope_type not in _STATEFUL:
            return
        make: Any = ROPE_INIT_FUNCTIONS.get(rotary.rope_type, rotary.compute_default_rope_parameters)
        frequencies, rotary.attention_scaling = make(rotary.config)
        frequencies = frequencies.to(device=rotary.inv_freq.device, dtype=torch.float32)
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.__dict__.pop("long_inv_freq", None)
        rotary.original_inv_freq = frequencies.clone()
        rotary.inv_freq = frequencies  # last: an interrupt before it leaves everything to be done again


def keep_settled(model: nn.Module) -> None:
    """Let every call of a decoder's rotary embedding begin as that of a freshly loaded model."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            surround(module, Settled)
