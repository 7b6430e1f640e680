# %% [markdown]
# # Steering: does a direction do what it says?
#
# A direction is the difference of two means of the residual stream, over prompts that differ in one thing; steering
# adds it while the model writes. It does what it says if the model then does more of that thing than it does when a
# random vector of the same length is added in the same place. Run the file as it is (`python examples/05_steering.py`,
# half a minute: tiny-dlm; `python examples/05_steering.py 1` for other texts), with `--real` for SmolLM2 and the same
# weights made a diffusion model (some minutes), or open it as a notebook: it is in the py:percent format.

# %%
import sys

import pandas as pd
import torch

import sinklens as sl
from sinklens.experiments.statistics import mean_and_interval, permutation_p
from sinklens.tasks import Jsonl
from sinklens.tasks.base import Example

torch.set_num_threads(1)
SEED = next((int(word) for word in sys.argv[1:] if word.isdigit()), 0)
PROMPTS = next((int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("--prompts=")), 64)
DRAWS = 3  # random vectors that each direction is compared with, where the comparison is made here


def told(question, table):
    """Print a table under a question."""
    print(f"\n{question}", table.to_string(index=False), sep="\n")


# %% [markdown]
# ## 1. The rule that tiny-dlm follows
# In Echo, the word behind "xa", "xe", ... repeats the last word, behind "wa", "we", ... the last word but one. The
# direction: the mean behind a "w" minus that behind an "x", at the mask that waits there, behind layer 0. Added at the
# masks behind an "x" of texts that it was not found on, it should make the model write the last word but one.

# %%
dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
echo = sl.tasks.Echo(n=8 * PROMPTS, seed=SEED)
grammar = echo.grammar


def beginnings(texts, rule):
    """Beginnings of texts that end with a trigger of a rule, and the two last words before it, the last one first."""
    found = []
    for ids in texts:
        for end in range(6, len(ids)):
            words = [word for word in ids[:end] if word >= grammar.first_word][-2:]
            if grammar.rule[ids[end]] == rule and len(set(words)) == 2:
                found.append((grammar.text(ids[: end + 1]), *(grammar.tokens[word] for word in words[::-1])))
                break
    return found


repeats, skips = (beginnings(echo.texts[: 4 * PROMPTS], rule) for rule in (1, 2))
held_out = beginnings(echo.texts[4 * PROMPTS :], 1)[:PROMPTS]
rule = sl.directions.difference(dlm, [text for text, *_ in skips], [text for text, *_ in repeats],
                                layers=0, masks=1, positions="masked")  # fmt: skip
print(rule, "agreement of its halves:", [round(each, 2) for each in rule.made["agreement"]])

other_rule = [Example(text, before, f"text {index}") for index, (text, _, before) in enumerate(held_out)]
switched = sl.ablate(
    dlm,
    Jsonl("the other rule", examples=tuple(other_rule)),
    sl.doses("scale", [0.5, 1, 1.5, 2, -1], lambda scale: sl.Steer(rule, scale, positions="masked")),
    sl.Plan(new_tokens=1),
    controls=["random_direction", "orthogonal_direction"],
    metrics=["accuracy", "log_likelihood"],
    progress="tiny-dlm",
)
METRICS = {"accuracy": "share that writes the last word but one", "log_likelihood": "its log likelihood, in nats"}
for metric, meaning in METRICS.items():
    columns = ["condition", "unmasked", "value", "to_unmasked", "control", "to_control", "to_control_low",
               "to_control_high", "to_control_p_holm"]  # fmt: skip
    table = switched.effects(metric)
    shown = table[[column for column in columns if column in table]].round(3)
    told(f"1. tiny-dlm behind an x, steered to the rule of w: {meaning}", shown)

# %% [markdown]
# With seeds 0 and 1: unsteered the model never writes the last word but one here; steered by twice the direction it
# does in 59 and 55 % of the texts, where random vectors of the same length reach 2 % at most, and orthogonal ones 3 %.
# The log likelihood of that word rises by 8 nats at the direction's own length, of which random vectors reach one: any
# large push makes a sure model less sure, and without the control that would be taken for steering. The other way round
# (-1) the word gains 5 nats, too, and more than by chance: what is pushed off its rule writes anything.
#
# ## 2. Sentiment in SmolLM2
# The direction: the mean over six warm sentences minus that over six that say the opposite, in layer 20; for the
# autoregressive model at their last token, for the diffusion model at a mask behind them. What is asked: by how many
# nats the model prefers " great" to " terrible" and " wonderful" to " awful" behind a beginning that says neither.
#
# (Not the mean over all positions: the first token, or a line break, is a sink with a norm that dwarfs all others, and
# its share of the mean is one over the length of the sentence. The halves then agree, or disagree, about lengths.)

# %%
WARM = [
    "What a wonderful day, I loved every minute of it.",
    "The food was delicious and the service was great.",
    "I am so happy with this, it is excellent.",
    "This is the best book that I have ever read.",
    "She smiled warmly and we all had a lovely time.",
    "Fantastic work, a brilliant and beautiful film.",
]
COLD = [
    "What a horrible day, I hated every minute of it.",
    "The food was disgusting and the service was terrible.",
    "I am so angry about this, it is awful.",
    "This is the worst book that I have ever read.",
    "She shouted rudely and we all had a miserable time.",
    "Pathetic work, a stupid and ugly film.",
]
THINGS = [
    "film",
    "hotel",
    "soup",
    "concert",
    "journey",
    "speech",
    "lesson",
    "match",
    "weather",
    "party",
    "play",
    "shop",
]
NEUTRAL = [f"The {thing} was" for thing in THINGS]
PAIRS = [(" great", " terrible"), (" wonderful", " awful")]


def preference(model, edit=None):
    """Nats by which the warm continuations are preferred, for each beginning [prompt]."""
    prompts = [prompt for prompt in NEUTRAL for _ in PAIRS]
    sides = [
        sl.log_likelihood(
            model,
            prompts,
            [pair[side] for _ in NEUTRAL for pair in PAIRS],
            separator=None,
            interventions=[] if edit is None else [edit],
            samples=2,
        )
        for side in (0, 1)
    ]
    return (sides[0] - sides[1]).view(len(NEUTRAL), len(PAIRS)).mean(-1)


def sentiment(name, scales=(1.0, 2.0, -2.0)):
    """Changes of the preference, against random vectors of the same length."""
    model, layer = sl.HookedDLM.from_pretrained(name), sl.Scope(layers=20)
    how = {"positions": "last"} if model.is_causal else {"positions": "masked", "masks": 1}
    warm = sl.directions.difference(model, WARM, COLD, layers=20, **how)
    plain, lines = preference(model), []
    for scale in scales:
        edit = sl.Steer(warm, scale, where=layer)
        moved = preference(model, edit) - plain
        others = [sl.interventions.control(edit, "random_direction", SEED * DRAWS + draw) for draw in range(DRAWS)]
        by_chance = torch.stack([preference(model, other) - plain for other in others]).mean(0)
        line = {"model": name, "scale": scale, "unsteered": f"{float(plain.mean()):+.2f}"}
        for what, values in {"change": moved, "random": by_chance, "change - random": moved - by_chance}.items():
            mean, (low, high) = mean_and_interval(values)
            line[what] = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(line | {"p": permutation_p(moved - by_chance)})
    return pd.DataFrame(lines)


if "--real" in sys.argv:
    for name in ("smollm2-135m", "smollm2-135m-diffusion"):
        told("2. Nats by which warm words are preferred to cold ones", sentiment(name))

# %% [markdown]
# With seed 0, twelve beginnings: at the direction's own length the autoregressive model moves by 4.2 nats [3.9, 4.4] to
# the warm words, the diffusion model by 4.0 [3.6, 4.5], at twice that by 6.8 and 6.6, and the other way round by -3.2
# and -6.3; random vectors of the same length move neither by more than a third of a nat. The diffusion model starts
# warmer (+3.3 nats; the autoregressive one +1.1).
