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
# # 4. Are they needed?
#
# "Removing the sink destroys an autoregressive model and hardly hurts a diffusion model": that is the published
# claim. A claim about what *would* happen needs an edit, a control, and a way to be wrong. You will repeat the
# experiment on real models, and find two mistakes that look like results.
#
# ## Learning goals
#
# You will be able to
#
# - run a paired ablation, and read its effect against a matched control;
# - prove that an edit acted, before you believe that it did nothing;
# - say how many prompts a claim of robustness needs;
# - say why "not significant" and "no effect" are different sentences.

# %%
# Installs sinklens where it is not there (Colab, a new environment); does nothing elsewhere.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:
    wanted = ["sinklens[course]==0.1.0", "transformers==5.23.0", "transformer-lens==4.3.0", "plotly==7.1.0"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)

# %%
import numpy as np  # noqa: F401
import torch

import sinklens as sl
from sinklens.errors import NeverExposed

smollm = sl.HookedDLM.from_pretrained("smollm2-135m")  # once: sinklens models get smollm2-135m
facts = sl.tasks.facts(8)
print(facts[0].prompt, "->", facts[0].answer)

# %% [markdown]
# ## The experiment
#
# In every layer and head, the key that is the largest sink *of this very forward* is masked (minus infinity before
# the softmax). The control masks as many random other keys. Same prompts, same seeds.

# %%
top1 = sl.MaskSinks(sl.SameStep(top_k=1))
result = sl.ablate(smollm, facts, {"top-1": top1}, sl.Plan(new_tokens=4), metrics=["accuracy"])
result.summary().round(2)

# %% [markdown]
# **Exercise 4.1.** By how much does accuracy change when the sink is masked, **beyond** what masking a random key
# does? One number, with its sign. `result.to_dataframe()` has one row per prompt and arm (`kind`: "unmasked",
# "sinks", "random").

# %%
effect = None  # your answer
sl.course.check("4.1", effect)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Mean over prompts of (sinks - random). Not of (sinks - unmasked).
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# rows = result.to_dataframe().pivot_table(index="prompt", columns="kind", values="value")
# effect = float((rows["sinks"] - rows["random"]).mean())
# ```
#
# </details>

# %%
sl.plots.effects(result)

# %% [markdown]
# *The effect of masking the top sink, with its interval: far to the left of zero against unmasked, and against
# random keys.*
#
# Now the other side: AntiBERTy, three antibody sequences, half of the residues masked.

# %%
antiberty = sl.HookedDLM.from_pretrained("antiberty")
residues = sl.tasks.antibodies(3)
other = sl.ablate(antiberty, residues, {"top-1": top1}, sl.Plan(new_tokens=0, steps=8), metrics=["accuracy"])
other.summary().round(2)

# %% [markdown]
# Eight facts and three sequences are a lesson, not a result. With 30 of each (`make demo-real`, a quarter of an
# hour; 95 % intervals over prompts; the table is the README's):
#
# | model | unmasked | top 1 | random | top 5 | random |
# |---|---|---|---|---|---|
# | SmolLM2, autoregressive | 1.00 [.88, 1.00] | **.03 [.00, .10]** | 1.00 | .00 | .90 |
# | the same weights, made a diffusion model | .63 [.47, .80] | **.43 [.27, .60]** | .63 | .40 | .60 |
# | AntiBERTy | .87 [.84, .90] | **.83 [.80, .87]** | .87 | .76 | .87 |
#
# The direction is the published one. "Hardly hurts" is more than the data say: AntiBERTy loses .037 [.015, .060]
# against random keys.
#
# ## How to fool yourself, twice
#
# Two colleagues say: SmolLM2 does *not* need its sink. Here is their code, and it runs.

# %%
places = [f"blocks.{i}.attn.hook_pattern" for i in range(smollm.cfg.n_layers)]
tokens = smollm.to_tokens(facts[0].prompt)


def colleague_a(pattern, hook):
    """The first token is the sink, as everybody knows. Nobody looks at it any more."""
    edited = pattern.clone()
    edited[:, :, 1:, 0] = 0
    edited = edited / edited.sum(-1, keepdim=True)


def colleague_b(pattern, hook):
    """Sinks by the published rule, epsilon = 3. Nobody looks at them any more."""
    received = pattern.mean(2, keepdim=True)  # [batch, head, 1, key]
    others = (received.sum(-1, keepdim=True) - received) / (received.shape[-1] - 1)
    edited = pattern.masked_fill(received - others > 3, 0)
    return edited / edited.sum(-1, keepdim=True)


def answer(hook=None):
    hooks = [] if hook is None else [(place, hook) for place in places]
    with torch.no_grad():
        logits = smollm.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].float()
    return smollm.tokenizer.decode(int(logits.argmax())), logits


for name, hook in {"nothing": None, "colleague A": colleague_a, "colleague B": colleague_b}.items():
    print(f"{name:12} answers{answer(hook)[0]}")

# %% [markdown]
# **Exercise 4.2.** What went wrong? A dict such as `{"a": "...", "b": "..."}`, each value one of `"axis"` (it sums
# over the wrong axis), `"return"` (the edit is computed and thrown away), `"unit"` (the rule can never fire),
# `"fine"` (nothing is wrong).

# %%
culprits = None  # your answer
sl.course.check("4.2", culprits)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Do not look at the answers: compare the logits with those of no edit. Then count how many cells of the pattern each
# of them changes.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# culprits = {"a": "return", "b": "unit"}
# ```
#
# Both edits change no logit at all: `(answer(colleague_a)[1] - answer()[1]).abs().max()` is 0.
#
# </details>

# %% [markdown]
# An edit that never acted is indistinguishable from robustness, if all that you look at is accuracy. Now let A's
# edit act:

# %% [markdown]
# **Exercise 4.3.** Write `repaired(pattern, hook)`: what A meant. From the second query on, nobody looks at key 0;
# every row still sums to 1. The pattern is [batch, head, query, key]; do not change the one that you are given.

# %%
repaired = None  # your answer
sl.course.check("4.3", repaired)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Only one word is missing. But look at query 0: whom else could it look at?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def repaired(pattern, hook):
#     edited = pattern.clone()
#     edited[:, :, 1:, 0] = 0
#     return edited / edited.sum(-1, keepdim=True)
# ```
#
# </details>


# %%
def repaired_edit(pattern, hook):
    edited = pattern.clone()
    edited[:, :, 1:, 0] = 0
    return edited / edited.sum(-1, keepdim=True)


largest = []  # of each layer: which key the last query looks at most, in each head


def watched(pattern, hook):
    edited = repaired_edit(pattern, hook)
    largest.append(edited[0, :, -1].argmax(-1))
    return edited


said, edited = answer(watched)
print(f"answers{said}; the largest change of a logit is {float((edited - answer()[1]).abs().max()):.1f}")
keys, heads = torch.stack(largest).unique(return_counts=True)
print(
    "most looked at now:",
    {int(key): int(count) for key, count in zip(keys, heads, strict=True) if count > 9},
    "(key: heads)",
)

# %% [markdown]
# A surprise: the edit acts, and the answer is still right! Where the first token cannot be looked at, most heads
# rest on the second. The *first token* is where the sink usually sits; it is not the sink. The edit of this
# chapter's experiment takes the largest key of each head **in this very forward**, whichever it is, and that
# destroys the model. Who is masked is part of the claim.
#
# sinklens refuses to report what colleagues A and B did. An edit that cannot meet what is scored is an error before
# work is done, and each result has a column `exposed`, the share of the scored places that the edit could have
# changed:

# %%
never = sl.MaskSinks(sl.PreviousStep(top_k=1), where=sl.Where(steps=[0]))  # at step 0 there is no step before
try:
    sl.ablate(smollm, facts, {"never": never}, sl.Plan(new_tokens=4), metrics=["accuracy"])
except NeverExposed as error:
    print(type(error).__name__, "-", str(error)[:160], "...")

# %% [markdown]
# ## How many prompts?
#
# All eight random-key answers are right. Is random masking harmless? Think of the largest harm that could hide.

# %% [markdown]
# **Exercise 4.4.** A masking flips each right answer with probability 0.1. You see `n` prompts and **no** flip. How
# large must n be at least for that to have a probability below 0.025? One integer.

# %%
prompts = None  # your answer
sl.course.check("4.4", prompts)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The probability of no flip in n independent prompts is 0.9 to the power of n.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# prompts = int(np.ceil(np.log(0.025) / np.log(0.9)))
# ```
#
# </details>

# %% [markdown]
# So "none of 12 changed" does not show that the loss is below .1, and sinklens says so: give `effects` a margin, and
# the column `equivalent` is true only where the interval lies inside of it.

# %%
columns = ["condition", "control", "to_control", "to_control_low", "to_control_high", "to_control_p", "equivalent"]
other.effects(margin=0.05)[columns].round(3)

# %% [markdown]
# **Exercise 4.5.** The p-values come from a sign-flip test: under the null each prompt's difference could as well
# have the other sign. With **5** prompts that all lose exactly the same, what is the smallest two-sided p that this
# test can give? One number.

# %%
smallest = None  # your answer
sl.course.check("4.5", smallest)

# %% [markdown]
# <details><summary>Hint</summary>
#
# There are 2 to the power of 5 sign patterns. How many are as extreme as all minus, in either direction?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# smallest = 2 / 2**5
# ```
#
# </details>

# %% [markdown]
# With five prompts no effect can be significant at .05, however large. A large p with few prompts says nothing;
# report the interval.
#
# ## What to remember
#
# - Compare with a matched control on the same prompts, not with nothing.
# - Before you believe a null result: did the logits change? How many keys were edited? `exposed`?
# - Equivalence needs a margin, said before, and enough prompts.
#
# ## Reading list
#
# - "Attention Sinks in Diffusion Language Models", [arXiv 2510.15731](https://arxiv.org/abs/2510.15731), section 4.3 and
#   Table 1.
# - "Efficient Streaming Language Models with Attention Sinks", [arXiv 2309.17453](https://arxiv.org/abs/2309.17453).
# - [Exposure](../concepts/exposure.md) and [statistics](../concepts/statistics.md).
