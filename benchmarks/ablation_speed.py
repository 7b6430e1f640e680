"""An ablation of 4 conditions x 64 prompts on tiny-dlm: in shared forwards, against one prompt and condition at a time.

    python benchmarks/ablation_speed.py

by hand     the straightforward way: a loop of one's own over prompts and conditions, batch 1, in which every step is
            one `run_with_hooks(tokens, fwd_hooks=...)` of TransformerLens, with all of its components in place
one by one  the same through sinklens's loop (`denoising_steps`), which puts in only the components that are hooked
together    `sl.ablate`: all conditions of 16 prompts share their forwards

Filling gaps, teacher-forced, greedy, without controls, with the same edits. All run in this process, and it is checked
that they score the same. Target: together at least 5 x faster than by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch

import sinklens as sl
from sinklens.interventions import MaskSinks, Redistribute, SinkEdit, ZeroSinks, ZeroValue


def conditions() -> dict[str, SinkEdit]:
    """Four edits."""
    return {
        "mask": MaskSinks(sl.PreviousStep(top_k=1)),
        "zero": ZeroSinks(sl.PreviousStep(top_k=1)),
        "redistribute": Redistribute("uniform", sl.PreviousStep(top_k=1)),
        "value": ZeroValue(sl.PreviousStep(top_k=1)),
    }


def one_prompt_by_hand(dlm: sl.HookedDLM, prompt: str, answer: list[int], edit: SinkEdit | None) -> float:
    """Share of the gaps that the model would have filled rightly; each step commits the most confident one."""
    tokens = torch.tensor([dlm.encode(prompt)])
    masked = tokens == dlm.ids.mask
    right, said = tokens.masked_scatter(masked, torch.tensor(answer)), tokens.clone()
    gaps, real = masked.clone(), torch.ones_like(masked)
    memory = None if edit is None else edit.memory(len(answer))
    for step in range(len(answer)):
        canvas = sl.Canvas(tokens, real, masked, ~gaps, step, (0,))
        hooks: Any = [] if edit is None or memory is None else edit.at_step(dlm, canvas, memory)
        once = partial(dlm.run_with_hooks, tokens, fwd_hooks=hooks)
        logits = dlm.wiring.run(lambda _, once=once: once(), everything=True)
        logits[..., dlm.ids.mask] = -torch.inf
        confidence, choice = logits.softmax(-1).max(-1)
        commit = torch.zeros_like(masked)
        commit[0, confidence.masked_fill(~masked, -torch.inf).argmax()] = True
        said, tokens, masked = torch.where(commit, choice, said), torch.where(commit, right, tokens), masked & ~commit
    return float((said == right)[gaps].float().mean())


def one_prompt(dlm: sl.HookedDLM, prompt: str, answer: list[int], edit: SinkEdit | None) -> float:
    """The same by sinklens's loop."""
    edits = [edit] if edit else []
    plan = sl.Plan(new_tokens=0)
    right = 0
    for step in sl.denoising_steps(dlm, prompt, plan, force=[answer], interventions=edits):
        right += int((step.committed & (step.predicted == step.tokens)).sum())
    return right / len(answer)


def one_by_one(dlm: sl.HookedDLM, task: sl.tasks.Echo, way: Callable[..., float]) -> dict[str, float]:
    """Accuracy by condition, one prompt at a time."""
    found: dict[str, float] = {}
    for name, edit in {"unmasked": None, **conditions()}.items():
        scores = []
        for index in range(len(task)):
            example = task[index]
            answer = dlm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
            scores.append(way(dlm, example.prompt, answer, edit))
        found[name] = sum(scores) / len(scores)
    return found


def together(dlm: sl.HookedDLM, task: sl.tasks.Echo) -> dict[str, float]:
    """The same by `ablate`."""
    plan, metrics = sl.Plan(new_tokens=0), ["forced_accuracy"]
    result = sl.ablate(dlm, task, conditions(), plan, controls=None, metrics=metrics, batch_size=80, progress=False)
    table = result.summary()
    return dict(zip(table["condition"], table["value"], strict=True))


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    print(common.header())
    dlm, task = sl.HookedDLM.from_pretrained("tiny-dlm"), sl.tasks.Echo(64, seed=1, gaps=0.5)
    ways: dict[str, Callable[[sl.tasks.Echo], dict[str, float]]] = {
        "by hand": lambda task: one_by_one(dlm, task, one_prompt_by_hand),
        "one by one": lambda task: one_by_one(dlm, task, one_prompt),
        "together": lambda task: together(dlm, task),
    }
    found: dict[str, dict[str, float]] = {}

    def keep(name: str) -> None:
        found[name] = ways[name](task)

    warm = {name: partial(way, sl.tasks.Echo(4, seed=1, gaps=0.5)) for name, way in ways.items()}
    seconds, rounds = common.medians({name: partial(keep, name) for name in ways}, 60, warm=warm)
    print(f"{rounds} runs each")
    for name, spent in seconds.items():
        faster = spent / seconds["together"]
        print(f"{name}: {spent:.1f} s, {faster:.1f} x together" + (" (target 5)" if name == "by hand" else ""))
    worst = max(
        abs(found["together"][name] - found[way][name]) for way in ("by hand", "one by one") for name in found[way]
    )
    print(f"largest difference of an accuracy: {worst:.4f}")


if __name__ == "__main__":
    main()
