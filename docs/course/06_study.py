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
# # 6. Your own probe, your own study
#
# You can read other people's results now. This chapter is about making your own: a probe in ten lines, tested where
# the answer is known; a question with a margin, written down before the numbers; a run that survives an interrupt; a
# report that says what does not hold.
#
# ## Learning goals
#
# You will be able to
#
# - write a probe, and test it on a model whose answer is known;
# - say what your number would be if the model did nothing;
# - read an interval against a margin, and correct for many questions;
# - go from a question to a page that you can send.

# %%
# Installs sinklens where it is not there (Colab, a new environment); does nothing elsewhere.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:
    wanted = ["sinklens[course]==0.1.0", "transformers==5.23.0", "transformer-lens==4.3.0", "plotly==7.1.0"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)

# %%
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

import sinklens as sl

dlm = sl.HookedDLM.from_pretrained("tiny-dlm")

# %% [markdown]
# ## A probe
#
# A probe is a frozen dataclass: a name, dims, a unit, a definition; ordinary TransformerLens hooks that put what
# they see into `seen`; and `values`, which makes the recorded tensor of it. This one measures the entropy of
# attention:


# %%
@dataclass(frozen=True)
class Entropy(sl.Probe):
    name, dims, unit = "entropy_of_queries", ("layer", "head", "query"), "nats"
    definition = "entropy of each query's attention over keys"

    def hooks(self, model, canvas, seen):
        def hook(pattern, *, hook):  # [batch, head, query, key]
            seen[hook.layer()] = -(pattern * (pattern + 1e-9).log()).sum(-1)

        return [(f"blocks.{i}.attn.hook_pattern", hook) for i in range(model.cfg.n_layers)]

    def values(self, seen):
        return torch.stack([seen[i] for i in sorted(seen)], 1)  # [batch, layer, head, query]


task = sl.tasks.Echo(n=24, seed=2)
run = sl.denoise(dlm, task[0].prompt, sl.Plan(new_tokens=16), probes=[Entropy()])
print(dict(run.record["entropy_of_queries"].sizes))

# %% [markdown]
# Nothing is stored in the probe itself: one probe can watch two runs at once.

# %% [markdown]
# **Exercise 6.1.** Write a probe class `Reach`: how far each query looks. For query i: the sum over keys j of
# `pattern[i, j] * |i - j|`. Dims ("layer", "head", "query"), unit "positions", any name. Give the class, not an
# object.

# %%
Reach = None  # your answer
sl.course.check("6.1", Reach)

# %% [markdown]
# <details><summary>Hint</summary>
#
# In the hook: `places = torch.arange(pattern.shape[-1])`, and `(places[:, None] - places).abs()` is [query, key].
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# @dataclass(frozen=True)
# class Reach(sl.Probe):
#     name, dims, unit = "reach", ("layer", "head", "query"), "positions"
#     definition = "mean distance of what each query looks at"
#
#     def hooks(self, model, canvas, seen):
#         def hook(pattern, *, hook):
#             places = torch.arange(pattern.shape[-1], device=pattern.device)
#             seen[hook.layer()] = (pattern * (places[:, None] - places).abs()).sum(-1)
#
#         return [(f"blocks.{i}.attn.hook_pattern", hook) for i in range(model.cfg.n_layers)]
#
#     def values(self, seen):
#         return torch.stack([seen[i] for i in sorted(seen)], 1)
# ```
#
# </details>

# %% [markdown]
# ## What would it be, if nothing were there?
#
# "Masked queries look 9 positions far." Is that far?

# %% [markdown]
# **Exercise 6.2.** What is the reach of each query under **uniform** bidirectional attention over 32 keys? An array
# of shape (32,).

# %%
null = None  # your answer
sl.course.check("6.2", null)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The mean over j of |i - j|, for each i. The ends have farther to look than the middle.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# places = np.arange(32)
# null = np.abs(places[:, None] - places).mean(1)
# ```
#
# </details>

# %% [markdown]
# Test a probe where the answer is known. `sl.planted_model("none")` attends evenly, in every head, by construction:
# there a probe of attention must give its null, and one that does not is wrong.

# %%
even = sl.planted_model("none")
example = even.example(0)
probed = sl.denoise(even.dlm, torch.tensor([example.prompt]), sl.Plan(new_tokens=8), probes=[Entropy()])
measured = probed.record["entropy_of_queries"]
print("measured:", measured.values.min().round(4), "to", measured.values.max().round(4))
print("known:   ", np.log(len(example.prompt) + 8).round(4))

# %% [markdown]
# ## A question, with a margin
#
# > Does tiny-dlm need its first token as a key? We shall say "no" only if masking it is shown to cost less than .1 of
# > accuracy beyond masking a random key; "yes" only if it is shown to cost something.
#
# That is written **before** the run. The interval of the effect then decides:

# %% [markdown]
# **Exercise 6.3.** Write `verdict(low, high, margin)`: the set of what a 95 % interval [low, high] of an effect
# shows. `"different"` if it excludes 0; `"equivalent"` if it lies inside of (-margin, margin). Both, one, or the
# empty set.

# %%
verdict = None  # your answer
sl.course.check("6.3", verdict)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A small effect that is measured well can be different from 0 **and** smaller than the margin.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def verdict(low, high, margin):
#     shown = set()
#     if low > 0 or high < 0:
#         shown.add("different")
#     if -margin < low and high < margin:
#         shown.add("equivalent")
#     return shown
# ```
#
# </details>

# %%
folder = Path(mkdtemp())
conditions = {
    "first token": sl.MaskSinks(sl.interventions.Fixed([0])),
    "sinks": sl.MaskSinks(sl.SameStep(sl.SinkRule(2.0))),
}
study = sl.ablate(
    dlm, task, conditions, sl.Plan(new_tokens=32), metrics=["forced_accuracy"], save_to=folder / "scores.jsonl"
)
effects = study.effects(margin=0.1)
effects[["condition", "control", "to_control", "to_control_low", "to_control_high", "equivalent_to_control"]].round(3)

# %% [markdown]
# `save_to` keeps every finished batch. Interrupt it, start it again: it goes on where it was. Started once more it
# only reads, and the numbers are the same to the last bit:

# %%
again = sl.ablate(
    dlm, task, conditions, sl.Plan(new_tokens=32), metrics=["forced_accuracy"], save_to=folder / "scores.jsonl"
)
print("the same:", again.effects(margin=0.1).equals(effects))

# %% [markdown]
# **Exercise 6.4.** What may you write about the **first token**, by the rule above? One of `"needed"`, `"not
# needed"` (by more than .1), `"not shown"`.

# %%
claim = None  # your answer
sl.course.check("6.4", claim)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The row `first token`: is its interval against the control inside of (-.1, .1)? Does it exclude 0?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# claim = "not needed"
# ```
#
# </details>

# %% [markdown]
# Twenty-four prompts of a toy language, one model, one seed: "not needed" holds for them, and the margin says what
# was not excluded. The sinks by the rule are another matter.

# %%
sl.plots.effects(study)

# %% [markdown]
# *Two conditions with their intervals against random keys: the first token's crosses zero and is short, that of the
# sinks lies below zero.*
#
# ## Many questions at once
#
# Ask twenty questions at .05, and one is "significant" for nothing. Holm's correction: sort the p-values; multiply
# the smallest by their number m, the next by m - 1, and so on; never let a later one be smaller than one before it;
# at most 1.

# %% [markdown]
# **Exercise 6.5.** Correct the p-values 0.03, 0.20, 0.01, 0.04. An array of shape (4,), in the same order.

# %%
holm = None  # your answer
sl.course.check("6.5", holm)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Sorted: 0.01 x 4, 0.03 x 3, 0.04 x 2, 0.20 x 1. Then the running maximum, and back into the old order.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# p = np.array([0.03, 0.20, 0.01, 0.04])
# order = p.argsort()
# scaled = np.maximum.accumulate(p[order] * np.arange(4, 0, -1)).clip(max=1)
# holm = np.empty(4)
# holm[order] = scaled
# ```
#
# </details>

# %% [markdown]
# sinklens does this over all conditions and controls of an ablation: the columns that end in `_holm`.
#
# ## The page

# %%
for path in sl.report.report_of(study, folder):
    print(path.name, f"{path.stat().st_size / 1e3:.0f} kB")

# %% [markdown]
# `report.html` stands alone: tables, figures, and under *Provenance* all that made the numbers (model and its hash,
# plan, seeds, versions, edits). Send it; or `sl.push(study, "folder")`, and somebody else's `sl.pull` has the same
# numbers.
#
# ## Projects
#
# 1. Does `Reach` change over denoising steps, for masked and for committed queries? Against which null?
# 2. Do sinks of layer 1 follow the position that is committed next? (`commit_step`, `sl.dynamics.main_sink`)
# 3. Are the sinks of AntiBERTy conserved residues? What would chance give?
# 4. Steer, and watch the sinks: does a direction move them more than a random one?
# 5. Repeat chapter 4 with your own sink rule. Which sentence of it changes?
# 6. Point it at a model that nobody has measured ([point it at LLaDA-8B on my GPU](../howto/llada.md)).
#
# ## What to remember
#
# - Know the null of your number before you measure it; test the probe where the answer is known.
# - Write the question, the control and the margin down first.
# - A result has a page, and the page says what does not hold.
#
# ## Reading list
#
# - [Write a probe](../howto/probe.md), [write an edit](../howto/edit.md), [read a record](../howto/records.md).
# - [Statistics: paired, with controls, with a margin](../concepts/statistics.md).
# - "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods",
#   [arXiv 2309.16042](https://arxiv.org/abs/2309.16042).
