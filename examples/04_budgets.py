# %% [markdown]
# # Which tokens are enough?
#
# How few keys does a model need, does it need its sinks among them, and what tells which? Each condition runs on the
# same prompts as the unedited model, so every difference is paired by prompt and has a 95 % interval. Run the file as
# it is (`python examples/04_budgets.py`, two minutes on two cores: tiny-dlm and tiny-arm; with 1 behind it
# for other texts), with `--real` for SmolLM2, the same weights made a diffusion model, and AntiBERTy, or open it as a
# notebook: it is in the py:percent format. It ends with a page, `sinklens-budgets/report.html`; what was finished is
# not run again.
#
# A key that is dropped at one step may be back at the next: the model is asked anew each time, no cache is cut.

# %%
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import sinklens as sl
from sinklens import plots
from sinklens.analysis import kept, norms
from sinklens.experiments import statistics
from sinklens.experiments.budget_table import CONTROLS
from sinklens.experiments.budgets import budget_curve, gates_for
from sinklens.experiments.statistics import mean_and_interval, permutation_p

torch.set_num_threads(1)
REAL = "--real" in sys.argv
SEED = next((int(word) for word in sys.argv[1:] if word.isdigit()), 0)
OUT = Path("sinklens-budgets")
PROMPTS = next((int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("--prompts=")), 24)
RATES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
MARGIN = 0.1  # a loss of accuracy that would not matter


@dataclass(frozen=True)
class Subject:
    """A model, and what it can do without an edit."""

    task: sl.tasks.Task
    plan: sl.Plan


facts = sl.tasks.facts(PROMPTS)
SUBJECTS = {
    "tiny-arm": Subject(sl.tasks.Echo(n=PROMPTS, seed=SEED), sl.Plan(new_tokens=32)),
    "tiny-dlm": Subject(sl.tasks.Echo(n=PROMPTS, seed=SEED, gaps=0.5), sl.Plan(new_tokens=0)),
}
if REAL:
    SUBJECTS = {
        "smollm2-135m": Subject(facts, sl.Plan(new_tokens=4)),
        "smollm2-135m-diffusion": Subject(facts, sl.Plan(new_tokens=4)),
        "antiberty": Subject(sl.tasks.antibodies(min(PROMPTS, 30)), sl.Plan(new_tokens=0, steps=8)),
    }
METRIC = "accuracy" if REAL else "forced_accuracy"
models = {name: sl.HookedDLM.from_pretrained(name) for name in SUBJECTS}
OUT.mkdir(exist_ok=True)


def told(question, *tables):
    """Print tables under a question."""
    print(f"\n{question}", *(table.to_string(index=False, na_rep="") for table in tables), sep="\n")


def text(value, low, high):
    """A number with its interval."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if not math.isnan(value) else ""


# %% [markdown]
# ## 1. At which budget does each model break?
# Everything chooses in the same layers: those in which a gate of sinklens selects, where there is one for the model.
# "holds": the lowest rate at which (and at every higher one) the loss is shown to be below the margin.

# %%
curves = {
    name: budget_curve(
        models[name],
        each.task,
        RATES,
        plan=each.plan,
        metrics=[METRIC],
        draws=2,
        sinks=None,
        batch_size=448 if not REAL else 96,
        save_to=OUT / "scores.jsonl",
        progress=f"{name}: budgets",
    )
    for name, each in SUBJECTS.items()
}
tables = {name: sl.budget_table(curve) for name, curve in curves.items()}


def breaking(table):
    """Where it holds and breaks, with intervals."""
    found = sl.breaking_point(table, MARGIN)
    lost = [text(*each) for each in zip(found.lost, found.lost_low, found.lost_high, strict=True)]
    return found[["selector", "holds", "kept", "breaks"]].assign(lost=lost)


broken = {name: breaking(table) for name, table in tables.items()}
for name, table in broken.items():
    told(f"1. {name}: unmasked {tables[name].value[0]:.3f}; down to which rate it holds (margin {MARGIN})", table)

# %% [markdown]
# With seeds 0 and 1: both hold with the most attended 35 % of their keys, and break at 20 %. tiny-arm holds with
# the last 20 % of its positions, tiny-dlm not with the last 70 %. Small key norms are the worst choice in both. The
# gate of tiny-arm holds down to 70 % (random tokens: 90 %); that of tiny-dlm is worth no more than its control there,
# and keeps much less than it is asked for: it was trained on texts with more masks than this task has.
#
# ## 2. Is a sink worth more than another token, at equal budget?
# All keys but the sinks, against all keys but as many random others, everywhere. Sinks are keys that receive 3 units
# more than the others' mean from all queries (in an autoregressive model the first key passes without being one), or
# the one, three and five keys that receive most: in an autoregressive model from the last query, as arXiv 2510.15731
# has it, and beside that from all queries together (of whom early keys receive most, for more queries see them).

# %%


def dropped(dlm):
    """Sinks by several rules, and what drops them."""
    found = {"epsilon 3": sl.SameStep(sl.SinkRule())} | {f"top {k}": sl.SameStep(top_k=k) for k in (1, 3, 5)}
    if dlm.is_causal:
        rules = {k: sl.SinkRule(epsilon=None, top_k=k) for k in (1, 3, 5)}
        found |= {f"top {k} of all queries": sl.SameStep(rule) for k, rule in rules.items()}
    return {f"all but {name}": sl.MaskSinks(selector) for name, selector in found.items()}


worth = {
    name: sl.ablate(
        models[name],
        each.task,
        dropped(models[name]),
        each.plan,
        metrics=[METRIC],
        batch_size=448 if not REAL else 96,
        save_to=OUT / "scores.jsonl",
        progress=f"{name}: sinks",
    )
    for name, each in SUBJECTS.items()
}


def prices(name):
    """What dropping sinks costs beyond dropping as many others."""
    effects, means = worth[name].effects(METRIC), worth[name].summary().set_index("condition")
    lines = []
    for each in effects.itertuples():
        low, high = each.to_unmasked_low, each.to_unmasked_high
        line = {"model": name, "condition": each.condition, "- unmasked": text(each.to_unmasked, low, high)}
        low, high = each.to_control_low, each.to_control_high
        line |= {"- random others": text(each.to_control, low, high), "p (Holm)": f"{each.to_control_p_holm:.3f}"}
        lines.append(line | {"keys per prompt": round(float(means.loc[each.condition].edited_keys.iloc[0]), 1)})
    return pd.DataFrame(lines)


worths = pd.concat(map(prices, SUBJECTS), ignore_index=True)
told("2. What a sink is worth more than another key", worths)

# %% [markdown]
# The other way round: the few keys that are kept. Are the most attended ones worth more than random ones, and is what a
# gate chose worth more than as many tokens by chance?


# %%
def beyond(name):
    """Each selector against its control, at every rate."""
    table = tables[name]
    lines = []
    for each in table[table.to_random.notna()].itertuples():
        line = {"model": name, "selector": each.selector, "rate": each.rate, "kept": round(each.kept, 3)}
        line |= {"beside": CONTROLS.get(each.selector, f"{each.selector} by chance")}
        difference = text(each.to_random, each.to_random_low, each.to_random_high)
        lines.append(line | {"difference": difference, "p (Holm)": f"{each.to_random_p_holm:.3f}"})
    return pd.DataFrame(lines)


beyonds = pd.concat(map(beyond, SUBJECTS), ignore_index=True)
told("   What is kept, against as much by chance", beyonds)

# %% [markdown]
# With seeds 0 and 1: in tiny-dlm yes, at every dose (about 8, 20 and 30 points for the top 1, 3 and 5, and 10 for those
# by epsilon 3, all with intervals below 0, where as many random others cost next to nothing). In tiny-arm it depends on
# whose attention makes a sink: the key that the last query attends to most is worth 80 points; the one that all queries
# together attend to most is worth nothing, and nor is what passes epsilon 3. What is kept: the
# most attended are worth more than random keys at every rate from 20 to 70 % in both; what the gate of tiny-arm chose
# is worth more than as many tokens by chance from 50 to 90 %; of that of tiny-dlm no rate shows it in both seeds.
#
# ## 3. Does the answer differ between autoregressive and diffusion models?
# The cost of the top 3 beyond random others, model against model. SmolLM2 and its adapted self are asked the same
# questions, so that their difference is paired by prompt; the twins' tasks differ, and their prompts are not paired:
# there the interval of the difference is that of two independent means.


# %%
def cost(name, condition="all but top 3"):
    """By prompt: the loss beyond that of dropping random others."""
    sides = worth[name].paired(METRIC, (condition, "sinks"), (condition, "random"))
    return sides[0] - sides[1]


def compare(first, second):
    """The difference of two models' costs."""
    a, b = cost(first), cost(second)
    paired = SUBJECTS[first].task == SUBJECTS[second].task and len(a) == len(b)
    if paired:
        mean, (low, high) = mean_and_interval(a - b)
        return {"models": f"{first} - {second}", "difference": text(mean, low, high), "p": permutation_p(a - b)}
    generator = torch.Generator().manual_seed(0)
    draws = [
        [float(x[torch.randint(len(x), (len(x),), generator=generator)].mean()) for _ in range(statistics.RESAMPLES)]
        for x in (a, b)
    ]
    apart = torch.tensor(draws[0]) - torch.tensor(draws[1])
    low, high = apart.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"models": f"{first} - {second}", "difference": text(float(a.mean() - b.mean()), low, high), "p": None}


names = list(SUBJECTS)
differences = pd.DataFrame([compare(names[0], other) for other in names[1:]])
told("3. Autoregressive minus diffusion: what the top 3 are worth more than others", differences)

# %% [markdown]
# With seeds 0 and 1: tiny-arm pays 71 and 74 points more for its top 3 than tiny-dlm, on another task.
#
# ## 4. Is it the key norm or the position that predicts which keys are attended to?
# Rank correlations of received attention (relative to uniform attention) with small norms and with early places, each
# with the other held constant; means over layers, steps and heads, intervals over prompts.


# %%
def recorded(name, prompts=8):
    """The unedited run of the first prompts, with what the model's gate would keep, if there is one."""
    each, dlm = SUBJECTS[name], models[name]
    probes = [sl.probes.ReceivedAttention(), sl.probes.KeyNorm()]
    probes += [sl.probes.Kept(gate, RATES) for gate in gates_for(dlm, None).values()]
    texts = [each.task[index].prompt for index in range(prompts)]
    return sl.denoise(dlm, texts, each.plan, probes=probes, seed=range(prompts), progress=f"{name}: record").record


records = {name: recorded(name) for name in SUBJECTS}
predicted = []
for name, record in records.items():
    by_prompt = norms.predictors(record).groupby("prompt").mean(numeric_only=True)
    line = {"model": name}
    for column in ("small_norm", "early", "small_norm_given_position", "early_given_norm"):
        mean, (low, high) = mean_and_interval(torch.tensor(by_prompt[column].to_numpy()))
        line[column.replace("_", " ")] = text(mean, low, high)
    predicted.append(line)
predicted = pd.DataFrame(predicted)
told("4. Rank correlation with received attention", predicted)

# %% [markdown]
# With seeds 0 and 1: in tiny-dlm it is the norm, the other way round than published: LARGE keys receive more (about
# -0.4 and -0.5, whatever the position), and the position says nothing. In tiny-arm neither was shown to predict
# anything.
#
# ## 5. Do the gates keep the sinks?
# The share of the sinks that a gate would keep, minus the share that as many keys by chance would hold; intervals over
# prompts. Models without a gate are left out.


# %%
def keeping(name):
    """Kept minus chance, at each rate."""
    table = kept.sinks_kept(records[name], by=("prompt",))
    lines = []
    for rate, part in table[table.sinks > 0].groupby("rate"):
        difference = torch.tensor((part.kept - part.chance).to_numpy())
        mean, (low, high) = mean_and_interval(difference)
        shares = {"kept": part.kept.mean(), "chance": part.chance.mean()}
        lines.append({"model": name, "rate": rate, **shares, "kept - chance": text(mean, low, high)})
    return pd.DataFrame(lines)


gated = [name for name in SUBJECTS if "kept" in records[name]]
keeps = pd.concat(map(keeping, gated), ignore_index=True) if gated else None
if keeps is not None:
    told("5. Share of the sinks that the gate keeps", keeps.round(3))

# %% [markdown]
# With seeds 0 and 1: the gate of tiny-arm keeps none of the sinks (by all queries) at any rate, not even at 90 %: they
# are what it drops first, and dropping them costs nothing (see 2). That of tiny-dlm is not shown to keep more of them
# than chance would at any rate, and keeps fewer at 50 %.
#
# ## The real models
# With `--real --prompts=12` (facts for both SmolLM2, residues for AntiBERTy; few prompts, so wide intervals).
# Breaking: SmolLM2 holds with the 80 % of its keys that its gate takes at a rate of 70 %, and with the most attended
# 91 %, but loses with 91 % by chance; AntiBERTy holds with the most attended 10 %. Sinks: SmolLM2 loses all it knows
# with the top key of the last query, and 75 points with those by epsilon 3; the same weights made a diffusion model
# lose 8 and 17, with intervals that reach 0; AntiBERTy 5 and 11, with intervals below 0. For the top 3 the difference
# of the two SmolLM2 is 75 points [50, 100], paired by prompt. Norm: with the position held constant small keys
# receive more in both SmolLM2 (+0.14 and +0.15), and large ones in AntiBERTy (-0.36). Gates: all three keep the sinks
# more often than chance would, with intervals above 0 at every rate up to 70 % (at 35 %: SmolLM2 74 % of them, by
# chance 20 %; made a diffusion model 58 and 18 %; AntiBERTy 41 and 24 %).
#
# ## The page

# %%
sections = [
    sl.report.Section(
        "At which budget does each model break?",
        f"Holds: the lowest rate at which the loss is shown to be below {MARGIN} (and at every higher rate).",
        [(f"{name}: down to which rate it holds", table) for name, table in broken.items()],
        [plots.budget_curves(tables), plots.reached_shares(tables)],
    ),
    sl.report.Section(
        "Is a sink worth more than another token?",
        "Differences paired by prompt, with 95 % intervals; p by permutation, after Holm.",
        [("Dropped: sinks against random others", worths), ("Kept: each choice against chance", beyonds)],
    ),
    sl.report.Section("Autoregressive and diffusion", "", [("What the top 3 are worth more than others", differences)]),
    sl.report.Section("Key norm or position?", "", [("Rank correlation with received attention", predicted)]),
]
if keeps is not None:
    shares = {name: kept.sinks_kept(records[name]) for name in gated}
    steps = {name: kept.sinks_kept(records[name], by=("step",)) for name in gated}
    figures = [plots.sinks_kept(shares), plots.sinks_kept(steps, "step")]
    figures += [plots.survival(records[name], title=f"How long each token survives in {name}") for name in gated]
    sections.append(sl.report.Section("Do the gates keep the sinks?", "", [("Beside chance", keeps)], figures))
page = sl.report.write(
    OUT / "report.html",
    title="Which tokens are enough?",
    intro="Every number on this page was computed by examples/04_budgets.py.",
    sections=sections,
)
print(f"\n{page}")
