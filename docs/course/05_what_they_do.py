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
# # 5. What do they do?
#
# A key that many queries look at may carry what they need, or nothing at all: a place to rest attention that has
# nowhere to go. Attention patterns cannot tell. This chapter looks behind them: at values and key norms, at what
# happens when keys are dropped for good, at directions, and at which activation carries an answer at which step.
#
# ## Learning goals
#
# You will be able to
#
# - tell a resting sink from an informative one, by its values and by an edit;
# - compare budgets of keys at equal cost, and read a control that wins;
# - steer with a direction, and build the control that a steering claim needs;
# - locate an answer by patching, step by step.

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

dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
arm = sl.HookedDLM.from_pretrained("tiny-arm")
task = sl.tasks.Echo(n=6, seed=1)
prompts = [task[i].prompt for i in range(6)]
probes = [sl.probes.ReceivedAttention(), sl.probes.KeyNorm(), sl.probes.ValueNorm()]
records = {model.name: sl.denoise(model, prompts, sl.Plan(new_tokens=32), probes=probes).record for model in (dlm, arm)}

# %% [markdown]
# ## Values: what is carried away
#
# A query takes from a key its weight times its **value** vector. A value near zero: nothing is carried away,
# whatever the attention.

# %% [markdown]
# **Exercise 5.1.** In tiny-arm: the mean value norm of the keys that are sinks (by `sl.SinkRule()`), divided by the
# mean value norm of the keys that are not. One number; means over all prompts, steps, layers, heads and keys.

# %%
quiet = None  # your answer
sl.course.check("5.1", quiet)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `sl.metrics.sinks(record)` is boolean, [prompt, step, layer, head, key]; `record["value_norm"]` has the dim
# `kv_head`, which is as long as `head` here: `.rename(kv_head="head")`. `.where(...)` then `.mean()`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# record = records["tiny-arm"]
# norms = record["value_norm"].rename(kv_head="head")
# sinks = sl.metrics.sinks(record)
# quiet = float(norms.where(sinks).mean() / norms.where(~sinks).mean())
# ```
#
# </details>

# %%
sl.plots.key_norms(records["tiny-dlm"])

# %% [markdown]
# *Each point is a key: its norm, and what it receives; sinks are marked. In tiny-dlm large keys receive more, the
# opposite of what is published for autoregressive models. Whether norms predict attention depends on the model:
# measure it.*
#
# ## Edits: silence against mask
#
# Silencing a key's value leaves all attention where it is; masking the key sends the attention elsewhere. A resting
# sink can be silenced for free. Two models with weights set by hand know the answer: one head of each has a sink,
# which is informative in one of them and resting in the other.

# %%
hidden = {"A": sl.planted_model("resting"), "B": sl.planted_model("informative")}  # pretend that you did not read this


def right(model, edit=None):
    """The share of eight answers that is right: each is one token."""
    shares = []
    for seed in range(8):
        example = model.example(seed)
        plan = sl.Plan(new_tokens=len(example.answer))
        edits = [] if edit is None else [edit]
        tokens = sl.denoise(model.dlm, torch.tensor([example.prompt]), plan, interventions=edits).tokens
        shares.append((tokens[0, -len(example.answer) :] == torch.tensor(example.answer)).float().mean())
    return float(torch.stack(shares).mean())


rule = sl.SinkRule()
silence, mask = sl.interventions.ZeroValue(sl.SameStep(rule)), sl.MaskSinks(sl.SameStep(rule))
for name, model in hidden.items():
    print(f"{name}: unedited {right(model):.2f}  silenced {right(model, silence):.2f}  masked {right(model, mask):.2f}")

# %% [markdown]
# **Exercise 5.2.** Which one is which? A dict `{"A": ..., "B": ...}` of `"resting"` and `"informative"`. (Decide by
# the printed numbers.)

# %%
roles = None  # your answer
sl.course.check("5.2", roles)

# %% [markdown]
# <details><summary>Hint</summary>
#
# One of them does not notice that its sink's value is gone.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# roles = {"A": "resting", "B": "informative"}
# ```
#
# </details>

# %% [markdown]
# Note what masking did to A: a resting sink is *needed as a place*, though it carries nothing. Without it the head
# must look at something that does carry. Now the trained model:

# %%
echo = sl.tasks.Echo(n=12, seed=3)
edits = {"silence": silence, "silence the last query's top key": sl.interventions.parse("zero_value:same/top1")}
found = sl.ablate(arm, echo, edits, sl.Plan(new_tokens=32), controls=None, metrics=["forced_accuracy"])
found.summary()[["condition", "value", "low", "high", "exposed"]].round(2)

# %% [markdown]
# tiny-arm's sink by the rule rests: silenced, nothing changes. The key that the last query looks at **most** is
# another matter: in the heads that do the task, it is the answer. "Top key" and "sink" are two definitions.
#
# ## Budgets: which keys are enough?
#
# Keep a share of the keys, drop the others. By what you keep: the most attended, the smallest key norm ([arXiv
# 2406.11430](https://arxiv.org/abs/2406.11430)), or at random.

# %%
curve = sl.budget_curve(
    dlm,
    sl.tasks.Echo(n=8, seed=3),
    rates=(0.25, 0.5, 0.75),
    selectors=("received", "key_norm", "random"),
    plan=sl.Plan(new_tokens=32),
    metrics=["forced_accuracy"],
    gates={},
    sinks=None,
)
sl.plots.budget_curves({"tiny-dlm": sl.budget_table(curve)})

# %% [markdown]
# *Accuracy against the share of keys that is kept, one line per way to choose, with intervals. The smallest key
# norms lie below random keys.*

# %% [markdown]
# **Exercise 5.3.** At a rate of 0.5: how much better (positive) or worse (negative) is keeping the smallest key
# norms than keeping random keys? One number, from `sl.budget_table(curve)` (column `to_random`).

# %%
norm_effect = None  # your answer
sl.course.check("5.3", norm_effect)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The row with `selector == "key_norm"` and `rate == 0.5`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# table = sl.budget_table(curve).set_index(["selector", "rate"])
# norm_effect = table.to_random["key_norm", 0.5]
# ```
#
# </details>

# %% [markdown]
# A published rule that is *worse than chance* here. It was found for the caches of autoregressive models, and there it
# holds (`sinklens reproduce l2 --model smollm2-135m` shows it). Without the random control you would have blamed the
# budget: so few keys. As many random ones keep most of the accuracy.
#
# ## Steering, and its control
#
# A direction is a difference of means. Behind a trigger in `w` the model writes the last word but one, behind one in
# `x` the last. Can a direction switch the rule?


# %%
def beginnings(seed, rule, count=48):
    """Texts that end in a trigger of a rule (1: x, 2: w), and the last word but one before it."""
    echo, texts = sl.tasks.Echo(n=400, seed=seed), []
    for ids in echo.texts:
        for end in range(6, len(ids)):
            words = [word for word in ids[:end] if word >= echo.grammar.first_word][-2:]
            if echo.grammar.rule[ids[end]] == rule and len(set(words)) == 2:
                texts.append((echo.grammar.text(ids[: end + 1]), echo.grammar.tokens[words[0]]))
                break
    return texts[:count]


to_w = [text for text, _ in beginnings(5, 2)]
to_x = [text for text, _ in beginnings(6, 1)]
direction = sl.directions.difference(dlm, to_w, to_x, layers=0, masks=1, positions="masked")
held_out = beginnings(7, 1)


def switched(*edits):
    """The share of held-out texts in which the model writes the last word but one behind an x."""
    run = sl.denoise(dlm, [text for text, _ in held_out], sl.Plan(new_tokens=1), interventions=edits)
    return float(np.mean([got.strip() == word for got, (_, word) in zip(run.completions, held_out, strict=True)]))


print("unsteered", switched(), " steered", round(switched(sl.Steer(direction, 2.0, positions="masked")), 2))

# %% [markdown]
# **Exercise 5.4.** Any large push changes what a model writes. Write `control(vector, seed)`: a random vector of
# shape (d_model,) that is a fair control for `vector` (a tensor of that shape): the same length, another direction,
# the same for the same seed.

# %%
control = None  # your answer
sl.course.check("5.4", control)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.randn(..., generator=torch.Generator().manual_seed(seed))`, then scale it.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def control(vector, seed):
#     drawn = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
#     return drawn * vector.norm() / drawn.norm()
# ```
#
# `sl.ablate(..., controls="random_direction")` does this for you.
#
# </details>

# %%
questions = sl.tasks.Jsonl(
    "the other rule",
    examples=tuple(sl.tasks.Example(text, word, f"text {i}") for i, (text, word) in enumerate(held_out)),
)
steering = sl.ablate(
    dlm,
    questions,
    {"to w": sl.Steer(direction, 2.0, positions="masked")},
    sl.Plan(new_tokens=1),
    controls="random_direction",
    metrics=["accuracy"],
)
steering.summary()[["kind", "value", "low", "high"]].round(2)

# %% [markdown]
# ## Patching: which activation, at which step?
#
# Two runs that differ in one word. At each step, one activation of the clean run is put into the corrupt one. Effect
# 1: the clean answer is back; 0: nothing changed.

# %%
patches = sl.patch(dlm, "pante dolko xe dolko", "pante tuste xe tuste", sl.Plan(new_tokens=8), sl.Patches("mlp"))
sl.plots.patching(patches)

# %% [markdown]
# *Layers by positions; the slider chooses the step. At step 0 two cells of layer 0 have an effect: the two places where
# the prompts differ, the second one most. (One colour scale serves all steps, so step 0 is pale.)*

# %% [markdown]
# **Exercise 5.5.** At step 0, which (layer, position) has the largest effect of its MLP output? A tuple of two
# integers.

# %%
place = None  # your answer
sl.course.check("5.5", place)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `patches.effect.isel(prompt=0, step=0)` is [layer, position]; `np.unravel_index(values.argmax(), values.shape)`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# effect = patches.effect.isel(prompt=0, step=0).values
# place = np.unravel_index(effect.argmax(), effect.shape)
# ```
#
# </details>

# %%
tokens = patches.text_clean.values[0]
print({position: tokens[position] for position in range(5)})

# %% [markdown]
# The word's *last* occurrence in the prompt carries most of it: the rule says "the last word again", and that is where
# the model reads it. Not all: the largest effect is about one half, and the first occurrence has some.
#
# ## What to remember
#
# - Attention says where a query looks, values say what it takes. Silence and mask ask different questions.
# - "Most attended", "sink" and "needed" are three properties; a claim names which one was edited.
# - A budget, a direction, a patch each need their own control: as many keys, as long a vector, the unpatched row.
#
# ## Reading list
#
# - "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
#   [arXiv 2406.11430](https://arxiv.org/abs/2406.11430).
# - Budget-conditioned token selection, [arXiv 2405.02330](https://arxiv.org/abs/2405.02330).
# - "Why do LLMs attend to the first token?", [arXiv 2504.02732](https://arxiv.org/abs/2504.02732).
# - [Edits, and what each conserves](../concepts/edits.md).
