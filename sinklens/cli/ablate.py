"""`sinklens ablate`: an experiment from options, from a file, or from both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def ablate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="tiny-dlm, tiny-bdlm, tiny-arm, a folder, or a Hub id.", show_default="tiny-dlm"),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="A YAML or JSON file with the same fields; options given here win.")
    ] = None,
    task: options.Task = None,
    edits: Annotated[
        list[str] | None,
        typer.Option("--edit", help="An edit, several times: mask:top1, redistribute=uniform:top5, ..."),
    ] = None,
    prompts: options.Prompts = None,
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
    editing: options.Editing = None,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            help="random, same_mass, bottom, same_class, shifted, noop or none; of steer: random_direction, "
            "orthogonal_direction; several times.",
            show_default="random",
        ),
    ] = None,
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
    grammar: Annotated[bool, typer.Option("--grammar", help="Print how edits are written, and stop.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for result.json, summary.csv and report.html.")] = Path(
        "sinklens-ablation"
    ),
) -> None:
    """Measure a model unmasked, under each edit, and under the same edit at control keys; paired, with intervals.

    An interrupted or killed ablation goes on where it was when it is started again.
    """
    from sinklens.experiments.config import read
    from sinklens.files import SCORES
    from sinklens.interventions import GRAMMAR
    from sinklens.report.ablation import FILES, report_of

    if grammar:
        typer.echo(GRAMMAR)
        return
    experiment = read(spec, options.fields_of(context.params, "spec", "grammar", "out"))
    experiment = options.on_best_device(experiment)
    options.folder(out, {**FILES, "scores.jsonl": SCORES})
    options.few_threads(experiment.model)
    experiment.check()
    job = experiment.make_task()
    options.tell_model(experiment.model, experiment.placing)
    typer.echo(f"{job.name}, {len(job)} examples: {job.scoring}")
    scores, label = out / "scores.jsonl", f"{experiment.model}: ablating"
    result, stopped = options.kept(lambda: experiment.run(save_to=scores, progress=label), "result")
    if result is None:
        options.interrupted("no batch was finished, and nothing was written")
    paths = report_of(result, out)
    if result.unfinished:
        options.warn(result.unfinished)
    typer.echo(options.text_of(result.summary()))
    for name in dict.fromkeys(score["metric"] for score in result.scores):
        columns = ["condition", "control", "to_unmasked", "to_unmasked_low", "to_unmasked_high", "to_unmasked_p_holm"]
        columns += ["to_control", "to_control_low", "to_control_high", "to_control_p_holm", "exposed"]
        typer.echo(f"\nEffects on {name} (differences, 95 % intervals, p after Holm)")
        typer.echo(options.text_of(result.effects(name)[columns]))
    typer.echo("\n" + "\n".join(map(str, paths)))
    if stopped:
        options.interrupted(f"the finished batches are in {scores}; to go on start the same command again")
