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
# # 2. What a diffusion language model does
#
# An autoregressive model writes from left to right. A masked diffusion language model starts from a text of masks
# and commits tokens wherever it is most sure. There is no magic in the loop: you will write it yourself, in ten
# lines, and get the same text to the last token.
#
# ## Learning goals
#
# You will be able to
#
# - write the denoising loop by hand, and say what a step commits;
# - read off a record when each position was committed, and with which confidence;
# - say where an autoregressive model differs, and which position's logits decide a token in either;
# - say what is lost when several tokens are committed at once, or in another order;
# - tell samplers that only commit from samplers that mask again, and say what a seed fixes.

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
task = sl.tasks.Echo(n=8, seed=1)
prompt = task[0].prompt
prompt

# %% [markdown]
# The toy language has rules: behind a cue in `x` (`xa`, `xe`, ...) the last word comes again, behind a cue in `w`
# the last word but one. A task knows the rules and scores what a model writes.
#
# Before you start, predict: where will the model be surest at first, at the left, at the right, or in between?
#
# ## The canvas
#
# The model sees the prompt and one mask per token to write. That row of tokens is the **canvas**.

# %% [markdown]
# **Exercise 2.1.** Build the canvas for 16 new tokens: the prompt's token ids, then 16 times the mask token. An
# integer array or tensor of shape (1, prompt + 16). `dlm.to_tokens(prompt)` gives the first part, `dlm.ids.mask` is
# the mask's id.

# %%
canvas = None  # your answer
sl.course.check("2.1", canvas)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.full((1, 16), value)` and `torch.cat([...], dim=1)`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# canvas = torch.cat([dlm.to_tokens(prompt), torch.full((1, 16), dlm.ids.mask)], dim=1)
# ```
#
# </details>

# %% [markdown]
# One forward gives, at **every** mask, a distribution over tokens. Bidirectional attention means that a mask sees
# what is right of it, too.

# %%
import plotly.graph_objects as go

first = torch.cat([dlm.to_tokens(prompt), torch.full((1, 16), dlm.ids.mask)], dim=1)
probability = dlm(first).softmax(-1)[0]
probability[:, dlm.ids.mask] = 0  # the mask itself is no answer
best = probability.max(-1)
shown = dlm.tokenizer.convert_ids_to_tokens(best.indices[-16:].tolist())
bars = go.Bar(x=np.arange(16, 32), y=best.values[-16:].detach(), text=shown)
bars.update(textangle=-90, textposition="outside", marker_color=sl.plots.COLORS[0])
figure = go.Figure(bars, {"title": "How sure is it where?"})
figure.update_xaxes(title="position")
figure.update_yaxes(title="largest probability", range=[0, 1])
sl.plots.themed(figure)

# %% [markdown]
# *Sixteen bars, one per masked position, with the likeliest token on each. No position is sure yet; some are surer
# than others, and the surest is not the leftmost.*

# %% [markdown]
# **Exercise 2.2.** Which position is committed at the first step, when one token per step is committed, the surest
# first? One integer, counted from 0 at the start of the canvas (so at least 16).

# %%
committed = None  # your answer
sl.course.check("2.2", committed)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The position of the largest probability among the masked ones. `best.values` has all positions; given ones do not
# count.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# committed = 16 + int(best.values[-16:].argmax())
# ```
#
# </details>

# %% [markdown]
# ## The loop
#
# Now do that until no mask is left. In the open, a step at a time, sinklens's own loop is a generator:

# %%
for step in sl.denoising_steps(dlm, [prompt], sl.Plan(new_tokens=16)):
    place = int(step.committed[0].nonzero())
    token = dlm.tokenizer.convert_ids_to_tokens(int(step.tokens[0, place]))
    sure = float(step.confidence[0, place])
    print(f"step {step.index:2}: position {place} <- {token:6} confidence {sure:.2f}")

# %% [markdown]
# **Exercise 2.3.** Write it yourself: a function `by_hand(dlm, prompt, new_tokens)` that returns the final canvas, a
# tensor of shape (1, prompt + new_tokens). One token per step: the likeliest token at the position where it is
# likeliest. It must give the tokens of `sl.denoise` for prompts that you have not seen. (A loop that never ends is
# stopped, and you are told.)

# %%
by_hand = None  # your answer
sl.course.check("2.3", by_hand)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Inside `while (canvas == mask).any():` one forward, the probability of the mask set to 0, the largest probability
# per position, set to -1 where the canvas holds no mask. Then `argmax` over positions.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def by_hand(dlm, prompt, new_tokens):
#     mask = dlm.ids.mask
#     canvas = torch.cat([dlm.to_tokens(prompt), torch.full((1, new_tokens), mask)], dim=1)
#     while (canvas == mask).any():
#         probability = dlm(canvas).softmax(-1)
#         probability[..., mask] = 0
#         confidence, token = probability.max(-1)
#         confidence[canvas != mask] = -1
#         place = confidence[0].argmax()
#         canvas[0, place] = token[0, place]
#     return canvas
# ```
#
# `torch.no_grad()` around it saves memory; the tokens are the same.
#
# </details>

# %% [markdown]
# ## When was what committed?
#
# A run keeps it. `commit_step` is -1 where the prompt stands. Two models of the same architecture run beside it under
# the same plan: `tiny-arm`, trained to write from left to right, and `tiny-bdlm`, which denoises blocks of 4 tokens.
# A block sees itself, both ways, and what stands before it; what comes behind is not there yet.

# %%
arm, bdlm = sl.HookedDLM.from_pretrained("tiny-arm"), sl.HookedDLM.from_pretrained("tiny-bdlm")
plan = sl.Plan(new_tokens=16)
probes = [sl.probes.ReceivedAttention()]
run = sl.denoise(dlm, prompt, plan, probes=probes)
blockwise = sl.denoise(bdlm, prompt, plan, probes=probes)
causal = sl.denoise(arm, prompt, plan, probes=probes)
for name, each in {"tiny-dlm": run, "tiny-bdlm": blockwise, "tiny-arm": causal}.items():
    print(f"{name}: {each.completions[0]}")
    print("  at step:   ", *each.record["commit_step"][0, 16:].values)
    print("  confidence:", *each.record["confidence"][0, 16:].values.round(1))

# %% [markdown]
# Within a block any order, from block to block left to right: a compromise that many open diffusion models make
# (SDAR, LLaDA2, Stable-DiffCoder), because blocks that are finished never change and can be kept (a cache).

# %%
names = ("tiny-dlm", "tiny-arm")
sl.plots.side_by_side(run.record, causal.record, sl.plots.timeline, names)

# %% [markdown]
# *Two heat maps, positions from left to right and steps downward, colour for received attention; white circles are
# sinks. On the left every position is there from the first step, and besides the first token sinks come and go, most of
# them late in the run. On the right the text grows by one position per step, a staircase, and the first token alone is bright.*

# %% [markdown]
# **Exercise 2.4.** How far apart are two positions that `tiny-dlm` commits one after the other? Give the mean distance
# over the run's 15 pairs of successive commits, in tokens, as one number. (For `tiny-arm` it is 1.)

# %%
jump = None  # your answer
sl.course.check("2.4", jump)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Sort the positions by `commit_step`; take the differences of neighbours in that order. A jump to the left is a
# distance, too.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# order = run.record["commit_step"][0, 16:].values.argsort()
# jump = float(np.abs(np.diff(order)).mean())
# ```
#
# </details>

# %% [markdown]
# ## Whose logits?
#
# There is a second difference. A masked diffusion model predicts at a mask the token of that **same** position. An
# autoregressive model has no masks: at each position it predicts the **next** token.

# %%
# One forward over the 16 tokens of the prompt alone.
guess = arm(arm.to_tokens(prompt))[0].argmax(-1)
likeliest = arm.tokenizer.convert_ids_to_tokens(guess.tolist())
print("tiny-arm writes at position 16:", causal.completions[0].split()[0])
for at in (0, 7, 14, 15):
    print(f"likeliest by the logits of position {at:2}:", likeliest[at])

# %% [markdown]
# **Exercise 2.5.** The logits of which position decide the token that `tiny-arm` writes at position **20**? One
# integer, counted from 0 at the start of the text.

# %%
place = None  # your answer
sl.course.check("2.5", place)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A model that writes position 20 has not seen it.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# place = 19
# ```
#
# Some diffusion models keep this shift, because they were made of autoregressive ones: Dream predicts token i at
# position i - 1. Ask of every probe of "the prediction at a mask" where it reads.
#
# </details>

# %% [markdown]
# ## Several at once
#
# With fewer steps than tokens a step commits several, and those do not see each other. What does that cost?


# %%
def scored(plan, seed=0):
    texts = sl.denoise(dlm, [each.prompt for each in task], plan, seed=seed).completions
    scores = [task.score(each, text) for each, text in zip(task, texts, strict=True)]
    right, places = sum(s.correct for s in scores), sum(s.total for s in scores)
    return texts, f"{right:3} of {places:3} places right ({right / places:.2f})"


for steps in (32, 16, 8, 4, 2, 1):
    texts, words = scored(sl.Plan(new_tokens=32, steps=steps))
    print(f"{32 // steps:2} at once: {words}  {texts[0][:28]}")

# %% [markdown]
# Speed is paid with errors. But read the second number, too: only places behind a cue have a right answer, and the
# model itself decides how many cues it writes. A share whose denominator moves can rise while the text gets worse.

# %% [markdown]
# **Exercise 2.6.** Look at what is written at 32 at once. Which word says best why it is wrong? One of `"blind"`
# (tokens that are committed together cannot see each other), `"memory"` (the model forgot the prompt), `"noise"`
# (the sampler drew at random).

# %%
why = None  # your answer
sl.course.check("2.6", why)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The temperature is 0, and the prompt is on the canvas in every forward.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# why = "blind"
# ```
#
# </details>

# %% [markdown]
# ## Another order, another seed
#
# `remasking` says which positions a step commits: the surest (`"low_confidence"`), any (`"random"`), or, with blocks
# of one token, the leftmost. Predict: is the model's own order the best one? Then vary the temperature: above 0 the
# token is drawn, and the seed decides.

# %%
ways = {
    "the surest": {},
    "at random": {"remasking": "random"},
    "left to right": {"block_length": 1},
    "the surest, drawn": {"temperature": 1.0},
}
for way, choice in ways.items():
    plan = sl.Plan(new_tokens=32, **choice)
    (texts, words), (others, _) = scored(plan, seed=0), scored(plan, seed=1)
    same = sum(a == b for a, b in zip(texts, others, strict=True))
    print(f"{way:18} {words}; another seed: {same} of 8 the same")

# %% [markdown]
# A seed changes nothing where nothing is drawn. Where something is, one run is one draw: report several seeds, or
# many prompts.
#
# ## Samplers that take back
#
# LLaDA's and Dream's samplers only commit. Path planning (`p2`) masks again what turns out to be unlikely. Then
# `commit_step` is the **last** commit, and the run tells the others:

# %%
plan = sl.Plan(new_tokens=16, sampler="p2", steps=16, temperature=0.5)
again = sl.denoise(dlm, prompt, plan, seed=3)
print(again.completions[0])
taken = sum(int(each.places.sum()) for each in again.undone)
print("commits that were taken back:", taken)

# %% [markdown]
# ## What to remember
#
# - A step is one forward; the canvas is what it saw. What an edit or a probe sees is that forward, not the final text.
# - Confidence decides the order, and the order decides what is seen.
# - Tokens committed together are blind to each other: say the number of steps beside every accuracy.
# - Logits at a mask predict that mask, or, in shifted and autoregressive models, the next position. Know which.
# - Order, temperature and seed are parts of the result; a plan has them all.
#
# ## Reading list
#
# - "Attention Sinks in Diffusion Language Models", [arXiv 2510.15731](https://arxiv.org/abs/2510.15731): the models it
#   asks, and how they decode.
# - "Revealing the Attention Floating Mechanism in Masked Diffusion Models",
#   [arXiv 2601.07894](https://arxiv.org/abs/2601.07894).
# - "Masks Can Be Distracting", [arXiv 2511.21338](https://arxiv.org/abs/2511.21338): what the masks themselves do.
# - [What a step is](../concepts/steps.md).
