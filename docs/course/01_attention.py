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
# # 1. Attention by hand
#
# A transformer decides, for every token, which other tokens to look at. Here you open one, add up what you see, and
# meet the number that this whole course is about: how much attention a key *receives*. Two traps lie on the way: a
# threshold without a unit, and a model that looks biased because of its geometry.
#
# ## Learning goals
#
# You will be able to
#
# - read an attention pattern, and say along which axis it sums to 1;
# - compute what a key receives, and say in which unit;
# - say what uniform attention would give, in a bidirectional and in a causal model;
# - decide whether a key is a sink, and say by which rule.

# %%
# Installs sinklens where it is not there (Colab, a new environment); does nothing elsewhere.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:
    wanted = ["sinklens[course]==0.1.0", "transformers==5.23.0", "transformer-lens==4.3.0", "plotly==7.1.0"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)

# %%
import numpy as np
import torch

import sinklens as sl

# A diffusion language model: every token sees every other.
dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
# The same architecture, autoregressive: a token sees what is before it.
arm = sl.HookedDLM.from_pretrained("tiny-arm")
prompt = sl.tasks.Echo(n=8, seed=16)[1].prompt
print(dlm.to_str_tokens(prompt)[:8])
print(dlm.to_str_tokens(prompt)[8:])

# %% [markdown]
# Both models are small (two layers, four heads) and come with sinklens. Their language is a toy: words such as
# `dolko`, and cues such as `xo` or `wu` that say which word comes next. Their attention is real.
#
# ## A pattern
#
# `run_with_cache` is TransformerLens's: one forward, every activation kept. The pattern of layer 0 has four axes:
# batch, head, **query** (who looks) and **key** (who is looked at).

# %%
tokens = dlm.to_tokens(prompt)
_, cache = dlm.run_with_cache(tokens)
pattern = cache["blocks.0.attn.hook_pattern"][0]  # [head, query, key]
print("heads, queries, keys:", tuple(pattern.shape))
print("query 0, sum over keys:  ", pattern[:, 0, :].sum(-1).numpy().round(3))
print("key 0, sum over queries: ", pattern[:, :, 0].sum(-1).numpy().round(3))

# %% [markdown]
# A query has exactly 1 to give: each **row** sums to 1. A **column** sums to what its key gets, from 0 up to the
# number of queries. Where in the picture would you see a key that many queries look at?

# %%
import plotly.express as px

names = dlm.to_str_tokens(prompt)
labels = [f"{i} {name}" for i, name in enumerate(names)]
viridis = sl.plots.SCALE
figure = px.imshow(pattern[2].numpy(), x=labels, y=labels, zmin=0, color_continuous_scale=viridis)
figure.update_layout(title="Layer 0, head 2: who looks at whom", height=560)
figure.update_xaxes(title="key (is looked at)")
figure.update_yaxes(title="query (looks)")
sl.plots.themed(figure)

# %% [markdown]
# *A square of 16 by 16: rows are queries, columns are keys. The first column, the key `<|bos|>`, has four bright cells:
# the queries `wi`, `xo`, `wu` and `xe`, all of them cues, give it most of their attention; most others little.*
#
# ## Received attention
#
# How bright is a column in all? That is what its key receives, and the quantity on which every rule for sinks stands.

# %% [markdown]
# **Exercise 1.1.** What does each key receive in layer 0? Give an array of shape (heads, keys): the sum over
# queries. Unit: column sum.

# %%
received = None  # your answer
sl.course.check("1.1", received)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `pattern` is [head, query, key]. Over which axis must you sum so that heads and keys stay?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# received = pattern.sum(1)
# ```
#
# </details>

# %% [markdown]
# sinklens measures the same thing inside a hook, without keeping the pattern. An independent computation is a good
# habit:

# %%
shown = cache["blocks.0.attn.hook_received"][0]
print("largest difference:", float((shown - pattern.sum(1)).abs().max()))
print("received by each key, head 2:")
print(shown[2].numpy().round(2))

# %% [markdown]
# **Exercise 1.2.** Before you compute it: what is the **average** of what the keys of one head receive? One number.
# Does it depend on the model, on the text, on the number of tokens?

# %%
average = None  # your answer
sl.course.check("1.2", average)

# %% [markdown]
# <details><summary>Hint</summary>
#
# There are as many queries as keys here. How much do all queries together have to give?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# average = 1.0
# ```
#
# N queries give 1 each, so N keys share N. Uniform attention gives each key exactly 1.
#
# </details>

# %% [markdown]
# ## The units trap
#
# "Attention Sinks in Diffusion Language Models" ([arXiv 2510.15731](https://arxiv.org/abs/2510.15731)), equation 3,
# calls key j a sink when what it receives exceeds the mean of the *other* keys by epsilon, and takes epsilon = 3.
# The equation is printed for column **means**: the column sum divided by the number of queries. Predict: how many
# sinks does it find then?

# %% [markdown]
# **Exercise 1.3.** What is the largest value that a column **mean** can possibly have, over all patterns of any
# size? One number.

# %%
largest = None  # your answer
sl.course.check("1.3", largest)

# %% [markdown]
# <details><summary>Hint</summary>
#
# All queries could look at one key alone.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# largest = 1.0
# ```
#
# So a column mean can never exceed anything by 3: read as printed, the rule cannot fire.
#
# </details>

# %% [markdown]
# A rule that can never fire finds no sinks, in any model, and looks like a discovery. sinklens reads epsilon = 3 in
# column sums, says so, and refuses the other:

# %%
import textwrap

try:
    sl.SinkRule(epsilon=3.0, units="mean")
except ValueError as error:
    print(*textwrap.wrap(str(error), 76), sep="\n")

# %% [markdown]
# **Exercise 1.4.** Apply the rule by hand. Which (head, key) pairs of `received` are sinks by epsilon = 3 in column
# sums? Give a boolean array of shape (heads, keys). Compare each key with the mean of the **other** keys.

# %%
sinks = None  # your answer
sl.course.check("1.4", sinks)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The mean of the others: `(total - own) / (keys - 1)`, where `total` is the sum over keys.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# column = pattern.sum(1)
# others = (column.sum(-1, keepdim=True) - column) / (column.shape[-1] - 1)
# sinks = column - others > 3.0
# ```
#
# `sl.SinkRule(epsilon=3.0)(pattern.sum(1))` gives the same. Three other readings do not: `column > 3` finds more,
# the mean of *all* keys (`column - 1 > 3`) fewer, column means none.
#
# </details>

# %% [markdown]
# ## The causal null
#
# Now the autoregressive model, on the same words.

# %%
_, cache = arm.run_with_cache(arm.to_tokens(prompt))
causal = cache["blocks.1.attn.hook_pattern"][0]
print("received by the first key:", causal[:, :, 0].sum(-1).numpy().round(2))

# %% [markdown]
# More than half of what sixteen queries have to give: that is a sink. But be careful. In a causal model the first key is seen by *every* query, the
# last one by a single query. What would a model give that looks at everything it can see alike?

# %% [markdown]
# **Exercise 1.5.** Let query i (counted from 0) spread its attention evenly over the keys 0 to i that it can see.
# What does each of **16** keys receive? An array of shape (16,).

# %%
null = None  # your answer
sl.course.check("1.5", null)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Key j is seen by the queries j, j + 1, ..., 15, and query i gives 1 / (i + 1) to each key that it sees.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# even = np.tril(np.ones((16, 16)))
# null = (even / even.sum(1, keepdims=True)).sum(0)
# ```
#
# </details>

# %%
uniform = np.tril(np.ones((16, 16)))
uniform = (uniform / uniform.sum(1, keepdims=True)).sum(0)
bars = {"tiny-arm, layer 1, head 0": causal[0].sum(0).numpy(), "uniform": uniform}
figure = px.bar(bars, barmode="group", color_discrete_sequence=sl.plots.COLORS)
figure.update_layout(title="What each key receives", legend_title="")
figure.update_xaxes(title="key")
figure.update_yaxes(title="column sum")
sl.plots.themed(figure)

# %% [markdown]
# *Two bars per key. Uniform causal attention falls from over 3 at the first key to almost nothing at the last. The
# model's first key receives over three times that; few of its other keys receive anything.*
#
# So this sink is no matter of geometry. Others would be:

# %%
for length in (16, 64, 256):
    every = np.tril(np.ones((length, length)))
    column = torch.tensor((every / every.sum(1, keepdims=True)).sum(0))
    count = int(sl.SinkRule()(column).sum())
    print(f"{length:4} tokens, no preference at all: sinks by epsilon = 3:", count)

# %% [markdown]
# With enough tokens a causal model without any preference has "sinks" by epsilon = 3. So sinklens prints the causal
# null beside every count. The paper's experiment on an autoregressive model (section 4.3) reads its last query alone,
# which sees every key.
#
# ## A record
#
# You have done by hand what a probe does at every step while a text is written (chapter 2). This is what the rest of
# the course reads:

# %%
plan = sl.Plan(new_tokens=16)
run = sl.denoise(dlm, prompt, plan, probes=[sl.probes.ReceivedAttention()])
received_by = run.record["received"]
print(dict(received_by.sizes), "unit:", received_by.attrs["units"])

# %% [markdown]
# ## What to remember
#
# - Rows sum to 1; columns say who is looked at. On average a key receives 1 (column sum).
# - A threshold without a unit is no threshold. Ask of every rule: can it fire, and can it fail to?
# - In a causal model uniform attention favours early keys. Subtract what geometry alone gives.
#
# ## Reading list
#
# - "Attention Sinks in Diffusion Language Models", [arXiv 2510.15731](https://arxiv.org/abs/2510.15731): section 3 and
#   equation 3.
# - "Efficient Streaming Language Models with Attention Sinks", [arXiv 2309.17453](https://arxiv.org/abs/2309.17453): the
#   first sinks.
# - "When Attention Sink Emerges in Language Models", [arXiv 2410.10781](https://arxiv.org/abs/2410.10781): another rule,
#   in shares.
# - [Sink rules and units](../concepts/sinks.md).
