# %% [markdown]
# # Where are the sinks, and do they move?
#
# Questions about two of the bundled models, tiny-dlm and tiny-arm, answered from records alone. Run the file as it is
# (`python examples/02_sinks.py`, half a minute on two cores), or open it as a notebook: it is in the py:percent format.

# %%
import torch

import sinklens as sl
from sinklens.analysis import dynamics, norms, overlap
from sinklens.sinks import named as rules

torch.set_num_threads(1)  # models as small as the twins gain little from a second thread, and lose beside other work
task = sl.tasks.Echo(n=32, seed=5)
prompts = [task[i].prompt for i in range(len(task))]
probes = [
    sl.probes.ReceivedAttention(),
    sl.probes.KeyNorm(),
    sl.probes.ValueNorm(),
    sl.probes.QKDecomposition(),
]
of_dlm = [sl.probes.MaskedVsCommitted()]  # a baseline has no masks
plan = sl.Plan(new_tokens=32, temperature=1.0)
record = {
    name: sl.denoise(sl.HookedDLM.from_pretrained(name), prompts, plan, probes=measured, seed=range(len(task))).record
    for name, measured in (("tiny-dlm", probes + of_dlm), ("tiny-arm", probes))
}

# %% [markdown]
# ## Which tokens are sinks?
# By class, and the five most frequent tokens (the paper's Table 2); ratio 1 = no more often than the token occurs.

# %%
for name, run in record.items():
    table = sl.metrics.token_classes(run)
    print(name, "which tokens are sinks", table[table.share_of_keys > 0].to_string(index=False), sep="\n")
    print(sl.metrics.sink_tokens(run).replace("\n", "\\n").to_string(index=False))

# %% [markdown]
# ## How long do sinks live?
# An episode is an unbroken run of steps in which a key is a sink of a head; the run has 32 steps.

# %%
for name, run in record.items():
    episodes = dynamics.dwell(run).groupby("layer")["length"].describe()[["count", "mean", "50%", "max"]]
    print(name, "episodes in steps", episodes, sep="\n")

# %% [markdown]
# ## Do they move?
# Jaccard of consecutive steps (1 = the same keys), and the share of sink keys that stay ("static") or not ("moving").

# %%
for name, run in record.items():
    print(name, sl.metrics.movement(run).to_string(index=False), sep="\n")
    kinds = dynamics.classify(run).groupby("layer")["type"].value_counts(normalize=True)
    print(kinds.unstack(fill_value=0).round(2))

# %% [markdown]
# ## Do masked and committed queries use the same sinks?
# Jaccard of the two sets of sinks, by layer and head: 1 = the same keys. tiny-arm has no masked queries.

# %%
shared = record["tiny-dlm"]["masked_vs_committed"].mean(["prompt", "step"])
print(shared.to_pandas().round(2))

# %% [markdown]
# ## Does the answer depend on the rule, and on epsilon?
# Share of keys that are NOT sinks over epsilon (the curve of the paper's Fig. 10), then how much the named rules agree.

# %%
for name, run in record.items():
    print(name, dynamics.filtered_share(run, [0.5, 1, 2, 3, 5, 8]).to_pandas().round(3).to_string(), sep="\n")
    print(overlap.agreement(run, rules.RULES).round(2).to_string())

# %% [markdown]
# ## Does a low key norm predict sinks?
# Spearman correlation of -key_norm and received attention, by layer; 1 = the lower the norm, the more attention.
# Is it the length of the key, or its angle to the queries (`qk_at_sinks`)? And are the flagged keys resting places
# ("drained": small values) or look-ups ("informative")?

# %%
for name, run in record.items():
    print(name, norms.key_norm_correlation(run).to_pandas(), norms.qk_at_sinks(run), norms.kind(run), sep="\n")
