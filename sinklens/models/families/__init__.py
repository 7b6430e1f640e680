"""What differs between model families: one frozen Family per file."""

from sinklens.models.families.a2d import A2D_LLAMA, A2D_QWEN2, A2D_QWEN2_BD3LM, A2D_QWEN3, A2D_QWEN3_BD3LM
from sinklens.models.families.adapted import DIFFULLAMA, OPEN_DCODER, SMOLLM2_DIFFUSION
from sinklens.models.families.base import Family, Model
from sinklens.models.families.bert import BERT, ROBERTA
from sinklens.models.families.causal import LLAMA, QWEN2, QWEN3
from sinklens.models.families.coda import CODA
from sinklens.models.families.diffcoder import DIFFCODER
from sinklens.models.families.diffugpt import DIFFUGPT
from sinklens.models.families.dream import DREAM
from sinklens.models.families.esm import DPLM, ESM2
from sinklens.models.families.gpt2 import GPT2
from sinklens.models.families.illada import ILLADA
from sinklens.models.families.llada import LLADA
from sinklens.models.families.llada2 import LLADA2
from sinklens.models.families.mdlm import MDLM
from sinklens.models.families.mmada import MMADA
from sinklens.models.families.modernbert import MODERNBERT
from sinklens.models.families.moe import LLADA_MOE, QWEN3_MOE, RND1
from sinklens.models.families.sdar import SDAR

FAMILIES: tuple[Family, ...] = (
    LLADA,
    MMADA,
    ILLADA,
    LLADA_MOE,
    DREAM,
    A2D_QWEN3,
    A2D_QWEN2,
    A2D_LLAMA,
    CODA,
    OPEN_DCODER,
    DIFFULLAMA,
    DIFFUGPT,
    SMOLLM2_DIFFUSION,
    MDLM,
    RND1,
    LLAMA,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    GPT2,
    DIFFCODER,
    A2D_QWEN3_BD3LM,
    A2D_QWEN2_BD3LM,
    SDAR,
    LLADA2,
    BERT,
    ROBERTA,
    ESM2,
    DPLM,
    MODERNBERT,
)


def named(name: str) -> Family:
    """The family that users call so, in whatever case."""
    for family in FAMILIES:
        if family.name.lower() == name.lower():
            return family
    raise ValueError(f"family {name!r} is unknown; the families are {', '.join(family.name for family in FAMILIES)}")


__all__ = ["FAMILIES", "Family", "Model", "named"]
