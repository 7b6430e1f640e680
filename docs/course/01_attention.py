# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Attention by hand
#
# **You will be able to**
#
# - read an attention pattern, and say which axis sums to 1.

# %%
# Installs sinklens where it is not there (Colab, a new environment); does nothing elsewhere.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "sinklens[course]==0.1.0"], check=True)

# %%

import sinklens as sl

dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
task = sl.tasks.Echo(n=8, seed=1)
run = sl.denoise(dlm, task[0].prompt, sl.Plan(new_tokens=32), probes=[sl.probes.ReceivedAttention()])
sl.plots.timeline(run.record)

# %% [markdown]
# **Exercise 1.1.** What does the first key receive in all?

# %%
answer = None  # your answer
sl.course.check("1.1", answer)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Sum over queries, not over keys.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# answer = torch.ones(3).sum()
# ```
#
# </details>
