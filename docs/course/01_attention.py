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
# meet the number that this whole course is about: how much attention a key *receives*. Two traps on the way have
# caught published papers, and you.
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

dlm = sl.HookedDLM.from_pretrained("tiny-dlm")  # a diffusion language model: every token sees every other
arm = sl.HookedDLM.from_pretrained("tiny-arm")  # the same architecture, autoregressive: a token sees what is before it
prompt = sl.tasks.Echo(n=8, seed=1)[0].prompt
dlm.to_str_tokens(prompt)

# %% [markdown]
# Both models are small (two layers, four heads) and come with sinklens. Their language is a toy: words such as
# `molma`, and cues such as `dolko wu namo` that say which word comes next. Their attention is real.
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
print("sum over keys of query 0, head by head:   ", pattern[:, 0, :].sum(-1).numpy().round(3))
print("sum over queries of key 0, head by head:  ", pattern[:, :, 0].sum(-1).numpy().round(3))

# %% [markdown]
# A query has exactly 1 to give: each **row** sums to 1. A key may receive any amount: a **column** sums to what it
# gets. Look for bright vertical stripes.

# %%
import plotly.express as px

names = dlm.to_str_tokens(prompt)
labels = [f"{i} {name}" for i, name in enumerate(names)]
figure = px.imshow(pattern[0].numpy(), x=labels, y=labels, color_continuous_scale="Viridis", zmin=0)
figure.update_layout(
    title="Layer 0, head 0: who looks at whom",
    xaxis_title="key (is looked at)",
    yaxis_title="query (looks)",
    height=560,
)

# %% [markdown]
# *A square of 16 by 16: rows are queries, columns are keys. The first column is bright from top to bottom: many
# queries look at the first token.*
#
# ## Received attention

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
print("received by each key, head 0:", shown[0].numpy().round(2))

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
# The equation is printed for column **means**: the column sum divided by the number of queries.

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
try:
    sl.SinkRule(epsilon=3.0, units="mean")
except ValueError as error:
    print(error)

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
# `sl.SinkRule(epsilon=3.0)(pattern.sum(1))` gives the same.
#
# </details>

# %% [markdown]
# ## The causal null
#
# Now the autoregressive model, on the same words.

# %%
_, cache = arm.run_with_cache(arm.to_tokens(prompt))
causal = cache["blocks.1.attn.hook_pattern"][0]
print("received by the first key, head by head:", causal[:, :, 0].sum(-1).numpy().round(2))

# %% [markdown]
# Fourteen of sixteen: that is a sink. But be careful. In a causal model the first key is seen by *every* query, the
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
even = np.tril(np.ones((16, 16)))
lone = (even / even.sum(1, keepdims=True)).sum(0)
print("uniform causal attention gives the first key", round(float(lone[0]), 2))
for length in (16, 64, 256):
    every = np.tril(np.ones((length, length)))
    column = torch.tensor((every / every.sum(1, keepdims=True)).sum(0))
    print(f"{length:4} tokens: sinks by epsilon = 3 with no preference at all:", int(sl.SinkRule()(column).sum()))

# %% [markdown]
# With enough tokens a causal model without any preference has "sinks" by epsilon = 3. That is why sinklens prints
# the causal null beside every count, and why the paper counts only the last query of autoregressive models.
#
# ## A record
#
# You have done by hand what a probe does at every step. This is what the rest of the course reads:

# %%
run = sl.denoise(dlm, prompt, sl.Plan(new_tokens=16), probes=[sl.probes.ReceivedAttention()])
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
