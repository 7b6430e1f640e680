"""The table of models, from the families themselves."""

from __future__ import annotations

from sinklens.models.families import FAMILIES, Family, Model

INTRO = """\
Point sinklens at a folder or a Hub id:
`sl.HookedDLM.from_pretrained("GSAI-ML/LLaDA-8B-Instruct", dtype=torch.bfloat16, device="cuda")`. No remote code runs: a
checkpoint is read into the stock transformers class, and a field, weight or file that this class cannot honour is an
error.
"""


def page() -> str:
    """Two tables as MyST: families, and the checkpoints known to be in their layouts."""
    families = [_row("family", "kind", "config.json says", "computed as", "facts from"), _row(*["---"] * 5)]
    models = [_row("checkpoint", "family", "parameters", "licence", "laptop", "note"), _row(*["---"] * 6)]
    for family in FAMILIES:
        families.append(_row(family.name, kind(family), _known(family), _computed(family), family.source))
        models += [_checkpoint(family, it) for it in family.models]
    return "\n".join(["# Models\n", INTRO, "## Families\n", *families, "\n## Checkpoints\n", *models]) + "\n"


def _checkpoint(family: Family, it: Model) -> str:
    return _row(f"`{it.name}`", family.name, size(it), it.licence, "yes" if it.on_a_laptop else "", it.note)


def kind(family: Family) -> str:
    """What kind of model a family holds."""
    return "autoregressive baseline" if family.causal else "encoder" if family.closes else "diffusion"


def size(model: Model) -> str:
    """How many numbers are stored, in billions."""
    return "" if model.parameters is None else f"{model.parameters / 1e9:.3g} B"


def _known(family: Family) -> str:
    return ", ".join(f"`{each}`" for each in family.model_types) or f'nothing: `family="{family.name}"`'


def _computed(family: Family) -> str:
    return f"`{family.model_class}`" + (", logits shifted" if family.shift else "")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
