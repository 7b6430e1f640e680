# %% [markdown]
# # A sparse autoencoder of a diffusion model, from training to ablation
#
# Trains a Top-K autoencoder on tiny-dlm's residual stream, saves it in the format of the public autoencoders of Dream
# and LLaDA (with safetensors), and asks four things of it: what it explains, what it costs to splice in, when a feature
# is active while a text is denoised, and what ablating it does beside two controls. Run the file as it is
# (`python examples/autoencoder.py`, a minute on one free core; `python examples/autoencoder.py 1` for other texts and
# another start), or open it as a notebook: it is in the py:percent format. It ends with a page,
# `sinklens-autoencoder/report.html`.
#
# The trainer is these forty lines and no library: dictionary-learning 0.1.0 would bring nnsight below 0.4, wandb,
# datasets and umap-learn, and sparsify 1.3.3 accelerate, datasets and schedulefree; both read a model's activations
# themselves, and neither masks texts as a diffusion model sees them.

# %%
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from torch.nn import functional as F

import sinklens as sl
from sinklens.autoencoders import Formula, formulas
from sinklens.autoencoders.place import Place
from sinklens.selection.batches import batch_of
from sinklens.selection.texts import EchoTexts

torch.set_num_threads(1)  # a model as small as the twin gains little from a second thread
QUICK = "--quick" in sys.argv
SEED = next((int(word) for word in sys.argv[1:] if word.isdigit()), 0)
OUT = Path("sinklens-autoencoder")
LAYER, FEATURES, K = 0, 384, 12
UPDATES, ROWS, LENGTH = (100, 16, 48) if QUICK else (1500, 32, 48)
dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
place = Place.of(dlm, f"blocks.{LAYER}.hook_out")  # SAELens would say blocks.0.hook_resid_post

# %% [markdown]
# ## 1. Training
# Each batch is texts of the twin's language, masked at a random share as in its own training. k features at most are
# active at a position; the decoder's rows have unit length; features that have not been active for 100 updates
# learn to explain what is left over (arXiv 2406.04093, appendix A.2).


# %%
def activations(rng, texts):
    """The residual stream at real positions of one masked batch, [position, d_model]."""
    batch, kept = batch_of(dlm, texts(rng, ROWS, LENGTH), rng), []
    look = (place.point, lambda stream, hook: kept.append(stream[batch.valid]))
    with torch.no_grad(), dlm.hooks(fwd_hooks=[look]):
        dlm(batch.tokens, attention_mask=batch.valid)
    return kept[0].clone()


def train():
    """An autoencoder, and its training log."""
    rng, texts = np.random.default_rng(SEED), EchoTexts("train").draw(dlm)
    first = torch.cat([activations(rng, texts) for _ in range(4)])
    formula, size = Formula("topk", k=K), first.var(0).sum()
    rows = F.normalize(torch.randn(FEATURES, first.shape[-1], generator=torch.Generator().manual_seed(SEED)), dim=-1)
    w = {"W_dec": rows.clone(), "W_enc": rows.T.clone(), "b_dec": first.mean(0), "b_enc": torch.zeros(FEATURES)}
    w = {name: tensor.requires_grad_() for name, tensor in w.items()}
    adam = torch.optim.Adam(w.values(), lr=1e-3, betas=(0.9, 0.999))
    idle, log = torch.zeros(FEATURES, dtype=torch.long), []
    for update in range(UPDATES):
        adam.param_groups[0]["lr"] = 1e-3 * min(1.0, 4 * (1 - update / UPDATES))
        x = activations(rng, texts)
        f = formulas.encode(formula, w, x)
        error = x - formulas.decode(formula, w, f, x)
        idle = torch.where((f > 0).any(0), 0, idle + 1)
        loss = error.square().sum(-1).mean() / size
        if bool((dead := idle > 100).any()):
            late = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu() * dead
            loss = loss + (error.detach() - late @ w["W_dec"]).square().sum(-1).mean() / size / 32
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            w["W_dec"].copy_(F.normalize(w["W_dec"], dim=-1))
        if update % 50 == 0 or update == UPDATES - 1:
            unexplained = float(error.detach().square().sum(-1).mean() / size)
            log.append({"update": update, "unexplained": unexplained, "dead": int(dead.sum())})
    return sl.Autoencoder(formula, place, w), pd.DataFrame(log)


trained, log = train()
folder = trained.save(OUT / f"seed-{SEED}", {"updates": UPDATES, "positions": UPDATES * ROWS * LENGTH, "seed": SEED})
sae = sl.Autoencoder.load(folder)
print(
    f"{sae}\n\nSaved in {folder}: config.json and ae.safetensors\n\n"
    f"{log.iloc[:: max(1, len(log) // 8)].to_string(index=False)}"
)

# %% [markdown]
# ## 2. What it explains, and what it costs
# On texts that were not trained on. A loss at masked tokens is what the model is trained for; unmasked tokens it sees.
# Beside it an autoencoder of as many features that was not trained: decoder rows by chance.

# %%
held_out = EchoTexts("test").draw(dlm)(np.random.default_rng(SEED), 16 if QUICK else 128, LENGTH)
chance = torch.randn(FEATURES, sae.d_model, generator=torch.Generator().manual_seed(SEED))
untrained = {**sae.weights, "W_dec": F.normalize(chance, dim=-1), "W_enc": F.normalize(chance, dim=-1).T}
costs = {
    name: sl.delta_loss(dlm, each, held_out, seed=SEED, batch_size=64, progress=False)
    for name, each in {"trained": sae, "by chance": sl.Autoencoder(sae.formula, place, untrained)}.items()
}
costs = pd.concat([table.assign(autoencoder=name) for name, table in costs.items()])
costs = costs[
    [
        "autoencoder",
        "positions",
        "tokens",
        "unexplained",
        "l0",
        "loss",
        "spliced",
        "delta",
        "low",
        "high",
        "weighted_delta",
    ]
]
print(f"\nSpliced in, nats per token with 95 % intervals over texts:\n{costs.round(3).to_string(index=False)}")

# %% [markdown]
# With seed 0: all but 0.8 % of the variance is explained at unmasked tokens, and all but 6.5 % at masked ones, which
# are more alike, with 12 of 384 features; the loss at masked tokens rises by 0.012 [0.006, 0.020] nats. Decoder rows by
# chance cost a whole nat there. At unmasked tokens the model was never trained, and losses there say little: those by
# chance even lower it.
#
# ## 3. A feature over the steps
# Which feature matters is found on other texts than those on which it is then tested: of the features that are active
# most often while half of the words behind triggers are filled in, the one whose ablation costs most there.

# %%
plan = sl.Plan(new_tokens=0)
options = {"metrics": ["forced_accuracy"], "batch_size": 256}
first, second = (
    sl.tasks.Echo(n=n, seed=1000 * SEED + part, gaps=0.5)
    for part, n in ((1, 8 if QUICK else 24), (2, 8 if QUICK else 96))
)


def recorded(task, ids):
    """Activations of features over a run that commits the truth."""
    prompts = [example.prompt for example in task]
    probe = sl.probes.Features(sae, ids=ids)
    return sl.denoise(dlm, prompts, plan, probes=[probe], seed=SEED, progress=False).record


every = recorded(first, range(FEATURES))["features"]
rate = (every > 0).where(every.notnull()).mean(["prompt", "step", "key"]).to_series()
size = every.where(every > 0).mean(["prompt", "step", "key"]).to_series()
often = rate.sort_values(ascending=False).index[: 4 if QUICK else 24]
search = sl.ablate(
    dlm,
    first,
    {str(i): sl.Feature(sae, [int(i)]) for i in often},
    plan,
    controls=None,
    progress="candidates",
    **options,
)
effects = search.effects("forced_accuracy").set_index("condition")["to_unmasked"]
feature = int(effects.idxmin())
distance = (rate / rate[feature]).apply(np.log).abs() + (size / size[feature]).apply(np.log).abs()
twin = int(distance[rate > 0].drop(feature).idxmin())  # active about as often and as much

record = recorded(second, [feature, twin])
masked = record["masked"] == 1
rows = []
for which in (feature, twin):
    values = record["features"].sel(feature=which)
    for kind, where in (("masked", masked), ("committed", ~masked)):
        active = (values > 0).where(values.notnull() & where)
        for step, share in active.mean(["prompt", "key"]).to_series().dropna().items():
            rows.append(
                {
                    "feature": f"{which}" + (" (control)" if which == twin else ""),
                    "positions": kind,
                    "step": step,
                    "active": share,
                }
            )
steps = pd.DataFrame(rows)
print(f"\nFeature {feature}, and {twin} of about the same activity: share of positions where it is active, by step")
print(
    steps.pivot_table(index=["feature", "positions"], columns="step", values="active").iloc[:, ::4].round(3).to_string()
)
tokens = (
    record["token"]
    .broadcast_like(record["features"].sel(feature=feature))
    .where(record["features"].sel(feature=feature) > 0)
)
common = pd.Series(tokens.to_numpy().ravel()).dropna().astype(int).value_counts()[:6]
words = ", ".join(
    f"{text!r} {count / common.sum():.0%}"
    for text, count in zip(dlm.token_strings(common.index.tolist()), common, strict=True)
)
print(f"Feature {feature} is active most often where these tokens stand (or will stand): {words}")

# %% [markdown]
# ## 4. Ablating it, beside controls
# "random": at each position where the feature is active, another active feature is ablated instead. "another": one
# fixed feature that is active about as often, and as much. The error term is kept throughout.

# %%
conditions = {
    f"feature {feature}": sl.Feature(sae, [feature]),
    f"another ({twin})": sl.Feature(sae, [twin]),
    f"feature {feature} x 3": sl.Feature(sae, [feature], factor=3.0),
}
mine = steps[steps.feature == f"{feature}"].groupby("positions").active.mean()
for kind in mine[mine > 0.001].index:  # where it is never active, ablating it would be no condition
    conditions[f"feature {feature}, {kind} only"] = sl.Feature(sae, [feature], queries=kind)
found = sl.ablate(dlm, second, conditions, plan, progress="ablation", seeds=[SEED], **options)
lines = []
for each in found.effects("forced_accuracy").itertuples():
    lines.append(
        {
            "condition": each.condition,
            "unmasked": round(each.unmasked, 3),
            "- unmasked": f"{each.to_unmasked:+.3f} [{each.to_unmasked_low:+.3f}, {each.to_unmasked_high:+.3f}]",
            "- random": f"{each.to_control:+.3f} [{each.to_control_low:+.3f}, {each.to_control_high:+.3f}]",
            "p (Holm)": "" if math.isnan(p := each.to_control_p_holm) else "<0.001" if p < 0.001 else f"{p:.3f}",
        }
    )
ablated = pd.DataFrame(lines)
print(f"\nAccuracy of the words behind triggers, truth committed:\n{ablated.to_string(index=False)}")

# %% [markdown]
# With seeds 0 and 1: the feature that was chosen is active at half of the masked positions and a fifth of the others.
# Ablating it costs 5 and 9 points, with intervals below 0, and as much beyond other active features at the same
# positions, which cost nothing; so does the feature of about the same activity. All of it is at masked positions:
# with seed 1, ablating it at committed ones alone costs nothing. Three times as much of it costs 14 and 15 points.
#
# ## The page

# %%
page = sl.report.write(
    OUT / "report.html",
    title="A sparse autoencoder of tiny-dlm",
    intro="Every number on this page was computed by examples/autoencoder.py.",
    sections=[
        sl.report.Section(
            "Training",
            "Share of the variance that is not explained, by update.",
            [("Log", log)],
            [px.line(log, x="update", y="unexplained", log_y=True)],
        ),
        sl.report.Section("Spliced in", "Nats per token; intervals over texts.", [("Delta LM losses", costs)]),
        sl.report.Section(
            "A feature over the steps",
            "",
            [],
            [
                px.line(
                    steps, x="step", y="active", color="feature", line_dash="positions", symbol="feature", markers=True
                )
            ],
        ),
        sl.report.Section("Ablated", "Differences paired by text, with 95 % intervals.", [("Accuracy", ablated)]),
    ],
)
print(f"\n{page}")
