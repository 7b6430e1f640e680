"""`sinklens select curve`: how few keys are enough, by how they are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options

OTHERS = ("rates", "selectors", "gates", "draws", "with_sinks", "margin", "out")
PROMPTS = 24


def curve(
    context: typer.Context,
    model: options.Model,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", help="A trained gate, NAME=FOLDER or FOLDER; several times; none: no gate.",
            show_default="the one that comes with sinklens for the model, if any",
        ),
    ] = None,
    rates: Annotated[
        list[float] | None,
        typer.Option("--rate", help="A share of keys, above 0 and at most 1; several times.", show_default="10 rates"),
    ] = None,
    selectors: Annotated[
        list[str] | None,
        typer.Option(
            "--selector", show_default="all",
            help="received, key_norm, hidden_norm, recency, random, random_tokens; several times.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="How many seeds of the random choice.")] = 3,
    with_sinks: Annotated[
        bool, typer.Option("--sinks/--no-sinks", help="Beside the curves all keys but the sinks, and all but others.")
    ] = True,
    margin: Annotated[
        float, typer.Option(help="The largest loss that would not matter: it holds where less is shown to be lost.")
    ] = 0.1,
    task: options.Task = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="How many examples.", show_default=str(PROMPTS))] = None,
    gaps: Annotated[
        float | None,
        typer.Option(help="echo: share of decided words to fill in; 0 continues texts.", show_default="0"),
    ] = None,
    extract: options.Extract = None,
    match: options.Match = None,
    separator: options.Separator = None,
    new_tokens: options.NewTokens = None,
    steps: options.Steps = None,
    block_length: options.BlockLength = None,
    temperature: options.Temperature = None,
    chat: options.Chat = False,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Metrics, several times.", show_default="accuracy")
    ] = None,
    seeds: options.Seeds = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
    out: Annotated[Path, typer.Option(help="Folder for result.json, budgets.csv and report.html.")] = Path(
        "sinklens-budgets"
    ),
) -> None:  # fmt: skip
    """Accuracy against the share of keys that a model may see, for every way to choose them; paired, with intervals.

    At each rate every layer and head keeps that share of its keys and loses the others: the most attended (received),
    those with the smallest keys (key_norm) or the largest residual (hidden_norm), the last ones (recency), random ones,
    or what a trained gate keeps (sinklens select train). Beside a gate all of them choose in the layers in which the
    gate does. The sinks alone stand beside the curves: all keys but the sinks, and all but as many random others.

    An interrupted or killed curve goes on where it was when it is started again. The bundled twins take a minute:

    sinklens select curve tiny-dlm --gaps 0.5
    """
    from sinklens.errors import PlanError
    from sinklens.experiments.budget_table import breaking_point, budget_table
    from sinklens.experiments.budgets import RANKINGS, RATES, budget_edits, check_lengths, gates_for
    from sinklens.experiments.config import Experiment
    from sinklens.files import SCORES
    from sinklens.report.budgets import CURVE_FILES, curve_report, measured
    from sinklens.sinks import SinkRule

    if margin < 0:
        raise PlanError(f"--margin {margin:g} is below 0: it is the largest loss that would not matter")
    outline = options.placed(context.params).outline(model)
    asked = rates or list(RATES)
    named = None if gates is None else {} if gates == ["none"] else dict(map(_named, gates))
    edits = budget_edits(
        asked,
        selectors or RANKINGS,  # pyright: ignore[reportArgumentType]
        gates=gates_for(outline, named),
        draws=draws,
        sinks=SinkRule() if with_sinks else None,
    )
    fields = {"prompts": PROMPTS, **options.fields_of(context.params, *OTHERS), "edits": edits, "controls": ()}
    experiment = options.on_best_device(Experiment.from_dict(fields))
    options.folder(out, {**CURVE_FILES, "scores.jsonl": SCORES})
    options.few_threads(model)
    job = experiment.make_task()
    check_lengths(outline, job, experiment.make_plan(), asked, experiment.asked_metrics)
    experiment.check()
    options.tell_model(model, experiment.placing)
    typer.echo(f"{job.name}, {len(job)} examples: {job.scoring}")
    scores, label = out / "scores.jsonl", f"{model}: budgets"
    result, stopped = options.kept(lambda: experiment.run(save_to=scores, progress=label), "result")
    if result is None:
        options.interrupted("no batch was finished, and nothing was written")
    paths = curve_report(result, out, margin)
    if result.unfinished:
        options.warn(result.unfinished)
    for metric in measured(result):
        table = budget_table(result, metric)
        columns = ["selector", "rate", "kept", "value", "low", "high", "to_unmasked", "to_unmasked_p_holm"]
        columns += ["to_random", "to_random_low", "to_random_high", "to_random_p_holm", "to_random_kept"]
        typer.echo(
            f"\n{metric} (95 % intervals, differences paired by prompt, p after Holm; to_random_kept: how\n"
            "much more was kept than by the control, which should be about 0)"
        )
        typer.echo(options.text_of(table[columns]))
        typer.echo(f"\nDown to which rate it holds (the loss is shown to be below {margin:g}), and at which it breaks")
        typer.echo(options.text_of(breaking_point(table, margin)))
    typer.echo("\n" + "\n".join(map(str, paths)))
    if stopped:
        options.interrupted(f"the finished batches are in {scores}; to go on start the same command again")


def _named(text: str) -> tuple[str, str]:
    """A gate's name and its folder."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals else (Path(text).name, text)
