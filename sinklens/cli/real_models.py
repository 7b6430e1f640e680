"""What `sinklens demo --real` asks, and of which models."""

from __future__ import annotations

from sinklens.cli.real_job import Subject
from sinklens.decoding.plan import Plan
from sinklens.models import adapted
from sinklens.tasks import antibodies, facts

FACTS = Plan(new_tokens=4)
SEQUENCES = 30  # antibodies behind these are other masks of the same
RESIDUES = Plan(new_tokens=0, steps=15)  # about four residues at a time


def few_of(prompts: int, most: int) -> int:
    """Half of the prompts, for the budgets."""
    return min(max(2, prompts // 2), most)


def subjects(prompts: int) -> list[Subject]:
    """The models and their tasks.

    Args:
        prompts: How many of each task.
    """
    known, few = facts(min(prompts, len(facts()))), facts(few_of(prompts, len(facts())))
    found = [
        Subject("smollm2-135m", known, few, FACTS, "SmolLM2-135M-Instruct: an autoregressive Llama"),
        *(
            Subject(
                name,
                known,
                few,
                FACTS,
                "the same weights, made a diffusion language model by LoRA (examples/adapt_smollm2.py)",
                log=adapted.HOME / name / "log.jsonl",
            )
            for name in adapted.ADAPTED
        ),
        Subject(
            "antiberty",
            antibodies(min(prompts, SEQUENCES)),
            antibodies(few_of(prompts, SEQUENCES)),
            RESIDUES,
            "AntiBERTy: a BERT trained on 558 million antibody sequences",
        ),
    ]
    return found
