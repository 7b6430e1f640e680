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
import textwrap
import warnings

import numpy as np  # noqa: F401
import torch

import sinklens as sl
from sinklens.errors import NeverExposed

smollm = sl.HookedDLM.from_pretrained("smollm2-135m")  # once: sinklens models get smollm2-135m
facts = sl.tasks.facts(6)
print(facts[0].prompt, "->", facts[0].answer)

# %% [markdown]
# ## The experiment
#
# In every layer and head, the key that is the top sink *of this very forward* is masked (minus infinity before the
# softmax). As published, "top" is by the last query in an autoregressive model, and by all queries in a diffusion
# model. The control masks as many random other keys. Same prompts, same seeds.

# %%
top1, top5 = sl.MaskSinks(sl.SameStep(top_k=1)), sl.MaskSinks(sl.SameStep(top_k=5))
result = sl.ablate(smollm, facts, {"top-1": top1}, sl.Plan(new_tokens=1), metrics=["accuracy"])
shown = ["condition", "kind", "value", "low", "high", "exposed", "edited_keys"]
result.summary()[shown].round(2)

# %%
sl.plots.effects(result)

# %% [markdown]
# *The effect of masking the top sink: all of the accuracy is gone, against unmasked and against random keys. The
# intervals are wide: there are six prompts.*
#
# Now the other side: AntiBERTy, four antibody sequences, half of the residues masked and filled in two steps.

# %%
antiberty = sl.HookedDLM.from_pretrained("antiberty")
residues, plan = sl.tasks.antibodies(4), sl.Plan(new_tokens=0, steps=2)
other = sl.ablate(antiberty, residues, {"top-1": top1, "top-5": top5}, plan, metrics=["accuracy"])
other.summary()[shown].round(3)

# %% [markdown]
# **Exercise 4.1.** By how much does the accuracy of AntiBERTy change when its top 5 sinks are masked, **beyond** what
# masking five random keys does? One number, with its sign. `other.to_dataframe()` has one row per prompt, condition
# ("top-5" is asked for) and arm (`kind`: "unmasked", "sinks", "random").

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
# scores = other.to_dataframe().query("condition == 'top-5'")
# rows = scores.pivot_table(index="prompt", columns="kind", values="value")
# effect = float((rows["sinks"] - rows["random"]).mean())
# ```
#
# </details>

# %% [markdown]
# Six facts and four sequences are a lesson, not a result. With 30 of each (`make demo-real`, a quarter of an
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


def untouched(pattern, hook):
    """The reference: it looks, and changes nothing."""
    return pattern


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


def answer(hook, *more):
    hooks = [(place, hook) for place in places]
    with torch.no_grad():
        logits = smollm.run_with_hooks(tokens, fwd_hooks=[*hooks, *more])[0, -1].float()
    return smollm.tokenizer.decode(int(logits.argmax())), logits


for hook in (untouched, colleague_a, colleague_b):
    print(f"{hook.__name__:12} answers{answer(hook)[0]}")

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
# Do not look at the answers: compare the logits, `answer(colleague_a)[1]`, with those of the reference,
# `answer(untouched)[1]`. Then ask what each function returns, and how large `received` can be.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# culprits = {"a": "return", "b": "unit"}
# ```
#
# Neither changes the logits: the next cell measures it. A returns nothing, so the model goes on with the pattern that
# it had; B's `received` is a column mean, at most 1, so that nothing exceeds anything by 3 (exercise 1.3).
#
# </details>

# %% [markdown]
# An edit that never acted is indistinguishable from robustness, if all that you look at is accuracy. So look at the
# logits. Against what? Predict: do they stay if you only *look*?

# %%
with torch.no_grad():
    unhooked = smollm(tokens)[0, -1].float()
reference = answer(untouched)[1]
print("largest change of a logit")
for hook in (colleague_a, colleague_b):
    print(f"  {hook.__name__}, against untouched: {float((answer(hook)[1] - reference).abs().max()):.2g}")
print(f"  no hook at all, against untouched: {float((unhooked - reference).abs().max()):.2g}")

# %% [markdown]
# Looking can have a price. While nobody hooks a pattern, attention runs in one fused piece, which rounds in another way,
# and this model comes in bfloat16, which keeps two to three decimal digits. Against no hook at all A's edit would seem to
# act! The reference for an edit is a hook that does everything but the edit.
#
# Now let A's edit act:

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


# %% [markdown]
# The same can be done before the softmax, which then makes rows sum to 1 by itself; so does sinklens. What does the
# model answer, and where do its heads look now?


# %%
def before_softmax(scores, hook):
    edited = scores.clone()
    edited[:, :, 1:, 0] = -torch.inf
    return edited


largest = []  # of each layer: which key the last query looks at most, in each head


def watch(pattern, hook):
    largest.append(pattern[0, :, -1].argmax(-1))


scores = [(place.replace("hook_pattern", "hook_attn_scores"), before_softmax) for place in places]
said, edited = answer(watch, *scores)
print(f"answers{said}; the largest change of a logit is {float((edited - reference).abs().max()):.1f}")
keys, heads = torch.stack(largest).unique(return_counts=True)
print(
    "most looked at now:",
    {int(key): int(count) for key, count in zip(keys, heads, strict=True) if count > 9},
    "(key: heads)",
)

# %% [markdown]
# A surprise: the edit acts, and the answer is still right! Where the first token cannot be looked at, most heads
# rest on the second. The *first token* is where the sink usually sits; it is not the sink. And "the sink" has two
# readings. Ask again, with the key that receives most from **all** queries in place of the last query's top key:

# %%
most = sl.MaskSinks(sl.SameStep(sl.SinkRule(epsilon=None, top_k=1, queries="all")))
first = sl.MaskSinks(sl.interventions.Fixed([0]))
readings = {"top-1 of all queries": most, "first token": first}
who = sl.ablate(smollm, facts, readings, sl.Plan(new_tokens=1), controls=None, metrics=["accuracy"])
who.summary()[["condition", "value", "low", "high", "edited_keys"]].round(2)

# %% [markdown]
# Most answers survive the one, all survive the other. What destroyed the model is masking what the *last query* looks
# at most, in every head: that may be a resting place, or the very word that it needs (chapter 5 tells them apart). Who
# is masked, by whose attention, is part of the claim.
#
# sinklens refuses to report what colleagues A and B did. An edit that cannot meet what is scored is an error before
# work is done, and each result has a column `exposed`, the share of the scored places that the edit could have
# changed:

# %%
never = sl.MaskSinks(sl.PreviousStep(top_k=1), where=sl.Where(steps=[0]))  # at step 0 there is no step before
try:
    sl.ablate(smollm, facts, {"never": never}, sl.Plan(new_tokens=4), metrics=["accuracy"])
except NeverExposed as error:
    print(*textwrap.wrap(f"{type(error).__name__}: {error}", 76), sep="\n")

# %% [markdown]
# More treacherous is an edit that acts *sometimes*. The published protocol reads the sinks of the step before. Over two
# steps:

# %%
previous = {"top-1 of the step before": sl.MaskSinks(sl.PreviousStep(top_k=1))}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    half = sl.ablate(smollm, facts, previous, sl.Plan(new_tokens=2), controls=None, metrics=["accuracy"])
print(*textwrap.wrap(f"{said[0].category.__name__}: {said[0].message}", 76), sep="\n")
half.summary()[["condition", "value", "low", "high", "exposed"]].round(2)

# %% [markdown]
# Beside the 0 of the first table this looks like robustness. But step 0 has no step before: what it decided was decided
# by the unedited model. Read `exposed` before `value`.

# %% [markdown]
# ## How many prompts?
#
# All six random-key answers of SmolLM2 are right. Is random masking harmless? Think of the largest harm that could hide.

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
# the column `equivalent_to_control` is true only where the interval lies inside of it.

# %%
columns = ["condition", "to_control", "to_control_low", "to_control_high", "to_control_p", "equivalent_to_control"]
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
# With five prompts no effect can be significant at .05, however large; with the four of the table above, p is .125 at
# best. A large p with few prompts says nothing. Nor trust an interval of four: the bootstrap sees only those, and is
# too narrow, which is why it may leave out 0 where p is far from .05. Take more prompts.
#
# ## What to remember
#
# - Compare with a matched control on the same prompts, not with nothing.
# - Before you believe a null result: did the logits change, against a hook that only looks? `exposed`? `edited_keys`?
# - Equivalence needs a margin, said before, and enough prompts.
#
# ## Reading list
#
# - "Attention Sinks in Diffusion Language Models", [arXiv 2510.15731](https://arxiv.org/abs/2510.15731), section 4.3 and
#   Table 1.
# - "Efficient Streaming Language Models with Attention Sinks", [arXiv 2309.17453](https://arxiv.org/abs/2309.17453).
# - [Exposure](../concepts/exposure.md) and [statistics](../concepts/statistics.md).
