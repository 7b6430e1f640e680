"""Rotary frequencies as a freshly loaded model has them, whatever forwards and casts came before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sinklens.models.calls import Around, surround

HALVES = (torch.bfloat16, torch.float16)
_STATEFUL = ("dynamic", "longrope")  # transformers changes their frequencies in a forward, and may keep the change


class Settled(Around):
    """A rotary embedding of transformers that begins every call with the frequencies that it has when it is loaded.

    A cast (`dlm.to(torch.bfloat16)`) rounds them, also one forth and back; loading in that dtype does not. And after a
    text beyond the context a dynamic scaling stays for texts that are shorter.
    """

    loaded: dict[str, Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        self.settle()
        return super().__call__(*args, **kwargs)

    def settle(self) -> None:
        """Take back what forwards and casts have done."""
        rotary: Any = self
        if rotary.rope_type not in _STATEFUL and not _cast(rotary.inv_freq, self.loaded["inv_freq"]):
            return
        frequencies, rotary.attention_scaling = _fresh(rotary)
        frequencies = frequencies.to(device=rotary.inv_freq.device, dtype=torch.float32)
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.__dict__.pop("long_inv_freq", None)
        rotary.original_inv_freq = frequencies.clone()
        rotary.inv_freq = frequencies  # last: an interrupt before it leaves everything to be done again


class Restored(Settled):
    """Likewise, of an encoder: several frequencies, or some that the checkpoint has stored. They never change."""

    def settle(self) -> None:
        """Take back a cast; frequencies that somebody has changed stay."""
        for name, exact in self.loaded.items():
            now = getattr(self, name)
            if _cast(now, exact):
                setattr(self, name, exact.to(now.device))


def _cast(now: Tensor, exact: Tensor) -> bool:
    """Whether frequencies are in half precision, or were: then they are the exact ones, rounded."""
    if now.dtype != torch.float32:
        return True
    exact = exact.to(now.device)
    return not torch.equal(now, exact) and any(torch.equal(now, exact.to(half).float()) for half in HALVES)


def _fresh(rotary: Any) -> Any:
    """Frequencies and scaling of a rotary embedding that was just made."""
    make: Any = ROPE_INIT_FUNCTIONS.get(rotary.rope_type, rotary.compute_default_rope_parameters)
    return make(rotary.config)


def keep_settled(model: nn.Module) -> None:
    """Let every call of a model's rotary embedding begin as that of a freshly loaded model."""
    for module in list(model.modules()):
        names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
        if "original_inv_freq" in names:
            if not isinstance(module, Settled):
                module.__dict__["loaded"] = {"inv_freq": _fresh(module)[0].to(torch.float32)}
            surround(module, Settled)
        elif names and not isinstance(module, Restored):
            rotary: Any = module
            rotary.loaded = {name: getattr(module, name).detach().clone() for name in names}
            if rotary.loaded[names[0]].dtype != torch.float32:  # one that is stored (ESM), and was loaded in half
                rotary.loaded = {names[0]: rotary.compute_default_rope_parameters(rotary.config)[0].float()}
            surround(module, Restored)
