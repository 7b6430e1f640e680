"""What a steered run costs beside the same run unsteered.

    python benchmarks/steering.py [--models tiny-dlm smollm2-135m smollm2-135m-diffusion] [--prompts 32]

plain       `denoise`, nobody edits anything
everywhere  the edit Steer at all positions of all layers, at every step
response    the same at what is not the prompt, falling with the share that is left ("linear")

The direction is the difference between the first and the second half of the prompts, scaled down until it changes no
more than rounding, so that all runs write the same. Time: medians of interleaved repeats after a warm-up, as ratios to
the plain run. Target: at most 1.15 x.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import common
import torch

import sinklens as sl
from sinklens.errors import CheckpointError


def jobs(name: str, prompts: int, tokens: int) -> Mapping[str, common.Job]:
    """The runs of one model."""
    dlm = sl.HookedDLM.from_pretrained(name)
    texts = [sl.tasks.Echo(prompts, seed=1)[index].prompt for index in range(prompts)]
    if not name.startswith("tiny"):
        texts = [f"{text} is told in the year {1900 + index}" for index, text in enumerate(["The old story"] * prompts)]
    found = sl.directions.difference(dlm, texts[::2], texts[1::2], positions="last")
    edits = {
        "plain": [],
        "everywhere": [sl.Steer(found, 1e-6)],
        "response": [sl.Steer(found, 1e-6, positions="response", schedule="linear")],
    }
    plan = sl.Plan(new_tokens=tokens, suppress_eos="logits")
    run = partial(sl.denoise, dlm, texts, plan.for_causal() if dlm.is_causal else plan, progress=False)
    return {name: partial(run, interventions=several) for name, several in edits.items()}


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny-dlm", "smollm2-135m", "smollm2-135m-diffusion"])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20, help="time for each model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{common.header()}\n")
    common.heading("model", "prompts", "plain, s", "everywhere", "response", "runs")
    for name in args.models:
        size = args.prompts if name.startswith("tiny") else max(1, args.prompts // 8)
        try:
            several = jobs(name, size, 32 if name.startswith("tiny") else 8)
        except CheckpointError as error:
            print(f"{name}: left out, {error}")
            continue
        times, runs = common.medians(several, args.seconds)
        ratios = [f"{times[which] / times['plain']:.2f} x" for which in ("everywhere", "response")]
        common.row(name, size, f"{times['plain']:.3f}", *ratios, runs)


if __name__ == "__main__":
    main()
