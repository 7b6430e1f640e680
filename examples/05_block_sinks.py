# %% [markdown]
# # Where are sinks when the past is frozen?
#
# One base, three objectives: a model that sees everything at every step, one that writes block by block and sees no
# later block, and one that writes from left to right. Where are their sinks, can they move, does a block's first step
# know its important keys (MAGE, arXiv 2602.14209), and what does it cost to mask the key that receives most?
#
# `python examples/05_block_sinks.py` asks the bundled twins (half a minute on two cores); with `--hub` it asks
# Qwen3-0.6B and what dllm made of it (3 GB from the Hub; a GPU helps). `--prompts=N` and a seed may follow. It ends
# with a page, `sinklens-blocks/report.html`.

# %%
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import sinklens as sl
from sinklens import plots, report
from sinklens.analysis import attention
from sinklens.analysis.first_step import first_step_recall

torch.set_num_threads(1)
HUB = "--hub" in sys.argv
SEED = next((int(word) for word in sys.argv[1:] if word.isdigit()), 0)
PROMPTS = next((int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("--prompts=")), 32)
OUT = Path("sinklens-blocks")
if HUB:
    NAMES = {
        "whole canvas": "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",
        "block by block": "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",
        "left to right": "Qwen/Qwen3-0.6B",
    }
    task, plan, metric = sl.tasks.facts(PROMPTS), sl.Plan(new_tokens=32, block_length=32), "accuracy"
else:
    NAMES = {"whole canvas": "tiny-dlm", "block by block": "tiny-bdlm", "left to right": "tiny-arm"}
    task, plan, metric = sl.tasks.Echo(n=PROMPTS, seed=SEED), sl.Plan(new_tokens=32, block_length=4), "accuracy"
models = {kind: sl.HookedDLM.from_pretrained(name) for kind, name in NAMES.items()}
plans = {kind: plan.for_causal() if dlm.is_causal else plan for kind, dlm in models.items()}
OUT.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Where they are
# The canvas is decoded in the same blocks by both diffusion models. A sink here is a key that gets more than 0.3 of the
# attention of the queries that are new at a step: those of the block, or of the baseline the last one. All of them see
# everything that is there, so uniform attention gives each key the same, and no key is a sink by geometry.

# %%
NEW = {kind: "last" if dlm.is_causal else "block" for kind, dlm in models.items()}
prompts = [task[index].prompt for index in range(len(task))]
records = {}
for kind, dlm in models.items():
    queries = ("all", NEW[kind])
    probes = [sl.probes.ReceivedAttention(queries=queries)]
    run = sl.denoise(dlm, prompts, plans[kind], probes=probes, seed=SEED, progress=f"{NAMES[kind]}: where")
    records[kind] = run.record


def rule(kind):
    """More than 0.3 of the new queries' attention."""
    return sl.SinkRule(0.3, "share", queries=NEW[kind])


def places(kind):
    """On what kind of key sinks are, beside how common that kind is."""
    record = records[kind]
    received = attention.received(record, NEW[kind]).transpose("prompt", "step", "layer", "head", "key")
    sinks = attention.flags(received, record, rule(kind)).to_numpy()
    there = attention.existing(record).to_numpy()
    block = attention.positions(record, NEW[kind]).to_numpy() & there
    masked = attention.positions(record, "masked").to_numpy() & there
    key = torch.arange(there.shape[-1]).numpy()
    start = block.argmax(-1)[..., None]
    kinds = {
        "first token": there & (key == 0),
        "last token before the block": there & (key == start - 1) & (key > 0),
        "first of the block": there & (key == start),
        "other masks": masked & (key != start),
    }
    taken = sum(kinds.values()) > 0
    kinds["everything else"] = there & ~taken
    lines, found, keys = [], sinks.sum(), there.sum()
    for name, where in kinds.items():
        on = (sinks & where[:, :, None, None]).sum() / max(found, 1)
        lines.append({"model": NAMES[kind], "key": name, "of sinks": on, "of keys": where.sum() / keys})
    return lines


where = pd.DataFrame([line for kind in models for line in places(kind)])

# %% [markdown]
# With seeds 0 and 1: tiny-arm's stand on the first token (58 to 59 %, of 3 % of the keys). In the block model one in
# five is the last token before the block (7 times its share), one in ten the block's own first position; the first
# token, on which nine in ten of its sinks are by the attention of all queries, is one in fifteen by that of new ones.
#
# ## 2. Can they move?
# By all queries, most of which are of finished blocks and therefore constants, and by the new ones alone.

# %%
moves = pd.concat(
    [
        sl.metrics.movement(records[kind], sl.SinkRule(0.3, "share", queries=queries)).assign(
            model=NAMES[kind], queries=queries
        )
        for kind in models
        for queries in ("all", NEW[kind])
    ],
    ignore_index=True,
)[["model", "queries", "layer", "jaccard", "ever", "always"]]

# %% [markdown]
# They can: from step to step, by the new queries, a head's sinks are others in most cases (Jaccard .14 and .36 in the
# two layers of the block model, .25 and .32 in tiny-dlm). By all queries they seem to stay (.75 in layer 0): constants
# do.
#
# ## 3. Does a block's first step know its keys?
# MAGE's recall: of the keys that a block attends to most at a step, how many were so at its first step; with as many
# keys by chance beside it.

# %%
TOP = 64 if HUB else 4
recall = pd.concat(
    [first_step_recall(records[kind], TOP).assign(model=NAMES[kind]) for kind in models if NEW[kind] == "block"],
    ignore_index=True,
)[["model", "layer", "within", "recall", "chance", "mass", "chance_mass", "cases"]]

# %% [markdown]
# More than chance, and less than all: of the top four keys (chance .13) three are known one step later and .6 of them
# at the block's last step, with three quarters of the attention that the step's own top four receive.
#
# ## 4. What masking costs, in both meanings
# The key that receives most from the new queries of this very step gets -inf, in every layer and head, against as many
# random keys. From scratch: every position is edited at every step, as if the model had always been so. Local: as in a
# decoder with a cache, only what a step computes. A model that sees the whole canvas has no past, and one meaning.

# %%
edits = {f"top-{k}": sl.MaskSinks(sl.SameStep(top_k=k)) for k in (1, 3)}
results = {}
for kind, dlm in models.items():
    for editing in ("scratch", "local") if NEW[kind] == "last" or dlm.in_blocks is not None else ("scratch",):
        results[kind, editing] = sl.ablate(
            dlm,
            task,
            edits,
            replace(plans[kind], editing=editing),
            metrics=[metric],
            seeds=[SEED],
            save_to=OUT / "scores.jsonl",
            progress=f"{NAMES[kind]}: masking, {editing}",
        )
costs = pd.concat(
    [result.summary().assign(editing=editing).query("metric == @metric") for (_, editing), result in results.items()],
    ignore_index=True,
)[["model", "editing", "condition", "kind", "value", "low", "high", "exposed"]]

# %% [markdown]
# With seeds 0 and 1, of an accuracy of 1.00 (random keys: .98 at least): without its top key tiny-dlm keeps .94 to .97,
# the block model .67 to .74, tiny-arm .23 to .41; without the top three .78 to .92, .14 to .20, .06 to .14. Both
# meanings agree, here: the model between the two others is the one that writes block by block, in either.
#
# ## The page

# %%
TABLES = {
    "Where sinks are (more than 0.3 of the new queries' attention)": where,
    "Can they move: Jaccard of consecutive steps, keys that are ever and always a sink": moves,
    f"Recall of the block's first step, top {TOP}": recall,
    "Accuracy with the top keys masked, and as many random ones": costs,
}
for caption, table in TABLES.items():
    print(f"\n{caption}", table.round(3).to_string(index=False), sep="\n")
page = report.write(
    OUT / "report.html",
    title="Sinks when the past is frozen",
    intro=f"{', '.join(NAMES.values())}: one base, three objectives. {len(prompts)} prompts, seed {SEED}.",
    sections=[
        report.Section(
            "Where, whether they move, and what they cost",
            "All by the queries that are new at a step. Masking: by the same step's attention, from scratch or local.",
            [(caption, table.round(3)) for caption, table in TABLES.items()],
            [
                *(
                    plots.timeline(records[kind], rule=rule(kind), title=f"{NAMES[kind]}, new queries")
                    for kind in models
                ),
                *(plots.conditions([each], title=f"{NAMES[kind]}, {how}") for (kind, how), each in results.items()),
            ],
        )
    ],
    footer="written by examples/05_block_sinks.py",
)
print(f"\n{page}")
