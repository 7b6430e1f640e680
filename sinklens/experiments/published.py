"""Published tables as one call: the protocol of the paper, its numbers beside ours, and the controls that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklens.decoding.past import has_past
from sinklens.experiments.config import Experiment
from sinklens.experiments.results import UNMASKED, AblationResult
from sinklens.values.kinds import Count, reads

if TYPE_CHECKING:
    import pandas as pd

KS = (1, 5, 10)
SETTINGS = (UNMASKED, *(f"top-{k}" for k in KS))

# arXiv 2510.15731, table 1: accuracy (unmasked, top-1, top-5, top-10), by dataset and model.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "GSM8K": {
        "Dream-7B": (0.82, 0.79, 0.78, 0.75),
        "LLaDA-8B": (0.76, 0.75, 0.73, 0.55),
        "MMaDA-8B": (0.54, 0.53, 0.54, 0.37),
        "Llama-3.1-8B": (0.85, 0.02, 0.02, 0.01),
    },
    "HumanEval": {
        "Dream-7B": (0.60, 0.64, 0.61, 0.57),
        "LLaDA-8B": (0.37, 0.37, 0.39, 0.35),
        "MMaDA-8B": (0.16, 0.16, 0.18, 0.09),
        "Llama-3.1-8B": (0.66, 0.00, 0.00, 0.00),
    },
}


@reads()
def table1(
    model: str,
    task: str = "echo",
    *,
    ks: Sequence[Count] = KS,
    save_to: str | Path | None = None,
    progress: bool | str = True,
    **options: Any,
) -> AblationResult:
    """Table 1 of arXiv 2510.15731 for one model: accuracy without its top 1, 5 and 10 sinks, by the paper's protocol.

    At step t the keys that received most at step t - 1, in each layer and head by itself, get -inf before the softmax
    (all layers, heads, queries and keys); for autoregressive models those that the last query attends to most (section
    4.3). What the paper leaves open is chosen as the defaults of `PreviousStep` (closed loop, step 0 unedited).
    Beyond the paper: the same with as many random keys, and with random keys of the same total attention.

    Args:
        model: As in `HookedDLM.from_pretrained`.
        task: "echo", "facts", "antibodies" or a JSONL file.
        ks: How many sinks.
        save_to: As in `ablate`; an interrupted table goes on where it was.
        progress: As in `ablate`.
        **options: Further fields of `Experiment` (prompts, extract, plan, seeds, controls, device, ...). For an
            autoregressive model those of the plan that only diffusion models use are left out, and for a model that
            sees the whole canvas at every step its `editing`: without a past there is one meaning.
    """
    return experiment1(model, task, ks=ks, **options).run(save_to=save_to, progress=progress)


@reads()
def experiment1(model: str, task: str = "echo", *, ks: Sequence[Count] = KS, **options: Any) -> Experiment:
    """The experiment of `table1`, with the same arguments."""
    edits = {f"top-{k}": f"mask:top{k}" for k in ks}
    asked = Experiment(model=model, task=task, edits=edits, **{"controls": ("random", "same_mass"), **options})
    outline, plan = asked.placing.outline(model), asked.make_plan()
    if outline.is_causal:
        return replace(asked, plan=plan.for_causal())
    return asked if has_past(outline) else replace(asked, plan=replace(plan, editing="scratch"))


def layout(results: Sequence[AblationResult]) -> pd.DataFrame:
    """Results in the paper's layout: a line per task, model and setting.

    Columns: task, model, editing (`meaning`), setting, accuracy, low, high (95 % interval), exposed (as in
    `AblationResult.scores`), one column per control (accuracy with random keys masked instead), pairs (prompts that
    could be scored on all sides; the next columns are of these alone), minus_control (difference of differences to the
    first control) with its interval, p_holm; unfinished (prompts are missing), if any result was interrupted.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for result in results:
        summary: Any = result.summary()
        metric = summary["metric"].iloc[0]
        effects: Any = result.effects(metric)
        for condition, part in summary[summary.metric == metric].groupby("condition", sort=False):
            main = part[part.kind.isin([UNMASKED, "sinks"])].iloc[0]
            line = {"task": result.provenance["task"], "model": main.model, "editing": meaning(result)}
            line |= {"setting": condition}
            line |= {"accuracy": main.value, "low": main.low, "high": main.high, "exposed": main.exposed}
            for other in part[~part.kind.isin([UNMASKED, "sinks"])].itertuples():
                line[f"{other.kind} keys"] = other.value
            against = effects[effects.condition == condition]
            if len(against) and against["control"].iloc[0]:
                first = against.iloc[0]
                line |= {
                    "pairs": first.pairs_control,
                    "minus_control": first.to_control,
                    "minus_control_low": first.to_control_low,
                }
                line |= {"minus_control_high": first.to_control_high, "p_holm": first.to_control_p_holm}
            line |= {} if all(each.finished for each in results) else {"unfinished": not result.finished}
            lines.append(line)
    return pd.DataFrame(lines)


def meaning(result: AblationResult) -> str:
    """What edits meant in a result: "scratch" or "local"; "-" where there is no past to tell them apart."""
    made = result.provenance
    return str(made["plan"]["editing"]) if made["causal"] or "blocks" in made else "-"


def published() -> pd.DataFrame:
    """The paper's table 1, in the same layout (its intervals are standard errors of the harness and left out)."""
    import pandas as pd

    lines = [
        {"task": task, "model": model, "setting": setting, "accuracy": value}
        for task, models in PUBLISHED.items()
        for model, values in models.items()
        for setting, value in zip(SETTINGS, values, strict=True)
    ]
    return pd.DataFrame(lines)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """As the paper prints it: settings below each other, models side by side; exposure where it is below 1."""
    shown: Any = table.copy()
    if "low" in shown:
        shown["accuracy"] = [
            f"{a:.2f} [{low:.2f}, {high:.2f}]" + (f" ({met:.2f} exposed)" if met < 1 else "")
            for a, low, high, met in zip(shown.accuracy, shown.low, shown.high, shown.exposed, strict=True)
        ]
        if "unfinished" in shown:
            shown["accuracy"] += [" UNFINISHED" if part else "" for part in shown.unfinished]
    else:
        shown["accuracy"] = [f"{a:.2f}" for a in shown.accuracy]
    return shown.pivot_table(
        index=["task", "setting"], columns="model", values="accuracy", aggfunc="first", sort=False
    ).reset_index()
