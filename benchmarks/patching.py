"""Patches of 2 layers x 4 heads x 32 positions x 16 steps on tiny-dlm: many in one forward, against one forward each.

    python benchmarks/patching.py

one by one  the straightforward way: every patch is one `dlm.run_with_hooks(tokens, fwd_hooks=...)` with a hook that
            sets one head at one position, and the logit difference of its logits. Only the component that is hooked is
            put in; the clean activations of a step are read once. No finiteness of logits is checked.
together    `sl.patch`: decoding both prompts, the unpatched forwards, all checks and the record are in its time

Both on the same canvases (both runs follow the clean run's commits), with the same answers; one by one for every
sixteenth patch, times 16. All run in this process, interleaved, and it is checked that they measure the same. Target:
together at least 8 x faster, for mixed values; the other sites with heads are beside them.
"""

from __future__ import annotations

from typing import Any

import common
import torch
import xarray as xr
from torch import Tensor

import sinklens as sl

CLEAN = "pante dolko xy dolko xe dolko talma wi dolko we dolko wi dolko talma xa"
PLAN = sl.Plan(new_tokens=16)
POINTS = {"mixed": "attn.o.hook_in", "values": "attn.v.hook_out", "pattern": "attn.hook_pattern"}
EVERY = 16  # of the patches one is run by itself


def one_by_one(dlm: sl.HookedDLM, record: xr.Dataset, site: str) -> dict[tuple[int, ...], float]:
    """Every sixteenth patch of a record by itself: the metric, by step, layer, head and position."""
    found: dict[tuple[int, ...], float] = {}
    answers = [record[f"answer_{name}"][0].to_numpy() for name in ("clean", "corrupt")]
    masked = (record["masked_clean"] == 1) & (record["masked_corrupt"] == 1)
    count = 0
    for step in range(record.sizes["step"]):
        clean, corrupt = (
            torch.tensor(record[f"canvas_{name}"][0, step].to_numpy())[None] for name in ("clean", "corrupt")
        )
        places = [p for p in range(clean.shape[1]) if answers[0][p] >= 0 and masked[0, step, p]]
        ids = [[int(answer[p]) for p in places] for answer in answers]
        for layer in range(2):
            point = f"blocks.{layer}.{POINTS[site]}"
            kept: list[Tensor] = []
            dlm.run_with_hooks(clean, fwd_hooks=[(point, lambda x, hook, kept=kept: kept.append(x))])
            for head in range(4):
                for position in range(clean.shape[1]):
                    count += 1
                    if count % EVERY:
                        continue
                    at = (0, head, position) if site == "pattern" else (0, position, head)

                    def put(tensor: Tensor, hook: Any, at: Any = at, kept: list[Tensor] = kept) -> Tensor:
                        out = tensor.clone()
                        out[at] = kept[0][at]
                        return out

                    logits = dlm.run_with_hooks(corrupt, fwd_hooks=[(point, put)])[0, places]
                    row = torch.arange(len(places))
                    value = (logits[row, ids[0]] - logits[row, ids[1]]).mean()
                    found[step, layer, head, position] = float(value)
    return found


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    print(common.header())
    dlm, corrupt = sl.HookedDLM.from_pretrained("tiny-dlm"), CLEAN.replace("talma", "tuste")
    answers = ([53] * 16, [59] * 16)  # told apart at every position, so that all 16 steps are asked

    def together(site: Any) -> xr.Dataset:
        patches = sl.Patches(site, "both", commits="clean", least=1e-9)
        return sl.patch(dlm, CLEAN, corrupt, PLAN, patches, answers=answers, progress=False)

    for site in POINTS:
        record = together(site)
        found: dict[str, Any] = {}
        ways = {
            "one by one": lambda found=found, site=site, record=record: found.update(
                alone=one_by_one(dlm, record, site)
            ),
            "together": lambda found=found, site=site: found.update(record=together(site)),
        }
        seconds, rounds = common.medians(ways, 45)
        patched = found["record"]["patched"][0].to_numpy()
        worst = max(abs(patched[at] - value) for at, value in found["alone"].items())
        alone, both = seconds["one by one"] * EVERY, seconds["together"]
        print(
            f"{site}: {patched.size} patches {patched.shape}, {rounds} runs each: one by one {alone:.1f} s, together "
            f"{both:.1f} s, {alone / both:.1f} x{' (target 8)' if site == 'mixed' else ''}; they differ by {worst:.1e}"
        )


if __name__ == "__main__":
    main()
