"""What the gallery shows: every figure of `sinklens.plots`, the question that it answers, the lines that make it."""

from __future__ import annotations

from dataclasses import dataclass

SETUP = """\
from pathlib import Path

import pandas as pd

import sinklens as sl
from sinklens.analysis import kept

task = sl.tasks.Echo(n=12, seed=1)
prompts = [task[i].prompt for i in range(4)]
plan = sl.Plan(new_tokens=32)
probes = [sl.probes.ReceivedAttention(), sl.probes.KeyNorm()]
dlm, arm = (sl.HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm"))
record = sl.denoise(dlm, prompts, plan, probes=probes).record
causal = sl.denoise(arm, prompts, plan, probes=probes).record
package = Path(sl.__file__).parent
"""

ABLATION = """\
edits = {f"top-{k}": sl.MaskSinks(sl.SameStep(top_k=k)) for k in (1, 5)}
result = sl.ablate(dlm, task, edits, plan, controls=["random", "same_mass"], metrics=["forced_accuracy"])
"""
CURVE = """\
few, rates, ways = sl.tasks.Echo(n=6, seed=1), (0.25, 0.5), ("received", "key_norm", "random")
curve = sl.budget_curve(dlm, few, rates, ways, plan, draws=1, metrics=["forced_accuracy"], sinks=None)
tables = {"tiny-dlm": sl.budget_table(curve)}
"""
GATE = """\
gate = [sl.probes.Kept("tiny-dlm"), sl.probes.ReceivedAttention(), sl.probes.KeyNorm()]
asked = sl.denoise(dlm, prompts, plan, probes=gate).record
"""
NORMS = """\
smollm = sl.HookedDLM.from_pretrained("smollm2-135m")
small = {"lengths": (96, 192), "depths": (0.0, 0.5, 1.0), "repeats": 1, "recomputed": 0}
small |= {"texts": 1, "window": 96, "limit": 48}
protocol = sl.L2(shares=(0.75, 0.5), rankings=("low_norm", "high_norm", "random"), **small)
norms = sl.l2(smollm, protocol)
"""


@dataclass(frozen=True)
class Shown:
    """One figure.

    Attributes:
        name: Of the function in `sinklens.plots`.
        asks: The question that it answers.
        alt: What is seen.
        code: The line that makes it; executed behind SETUP and `before`.
        before: What it needs beside SETUP; a text that several figures share is executed once.
    """

    name: str
    asks: str
    alt: str
    code: str
    before: str = ""


GALLERY = (
    Shown(
        "text_timeline",
        "Which tokens are attended to, while the text fills in?",
        "A slider over steps; tokens appear as they are written, with a bar for the attention that each receives.",
        'sl.plots.text_timeline({"tiny-dlm": record, "tiny-arm": causal})',
    ),
    Shown(
        "timeline",
        "Who is attended to, step by step?",
        "Heat map of positions by steps. White circles mark sinks: the first token stays one, the others change place.",
        "sl.plots.timeline(record)",
    ),
    Shown(
        "side_by_side",
        "How do two runs differ?",
        "Two heat maps with one colour scale: the sinks of tiny-dlm move, tiny-arm's stays on the first position.",
        'sl.plots.side_by_side(record, causal, sl.plots.timeline, ("tiny-dlm", "tiny-arm"))',
    ),
    Shown(
        "sink_positions",
        "Where are the sinks, in which layer?",
        "Markers at positions by steps, a colour and a symbol per layer; the larger, the more heads.",
        "sl.plots.sink_positions(record)",
    ),
    Shown(
        "sink_lives",
        "How long does a sink live?",
        "Vertical strokes, one per uninterrupted stay of a key as a sink; beside them births and deaths at each step.",
        "sl.plots.sink_lives(record, head=3)",
    ),
    Shown(
        "heads",
        "What does each head do?",
        "A grid of small heat maps, a row per layer and a column per head.",
        "sl.plots.heads(record)",
    ),
    Shown(
        "layer_steps",
        "In which layers, at which steps?",
        "Heat map of layers by steps: the mean number of sinks of a head.",
        "sl.plots.layer_steps(record)",
    ),
    Shown(
        "histogram",
        "How much does a key receive, and where does the rule cut?",
        "Histogram of received attention with a line at the rule's cut and one at what uniform attention gives.",
        "sl.plots.histogram(record)",
    ),
    Shown(
        "filtered_curve",
        "How much depends on epsilon?",
        "Curves that rise to 1: the share of keys that are no sinks against epsilon, one per model, with its null.",
        'sl.plots.filtered_curve({"tiny-dlm": record, "tiny-arm": causal})',
    ),
    Shown(
        "layer_counts",
        "How many sinks has a head, and how many has a model without preferences?",
        "Bars per layer and model, with a mark at the count under uniform attention.",
        "sl.plots.layer_counts(pd.concat([sl.metrics.per_layer(each).assign(model=name) for name, each in\n"
        '                                 {"tiny-dlm": record, "tiny-arm": causal}.items()]))',
    ),
    Shown(
        "token_classes",
        "On which tokens do sinks stand, beside how many of these there are?",
        "Pairs of bars per token class: share of sinks, and share of keys.",
        "sl.plots.token_classes(pd.concat([sl.metrics.token_classes(each).assign(model=name) for name, each in\n"
        '                                  {"tiny-dlm": record, "tiny-arm": causal}.items()]))',
    ),
    Shown(
        "key_norms",
        "Do norms predict attention?",
        "Points, one per key, its norm against what it receives; symbols for prompt, committed, mask; sinks outlined.",
        "sl.plots.key_norms(record)",
    ),
    Shown(
        "conditions",
        "What does each condition reach, beside its controls?",
        "Points with intervals for each condition and control, and a line at the unedited model.",
        "sl.plots.conditions(result)",
        ABLATION,
    ),
    Shown(
        "effects",
        "What does an edit do beyond its control?",
        "Differences to the unedited model and to each control: top-5's lie left of zero, top-1's intervals cross it.",
        "sl.plots.effects(result)",
        ABLATION,
    ),
    Shown(
        "dose_response",
        "How much of it is too much?",
        "Two lines with intervals over the number of masked keys: sinks fall, random keys stay.",
        'sl.plots.dose_response(doses, "top_k")',
        "doses = sl.ablate(\n"
        '    dlm, task, sl.doses("top_k", [1, 2, 5, 10], lambda k: sl.MaskSinks(sl.SameStep(top_k=k))), plan,\n'
        '    metrics=["forced_accuracy"],\n)\n',
    ),
    Shown(
        "budget_curves",
        "Which keys are enough?",
        "Accuracy against the share of keys that is kept, a line with intervals per way to choose them.",
        "sl.plots.budget_curves(tables)",
        CURVE,
    ),
    Shown(
        "reached_shares",
        "Was as much kept as was asked for?",
        "The share kept in truth against the share asked for; selectors by rank lie on the diagonal, a gate near it.",
        "sl.plots.reached_shares(tables)",
        CURVE,
    ),
    Shown(
        "sinks_kept",
        "Does a gate keep the sinks?",
        "Markers per layer and rate: the share of sinks that the gate keeps, filled, and what chance would, open.",
        'sl.plots.sinks_kept({"tiny-dlm": kept.sinks_kept(asked)})',
        GATE,
    ),
    Shown(
        "survival",
        "How long does each token survive as the rate falls?",
        "A text whose tokens are coloured and numbered by the lowest rate at which they are still kept.",
        "sl.plots.survival(asked)",
        GATE,
    ),
    Shown(
        "cache_curve",
        "What is left when a cache is cut?",
        "Perplexity against the share of keys that the cache keeps, a line per ranking.",
        'sl.plots.cache_curve(norms, "perplexity")',
        NORMS,
    ),
    Shown(
        "retrieval_grid",
        "Where is something found in a cut context?",
        "Cells, depth by length, a panel per ranking and share; bright, and 100 %, where the passkey is found.",
        'sl.plots.retrieval_grid(norms, "passkey", ("low_norm", "high_norm", "random"))',
        NORMS,
    ),
    Shown(
        "norm_correlation",
        "Does a small key receive more attention?",
        "Heat maps of rank correlations by layer and key head, in four ways.",
        "sl.plots.norm_correlation(norms)",
        NORMS,
    ),
    Shown(
        "norms_over_steps",
        "Does it while the text is denoised?",
        "A line of rank correlations over steps for each type of key.",
        'sl.plots.norms_over_steps(found.correlation, "tiny-dlm")',
        "found = sl.l2_in_diffusion(dlm, sl.tasks.Echo(n=4, seed=1), plan, rates=(0.5,))\n",
    ),
    Shown(
        "patching",
        "Which activation carries the answer, at which step?",
        "A heat map of effects, layers by positions, for each step; few cells are coloured.",
        "sl.plots.patching(patches)",
        'pair = ("pante dolko xe dolko", "pante tuste xe tuste")\n'
        'patches = sl.patch(dlm, *pair, sl.Plan(new_tokens=8), sl.Patches("mlp"))\n',
    ),
    Shown(
        "emergence",
        "When do sinks appear in training?",
        "Three panels over updates: attention to BOS rises, sinks per head, accuracy.",
        'sl.plots.emergence(package / "twins" / "tiny-arm")',
    ),
    Shown(
        "adaptation",
        "What becomes of a sink when an autoregressive model is made a diffusion model?",
        "Three panels over updates: attention to the first token is gone as soon as the mask opens.",
        'sl.plots.adaptation(package / "adapted" / "smollm2-135m-diffusion")',
    ),
)
