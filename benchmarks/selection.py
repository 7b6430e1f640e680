"""What a selected forward costs: keys left out of attention beside the plain forward, and beside masking.

    python benchmarks/selection.py [--sizes 256 1024 4096] [--rates 0.1 0.25 0.5 1] [--d-model 768] [--layers 6]

One forward of a bidirectional and of a causal Llama with random weights (heads of 64), batch 1, with an untrained gate
that was calibrated on other random tokens, so that it keeps about the share asked for in every layer but the first:

plain    fused attention (sdpa), nobody hooks anything
dropped  the edit LearnedSelection alone: keys are left out, the fused kernel runs on the rest
masked   the same beside a probe of received attention: scores of minus infinity, in blocks of queries

Time: medians of interleaved repeats after a warm-up, as ratios to the plain forward. Target at S = 1024, rate 0.25:
dropped at most 1.10 x.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import common
import torch

import sinklens as sl
from sinklens.interventions import LearnedSelection
from sinklens.selection.batches import Batch
from sinklens.selection.gate import Gate, Shape
from sinklens.selection.measuring import calibrate


def gate_of(dlm: Any, tokens: torch.Tensor, folder: str) -> str:
    """A calibrated gate that has learned nothing."""
    gate, on = Gate.fresh(Shape(), dlm), torch.ones_like(tokens, dtype=torch.bool)
    calibrate(dlm, gate, Batch(tokens, on, on, tokens))
    return str(gate.save(folder))


def selected(dlm: Any, tokens: torch.Tensor, edit: LearnedSelection, counts: dict[str, float], *, probe: bool) -> None:
    """One forward under the edit."""
    memory, on = edit.memory(), torch.ones_like(tokens, dtype=torch.bool)
    hooks = edit.fwd_hooks(dlm, sl.Canvas(tokens, on, ~on, on, seeds=(0,)), memory)
    if probe:
        hooks += sl.probes.ReceivedAttention().fwd_hooks(dlm, seen={})
    with dlm.hooks(fwd_hooks=hooks):
        dlm(tokens)
    counts |= memory.counts()


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20, help="time for each cell")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"{common.header(args.device)}\n")
    common.heading("S", "direction", "rate", "kept", "plain, s", "dropped", "masked", "runs")
    for size in args.sizes:
        for family in ("LLaDA", "Llama"):
            stock = common.random_dlm(size, args.d_model, args.layers, device=args.device).original_model
            dlm = sl.HookedDLM.from_transformers(
                stock, None, family, ids=common.SpecialIds(common.MASK, 0, 1, 0), check=False
            )
            tokens = common.random_tokens(1, size, args.device)
            with tempfile.TemporaryDirectory() as folder:
                gate = gate_of(dlm, tokens.flip(-1), folder)
                for rate in args.rates:
                    edit, counts = LearnedSelection(gate, rate=rate), {}
                    jobs = {
                        "plain": lambda dlm=dlm, tokens=tokens: dlm(tokens),
                        "dropped": partial(selected, dlm, tokens, edit, counts, probe=False),
                        "masked": partial(selected, dlm, tokens, edit, {}, probe=True),
                    }
                    times, runs = common.medians(jobs, args.seconds, device=args.device)
                    ratios = [f"{times[name] / times['plain']:.2f} x" for name in ("dropped", "masked")]
                    kept = f"{counts['kept'] / counts['eligible']:.2f}"
                    common.row(
                        size, "causal" if dlm.is_causal else "both", rate, kept, f"{times['plain']:.3f}", *ratios, runs
                    )


if __name__ == "__main__":
    main()
