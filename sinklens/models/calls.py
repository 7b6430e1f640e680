"""What is done around every call of a module, whoever calls it: the module's class becomes a subclass that does it.

A hook of torch's own would count as somebody's, be lost or met twice in a copy, and not be told of a KeyboardInterrupt.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Around(nn.Module):
    """The base of what stands around the calls of modules. A copy or a pickle of such a module is one, too."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As of any module, but by what its class is made of: that class is found nowhere by its name."""
        parts = vars(type(self)).get("parts")  # none: somebody has made a subclass of it, and knows how to copy that
        return (_made, parts, self.__getstate__()) if parts else super().__reduce_ex__(protocol)


def surround(module: nn.Module, around: type[Around]) -> None:
    """Let `around` stand around the calls of a module from now on; once, however often it is said."""
    if not isinstance(module, around):
        object.__setattr__(module, "__class__", _joined(around, type(module)))


@cache
def _joined(around: type[Around], plain: type[nn.Module]) -> Any:
    """The subclass of a module's class, which has its name: transformers and fingerprints read it."""
    same = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (around, plain), {**same, "parts": (around, plain)})


def _made(around: type[Around], plain: type[nn.Module]) -> nn.Module:
    made: type[nn.Module] = _joined(around, plain)
    return made.__new__(made)
