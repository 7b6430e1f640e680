"""How the cost of received attention grows with the length S, the number of layers and the number of prompts.

    python benchmarks/growth.py [--sizes 256 512 1024 2048 4096] [--layers 2 4 8] [--prompts 1 4 16]

One forward of a bidirectional Llama with random weights (d_model 256, 4 heads) with the probe ReceivedAttention, by
blocks of queries ("blocks") and by whole patterns ("pattern"), against the same forward without it. One number at a
time is varied; the others are S = 1024, 4 layers, 1 prompt. Time: medians of interleaved repeats after a warm-up, as
ratios. Memory: peak beyond that of the plain forward; on a CPU the resident size, each in a fresh process, on a GPU
what torch allocates. Below the first table: the exponent of that memory in S, the slope of a line through the
logarithms (sizes that add less than 4 MB are left out, as noise; "-" where fewer than two are left). Expected: 2 for
whole patterns, at most 1 for blocks, and no growth with the layers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from functools import partial

import common
import torch

WAYS, NOISE = ("plain", "blocks", "pattern"), 4.0
BASE = {"size": 1024, "layers": 4, "prompts": 1}


def ways(size: int, layers: int, prompts: int, d_model: int, device: str) -> dict[str, common.Job]:
    """One forward by each way."""
    dlm = common.random_dlm(size, d_model, layers, device=device)
    tokens = common.random_tokens(prompts, size, device)
    probed = {path: partial(common.received, dlm, tokens, path) for path in WAYS[1:]}
    return {"plain": partial(dlm, tokens), **probed}


def one_way(way: str, shape: tuple[int, int, int, int, str]) -> common.Job:
    """For a fresh process."""
    return ways(*shape)[way]


def measure(size: int, layers: int, prompts: int, d_model: int, device: str, seconds: float) -> dict[str, float]:
    """Print a row; the megabytes that each path adds."""
    shape = (size, layers, prompts, d_model, device)
    todo = ways(*shape)
    took, rounds = common.medians(todo, seconds, device=device)
    peaks = common.peaks(todo, one_way, shape, device=device)
    more = {path: max(peaks[path] - peaks["plain"], 0.0) for path in WAYS[1:]}
    cells = [f"{took[path] / took['plain']:.2f} ({more[path]:.0f})" for path in more]
    common.row(size, layers, prompts, rounds, f"{1000 * took['plain']:.0f}", *cells)
    return more


def exponent(more: Mapping[int, float]) -> str:
    """Slope of log megabytes over log S."""
    points = [(math.log(size), math.log(added)) for size, added in more.items() if added >= NOISE]
    return f"{statistics.linear_regression(*zip(*points, strict=True)).slope:.2f}" if len(points) > 1 else "-"


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    options = common.parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    options.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    options.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--d-model", type=int, default=256)
    options.add_argument("--device", default="cpu")
    options.add_argument("--seconds", type=float, default=4.0, help="for the repeats of one row; at least 2 are made")
    asked = options.parse_args()
    print(common.header(asked.device))
    for name, values in (("size", asked.sizes), ("layers", asked.layers), ("prompts", asked.prompts)):
        print(f"\nBy {'S' if name == 'size' else name}: x plain (MB more)\n")
        common.heading("S", "layers", "prompts", "runs", "plain, ms", *WAYS[1:])
        more: dict[int, dict[str, float]] = {}
        for value in values:
            shape = {**BASE, name: value}
            more[value] = measure(**shape, d_model=asked.d_model, device=asked.device, seconds=asked.seconds)
        if name == "size":
            slopes = {path: exponent({size: added[path] for size, added in more.items()}) for path in WAYS[1:]}
            print("\nExponent of the memory in S: " + ", ".join(f"{path} {slope}" for path, slope in slopes.items()))


if __name__ == "__main__":
    main()
