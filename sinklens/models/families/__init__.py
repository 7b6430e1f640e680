"""What differs between model families: one frozen Family per file."""

from sinklens.models.families.base import Family
from sinklens.models.families.causal import LLAMA, QWEN2, QWEN3
from sinklens.models.families.dream import DREAM
from sinklens.models.families.llada import LLADA
from sinklens.models.families.mmada import MMADA
from sinklens.models.families.qwen3 import A2D_QWEN3

FAMILIES: tuple[Family, ...] = (LLADA, MMADA, DREAM, A2D_QWEN3, LLAMA, QWEN2, QWEN3)


def named(name: str) -> Family:
    """The family that users call so, in whatever case."""
    for family in FAMILIES:
        if family.name.lower() == name.lower():
            return family
    raise ValueError(f"family {name!r} is unknown; the families are {', '.join(family.name for family in FAMILIES)}")


__all__ = ["A2D_QWEN3", "DREAM", "FAMILIES", "LLADA", "LLAMA", "MMADA", "QWEN2", "QWEN3", "Family", "named"]
