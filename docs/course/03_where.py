# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Where sinks are, and how they move
#
# You can tell a sink from a key that is merely popular. Now: who are they? Do they stay? When do they appear in
# training, and what becomes of an autoregressive sink when its model is made a diffusion model? Four models answer,
# one of them real.
#
# ## Learning goals
#
# You will be able to
#
# - say over which tokens and places sinks are over-represented, and what to divide by;
# - measure how sinks move from step to step, and say what an empty set does to your number;
# - subtract what the causal mask alone gives;
# - read a training log, and tell what training did from what the mask did.

# %%
# Installs sinklens where it is not there (Colab, a new environment); does nothing elsewhere.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:
    wanted = ["sinklens[course]==0.1.0", "transformers==5.23.0", "transformer-lens==4.3.0", "plotly==7.1.0"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)

# %%
import json  # noqa: F401  (for the logs below)
from pathlib import Path

import numpy as np  # noqa: F401
import pandas as pd

import sinklens as sl

task = sl.tasks.Echo(n=6, seed=1)
prompts = [task[i].prompt for i in range(6)]
rule = sl.SinkRule()  # epsilon = 3 in column sums
records = {}
for name, queries in {"tiny-dlm": "all", "tiny-bdlm": ("all", "block"), "tiny-arm": "all"}.items():
    dlm = sl.HookedDLM.from_pretrained(name)
    run = sl.denoise(dlm, prompts, sl.Plan(new_tokens=32), probes=[sl.probes.ReceivedAttention(queries=queries)])
    records[name] = run.record

# %% [markdown]
# Three models of one architecture: tiny-dlm sees the whole text, tiny-bdlm blocks of 4 tokens and what stands before
# them, tiny-arm what stands before a token. The fourth is AntiBERTy, a masked language model of antibodies (26 million numbers, MIT licence), here filling half
# of the residues of four sequences in eight steps. It is fetched once, by `sinklens models get antiberty`; without
# it, the next cell says so.

# %%
antibodies = sl.tasks.antibodies(4)
antiberty = sl.HookedDLM.from_pretrained("antiberty")
plan = sl.Plan(new_tokens=0, steps=8)  # new_tokens=0: fill the masks inside the prompts
run = sl.denoise(antiberty, [each.prompt for each in antibodies], plan, probes=[sl.probes.ReceivedAttention()])
records["antiberty"] = run.record

# %% [markdown]
# ## Look first

# %%
sl.plots.side_by_side(records["tiny-dlm"], records["tiny-arm"], sl.plots.timeline, ("tiny-dlm", "tiny-arm"))

# %% [markdown]
# *Two heat maps, positions by steps; dots mark sinks. The diffusion model has faint sinks: its first token, and others
# that walk along with the text and come and go at its end. The autoregressive model has one bright column, its first
# token, from beginning to end.*

# %%
sl.plots.timeline(records["tiny-bdlm"], title="tiny-bdlm")

# %% [markdown]
# *The third is a staircase of blocks: four steps for four tokens, then the next four are there. Its one bright column
# is the first token, too.*
#
# ## Who are they?

# %%
tables = [sl.metrics.token_classes(record, rule).assign(model=name) for name, record in records.items()]
classes = pd.concat(tables, ignore_index=True)
classes[classes.share_of_keys > 0].round(3)

# %% [markdown]
# A third of tiny-dlm's sinks stand on masks. Is that a preference? A third of its keys *are* masks. Always divide by
# what chance would give.

# %% [markdown]
# **Exercise 3.1.** How many times more often than by chance is an end-of-text token (`eos`) a sink of tiny-dlm? One
# number: its share of sinks divided by its share of keys.

# %%
eos_ratio = None  # your answer
sl.course.check("3.1", eos_ratio)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `sl.metrics.token_classes(records["tiny-dlm"], rule)` has both columns.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# table = sl.metrics.token_classes(records["tiny-dlm"], rule).set_index("token_class")
# eos_ratio = table.share_of_sinks["eos"] / table.share_of_keys["eos"]
# ```
#
# </details>

# %%
sl.plots.token_classes(classes)

# %% [markdown]
# *Bars per token class and model: share of sinks beside share of keys. BOS and EOS of tiny-dlm stand out by their
# ratio, masks do not; nearly all sinks of tiny-bdlm and all of tiny-arm stand on BOS; most of AntiBERTy's stand on
# residues ("words").*
#
# ## The null again
#
# tiny-arm has a sink in every head of layer 1, at every step. How much of that is geometry?

# %% [markdown]
# **Exercise 3.2.** How many sinks per head and step does layer 1 of tiny-arm have **beyond** what uniform causal
# attention would have? One number.

# %%
beyond = None  # your answer
sl.course.check("3.2", beyond)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `sl.metrics.per_layer(records["tiny-arm"], rule)` has a column `null`: the same count if attention were uniform.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# layers = sl.metrics.per_layer(records["tiny-arm"], rule).set_index("layer")
# beyond = layers.sinks[1] - layers.null[1]
# ```
#
# </details>

# %% [markdown]
# The count is nearly no evidence by itself: a model without preferences would reach two thirds of it. What is
# evidence is *how much* the first token receives: in chapter 1 over three times what uniform attention gives it.
#
# ## Do they move?
#
# Compare the sets of sinks of two neighbouring steps: how many are in both, of those in either. That is Jaccard's
# index, 1 if the sets are equal, 0 if they share nothing. And if both are empty?

# %% [markdown]
# **Exercise 3.3.** Write `jaccard(a, b)` for two boolean arrays of the same shape [key]. If no key is a sink in
# either, there is nothing to compare: return `nan`, so that a mean can leave it out.

# %%
jaccard = None  # your answer
sl.course.check("3.3", jaccard)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `(a & b).sum()` and `(a | b).sum()`. What does a model without any sinks score if you return 1 for two empty sets?
# And 0?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def jaccard(a, b):
#     either = (a | b).sum()
#     return float((a & b).sum() / either) if either else float("nan")
# ```
#
# Returning 1 makes a model without sinks look perfectly stable; returning 0 makes it look restless.
#
# </details>

# %%
movement = pd.concat({name: sl.metrics.movement(record, rule) for name, record in records.items()}, names=["model"])
movement.round(2)

# %% [markdown]
# `ever` counts keys that are a sink at some step, `always` those that are one at every step. tiny-arm's layer 1 has
# one sink, always. tiny-dlm's layer 1 has three that come and go, and none that stays. AntiBERTy is in between: some
# of its sinks stay, most do not. So moving sinks are no privilege of text, nor of tiny models.
#
# And tiny-bdlm, a diffusion model, has one sink in most heads of layer 0, which hardly moves. Is that the model? A
# block that is finished sees neither masks nor what comes behind it, so its rows of attention are the same at every
# later step: what a key received from them, it keeps. At the last step 44 of 48 rows are such. Ask only those who
# still decide, the four queries of the block that is being written (a key is a sink here if it gets more than .3 of
# the attention of those who are asked, and see it):

# %%
rules = {asked: sl.SinkRule(0.3, "share", queries=asked) for asked in ("all", "block")}
moved = {asked: sl.metrics.movement(records["tiny-bdlm"], each) for asked, each in rules.items()}
pd.concat(moved, names=["asked"]).round(2)

# %% [markdown]
# The same steps, and in layer 0 the overlap falls from .73 to .16: rows that cannot move had been counted as sinks that
# do not move. Whose attention is counted is part of the claim.

# %%
sl.plots.sink_lives(records["tiny-dlm"], rule)

# %% [markdown]
# *One head of layer 0, one prompt. Steps run down; each bar is a stay of one key as a sink, from birth to death. In this
# head all of them are short and late, and one is still alive at the end.*

# %% [markdown]
# **Exercise 3.4.** An *episode* is an uninterrupted stay of one key as a sink of one head. Which share of the
# episodes of tiny-dlm lasts a single step? One number from 0 to 1. `sl.dynamics.dwell` has one row per episode.

# %%
brief = None  # your answer
sl.course.check("3.4", brief)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `sl.dynamics.dwell(records["tiny-dlm"], rule)` has a column `length`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# brief = float((sl.dynamics.dwell(records["tiny-dlm"], rule).length == 1).mean())
# ```
#
# </details>

# %% [markdown]
# ## When do they appear?
#
# The bundled models carry their training logs. Attention to BOS over 4,000 updates of tiny-arm:

# %%
twins = Path(sl.__file__).parent / "twins"
sl.plots.emergence(twins / "tiny-arm")

# %% [markdown]
# *Three panels over updates on a log scale. In the heads of layer 1 attention to BOS rises from the uniform level while
# the model learns its task, and then swings widely before it ends at nearly all; layer 0 stays where it was. The count
# of sinks would not have told you: it starts above 1 and ends at 1, where uniform attention (dashed) is.*

# %% [markdown]
# **Exercise 3.5.** At which update (`step` of the log) is the share of attention that goes to BOS above 0.5 for the
# first time in **any** head of tiny-arm? One integer. Each line of `twins / "tiny-arm" / "training.jsonl"` is a JSON
# object; `bos_share` is [layer][head].

# %%
update = None  # your answer
sl.course.check("3.5", update)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Read the lines with `json.loads`; `np.max(row["bos_share"]) > 0.5`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# rows = [json.loads(line) for line in (twins / "tiny-arm" / "training.jsonl").read_text().splitlines()]
# update = next(row["step"] for row in rows if np.max(row["bos_share"]) > 0.5)
# ```
#
# </details>

# %% [markdown]
# ## A sink that dissolves
#
# SmolLM2-135M is autoregressive, and its first token is a sink in most layers. We made it a diffusion model:
# the causal mask was opened, and a small adapter (LoRA) trained for 1,000 updates. Before you look: will training
# dissolve the sink slowly, at once, or not at all?

# %%
adapted = Path(sl.__file__).parent / "adapted" / "smollm2-135m-diffusion"
sl.plots.adaptation(adapted)

# %% [markdown]
# *Three panels over updates; at the far left the causal original. First panel: the attention that the first token
# gets, one line per layer; black is their mean. Second: what sinks stand on. Third: accuracy, which falls when the mask
# opens and is learned anew.*

# %% [markdown]
# **Exercise 3.6.** What took the sink away? `"mask"` (it is gone the moment the mask opens, before a single weight
# changed), `"training"` (it falls over updates), or `"neither"`. The log is `adapted / "log.jsonl"`; its first row
# has `"causal": true`, the second is the same weights with the mask open; `sinks.first_token` is one number per
# layer.

# %%
cause = None  # your answer
sl.course.check("3.6", cause)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Compare three means over layers: the causal original, update 0, the last update.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# rows = [json.loads(line) for line in (adapted / "log.jsonl").read_text().splitlines()]
# for row in (rows[0], rows[1], rows[-1]):
#     print(row["update"], row.get("causal", False), round(float(np.mean(row["sinks"]["first_token"])), 3))
# cause = "mask"
# ```
#
# </details>

# %% [markdown]
# ## What to remember
#
# - Shares of sinks mean nothing without shares of keys; counts mean nothing without the null.
# - Decide what an empty set is worth before you average.
# - What cannot move says nothing about moving: ask whose attention is counted.
# - A before and after needs the step between: here the mask did what training would have been credited with.
#
# ## Reading list
#
# - "Attention Sinks in Diffusion Language Models", [arXiv 2510.15731](https://arxiv.org/abs/2510.15731), section 4: moving
#   sinks in LLaDA, Dream and MMaDA.
# - "Revealing the Attention Floating Mechanism in Masked Diffusion Models",
#   [arXiv 2601.07894](https://arxiv.org/abs/2601.07894): anchors that drift.
# - "When Attention Sink Emerges in Language Models", [arXiv 2410.10781](https://arxiv.org/abs/2410.10781).
# - [Sink rules and units](../concepts/sinks.md).
