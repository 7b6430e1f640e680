"""Do the keys that a block attends to at its first step stay those that it attends to? MAGE's measure, with chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sinklens.analysis.attention import CELL, existing, positions, received
from sinklens.errors import RecordError
from sinklens.values.kinds import Count, reads


@reads()
def first_step_recall(record: xr.Dataset, top_k: Count = 4) -> pd.DataFrame:
    """How many of the keys that a block's queries attend to most at a step were so at the block's first step.

    At its first step a block is nothing but masks. `recall` is the share of the step's own `top_k` keys that are among
    the first step's; `mass` what the first step's keys receive, of what the step's own receive. Unit: shares in [0, 1],
    mean over prompts, heads and blocks; 1: the first step says it all. `chance` and `chance_mass` are the same of as
    many keys by chance, in expectation: a small window makes them large.
    Source: arXiv 2602.14209 (MAGE), which lets a block's first step choose its keys; chance is sinklens's.

    Args:
        record: Of a run with `ReceivedAttention(queries="block")`, of a model that sees block by block, or is decoded
            so (`Plan(block_length=...)`).
        top_k: How many keys.

    Returns:
        A line per layer and step within the block (1: the step behind the first): layer, within, recall, chance, mass,
        chance_mass, and how many (prompt, step, head) it is the mean of, `cases`.

    Raises:
        RecordError: other queries were measured, no block takes two steps, or fewer keys than `top_k` + 1 were there.
    """
    values = received(record, "block").transpose(*CELL, "key")
    there = existing(record).transpose("prompt", "step", "key").to_numpy()
    block = positions(record, "block").transpose("prompt", "step", "key").to_numpy()
    attention = torch.from_numpy(values.to_numpy())
    layers = [int(layer) for layer in values["layer"].to_numpy()]
    lines: list[dict[str, Any]] = []
    for prompt in range(len(there)):
        first = 0
        for step in np.flatnonzero(there[prompt].any(-1)).tolist():
            if step == 0 or not np.array_equal(block[prompt, step], block[prompt, step - 1]):
                first = step
                continue
            keys = int(there[prompt, step].sum())
            if keys <= top_k:
                raise RecordError(
                    f"top_k={top_k}: prompt {prompt} has {keys} keys at step {step}, and every one of them would be "
                    "chosen; ask for fewer, or give longer prompts"
                )
            here = torch.tensor(there[prompt, step])
            now, before = (attention[prompt, at][..., here] for at in (step, first))
            own, chosen = (torch.zeros_like(now).scatter(-1, each.topk(top_k).indices, 1.0) for each in (now, before))
            best, total = (now * own).sum(-1), now.sum(-1)
            measures = {
                "recall": (own * chosen).sum(-1) / top_k,
                "chance": torch.full_like(best, top_k / keys),
                "mass": (now * chosen).sum(-1) / best,
                "chance_mass": total * top_k / keys / best,
            }
            for index, layer in enumerate(layers):
                means = {name: float(each[index].double().mean()) for name, each in measures.items()}
                lines.append({"layer": layer, "within": step - first, **means, "cases": now.shape[1]})
    if not lines:
        raise RecordError("no block of this record takes two steps, so that nothing can stay or go; take more steps")
    table: Any = pd.DataFrame(lines).groupby(["layer", "within"], as_index=False)
    shares = table[["recall", "chance", "mass", "chance_mass"]].mean()
    return shares.assign(cases=table["cases"].sum()["cases"])
