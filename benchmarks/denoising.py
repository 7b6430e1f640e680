"""What a denoising run costs: the loop, probes, edits, against the same run without them.

    python benchmarks/denoising.py [--models tiny-1 tiny-16 random-256 random-512] [--steps 64]

64 tokens in 64 steps, greedy, low confidence, one block, on tiny-dlm (the bundled twin; 1 prompt and 16) and on random
weights (8 layers, 8 heads, 1 prompt; S = d_model = 256 and 512):

plain loop    LLaDA's official sampler over the plain transformers model, with the mask token forbidden as in sinklens
no probes     sl.denoise
received      with the probe ReceivedAttention
three probes  with ReceivedAttention, SinkMask and KeyNorm
edit before   with the edit MaskSinks(PreviousStep(top_k=1))
edit now      with the edit MaskSinks(SameStep(top_k=1))

All on all layers, heads and steps. Time: medians of interleaved runs after a warm-up of 2 steps. It is checked that the
plain loop and sinklens give the same tokens. For S = 512 also: what the three probes add to the peak resident size,
each run in a fresh process. Targets: the loop at most 1.15 x the plain loop; received on tiny-dlm at most 1.25 x, three
probes on random weights at most 1.3 x the run without probes, and less than 200 MB more.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import common
import torch

import sinklens as sl
from sinklens.interventions import SinkEdit
from sinklens.probes import KeyNorm, ReceivedAttention, SinkMask

NEW, WARM = 64, 2
MODELS = ("tiny-1", "tiny-16", "random-256", "random-512")
RUNS = ("plain loop", "no probes", "received", "three probes", "edit before", "edit now")


def load(name: str) -> tuple[sl.HookedDLM, torch.Tensor]:
    """A model and prompts of one length."""
    kind, number = name.split("-")
    if kind == "random":
        size = int(number)
        return common.random_dlm(size, size, 8, heads=8), common.random_tokens(1, size - NEW)
    dlm, task = sl.HookedDLM.from_pretrained("tiny-dlm"), sl.tasks.Echo(int(number), seed=1)
    return dlm, torch.tensor([dlm.encode(task[index].prompt) for index in range(len(task))])


def plain_loop(model: Any, prompts: torch.Tensor, mask: int, steps: int) -> torch.Tensor:
    """LLaDA's greedy low-confidence loop over the model as transformers gives it."""
    tokens = torch.cat([prompts, torch.full((len(prompts), NEW), mask)], 1)
    for _ in range(steps):
        logits = model(tokens, use_cache=False).logits
        logits[..., mask] = -torch.inf
        confidence, choice = logits.softmax(-1).max(-1)
        confidence = confidence.masked_fill(tokens != mask, -torch.inf)
        index = confidence.topk(NEW // steps).indices
        tokens = tokens.scatter(1, index, choice.gather(1, index))
    return tokens


def run(name: str, dlm: sl.HookedDLM, prompts: torch.Tensor, steps: int) -> torch.Tensor:
    """The final tokens of one run."""
    if name == "plain loop":
        return plain_loop(dlm.original_model, prompts, dlm.ids.mask or 0, steps)
    probes = {"received": [ReceivedAttention()], "three probes": [ReceivedAttention(), SinkMask(), KeyNorm()]}
    edits: dict[str, list[SinkEdit]] = {
        "edit before": [sl.MaskSinks(sl.PreviousStep(top_k=1))],
        "edit now": [sl.MaskSinks(sl.SameStep(top_k=1))],
    }
    plan = sl.Plan(new_tokens=NEW, steps=steps, block_length=NEW)
    probed, edited = probes.get(name, []), edits.get(name, [])
    return sl.denoise(dlm, list(prompts), plan, probes=probed, interventions=edited, progress=False).tokens


def one_run(name: str, model: str, steps: int) -> common.Job:
    """For a fresh process."""
    return partial(run, name, *load(model), steps)


def keep(tokens: dict[str, torch.Tensor], name: str, *arguments: Any) -> None:
    """The final tokens of one run, by its name."""
    tokens[name] = run(name, *arguments)


def measure(model: str, steps: int, seconds: float) -> None:
    """The table of one model."""
    dlm, prompts = load(model)
    tokens: dict[str, torch.Tensor] = {}
    jobs = {name: partial(keep, tokens, name, dlm, prompts, steps) for name in RUNS}
    warm = {name: partial(run, name, dlm, prompts, WARM) for name in RUNS}
    took, rounds = common.medians(jobs, seconds, warm=warm)
    targets = {"no probes": "loop 1.15"}
    targets.update({"received": "1.25"} if model.startswith("tiny") else {"three probes": "1.3"})
    shape = f"S {prompts.shape[1] + NEW}, {dlm.n_layers} layers, {dlm.n_heads} heads, batch {len(prompts)}"
    print(f"\n{model}: {shape}, {steps} steps, {rounds} runs each\n")
    common.heading("run", "seconds", "x no probes", "x plain loop", "target")
    for name, spent in took.items():
        ratios = [f"{spent / took[other]:.2f}" for other in ("no probes", "plain loop")]
        common.row(name, f"{spent:.3f}", *ratios, targets.get(name, ""))
    print(f"\nplain loop and sinklens give the same tokens: {torch.equal(tokens['plain loop'], tokens['no probes'])}")
    if model == "random-512":
        plain, probed = (common.fresh_peak(one_run, name, model, steps) for name in ("no probes", "three probes"))
        print(f"peak memory with three probes: {probed - plain:+.0f} MB (target 200)")


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    options = common.parser(__doc__)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--steps", type=int, default=NEW, help=f"a divisor of {NEW}")
    options.add_argument(
        "--seconds", type=float, default=20.0, help="for the repeats on one model; at least 2 are made"
    )
    asked = options.parse_args()
    print(common.header())
    for model in asked.models:
        measure(model, asked.steps, asked.seconds)


if __name__ == "__main__":
    main()
