"""An ablation of 4 conditions x 64 prompts on tiny-dlm: in shared forwards, against one prompt and condition at a time.

    python benchmarks/ablation_speed.py

The straightforward way is TransformerLens hooks in a loop of one's own: for each prompt and condition the same
denoising loop with the edit attached, batch 1. Filling gaps, teacher-forced, without controls. Both run in this
process, and it is checked that both score the same. Target: at least 5 x faster.
"""

from __future__ import annotations

import time

import common
import torch

import sinklens as sl
from sinklens.interventions import MaskSinks, Redistribute, ZeroSinks, ZeroValue


def conditions() -> dict[str, sl.interventions.SinkEdit]:
    """Four edits."""
    return {
        "mask": MaskSinks(sl.PreviousStep(top_k=1)),
        "zero": ZeroSinks(sl.PreviousStep(top_k=1)),
        "redistribute": Redistribute("uniform", sl.PreviousStep(top_k=1)),
        "value": ZeroValue(sl.PreviousStep(top_k=1)),
    }


def one_by_one(dlm: sl.HookedDLM, task: sl.tasks.Echo) -> dict[str, float]:
    """Accuracy by condition, one prompt at a time."""
    found: dict[str, float] = {}
    for name, edit in {"unmasked": None, **conditions()}.items():
        scores = []
        for index in range(len(task)):
            example = task[index]
            answer = dlm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
            said = torch.empty(0)
            for step in sl.denoising_steps(
                dlm,
                example.prompt,
                sl.Plan(new_tokens=0),
                seed=index,
                force=[answer],
                interventions=[edit] if edit else [],
            ):
                blank = torch.full(step.tokens.shape, -1)
                said = torch.where(step.committed, step.predicted, blank if said.numel() == 0 else said)
            right = [a == b for a, b in zip(said[said >= 0].tolist(), answer, strict=True)]
            scores.append(sum(right) / len(right))
        found[name] = sum(scores) / len(scores)
    return found


def together(dlm: sl.HookedDLM, task: sl.tasks.Echo) -> dict[str, float]:
    """The same by `ablate`."""
    plan, metrics = sl.Plan(new_tokens=0), ["forced_accuracy"]
    result = sl.ablate(dlm, task, conditions(), plan, controls=None, metrics=metrics, batch_size=80, progress=False)
    table = result.summary()
    return dict(zip(table["condition"], table["value"], strict=True))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    print(common.header())
    dlm, task = sl.HookedDLM.from_pretrained("tiny-dlm"), sl.tasks.Echo(64, seed=1, gaps=0.5)
    together(dlm, sl.tasks.Echo(4, seed=1, gaps=0.5))
    seconds, found = [], []
    for way in (one_by_one, together):
        started = time.perf_counter()
        found.append(way(dlm, task))
        seconds.append(time.perf_counter() - started)
    worst = max(abs(found[0][name] - found[1][name]) for name in found[0])
    print(f"one by one {seconds[0]:.1f} s, together {seconds[1]:.1f} s: {seconds[0] / seconds[1]:.1f} x (target 5)")
    print(f"largest difference of an accuracy: {worst:.4f}")


if __name__ == "__main__":
    main()
