"""`sinklens trace`: one run, its sinks, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options

PAGES = ("report.html", "timeline.html")


def trace(
    context: typer.Context,
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.")],
    new_tokens: options.NewTokens = 32,
    steps: options.Steps = None,
    temperature: options.Temperature = 0.0,
    rule: Annotated[str, typer.Option(help="Sink rule: rulli, gu, floating, sink_aware, act, streaming.")] = "rulli",
    chat: options.Chat = False,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
    out: Annotated[Path, typer.Option(help="Folder for record.nc and the pages.")] = Path("sinklens-out"),
) -> None:
    """Denoise prompts, find the sinks of every layer and step, write record, report and timeline."""
    from sinklens import files, plots, records, report
    from sinklens.analysis import rates as metrics
    from sinklens.analysis.headline import headline
    from sinklens.decoding.plan import Plan
    from sinklens.decoding.prompts import prepare
    from sinklens.decoding.run import denoise
    from sinklens.probes import KeyNorm, ReceivedAttention
    from sinklens.sinks import named

    chosen = named.rule(rule)
    plan = Plan(**options.plan_of(context.params))
    placing = options.placed(context.params)
    prepare(placing.outline(model), prompts, plan, seed)
    path = options.folder(out, {"record.nc": files.RECORD, **dict.fromkeys(PAGES, files.PAGE)}) / "record.nc"
    options.few_threads(model)
    options.tell_model(model, placing)
    dlm = placing.load(model)
    probes = [ReceivedAttention(), KeyNorm()]
    run, stopped = options.kept(lambda: denoise(dlm, prompts, plan, probes=probes, seed=seed, save_to=path), "run")
    if run is None:
        options.interrupted("no step was finished, and nothing was written")
    if stopped:
        records.save(run.record, path)
        options.warn(records.unfinished(run.record) or "interrupted while it was saved; it is whole")
    typer.echo(f"{headline(run.record, chosen)}\n")
    for prompt, completion in zip(prompts, run.completions, strict=True):
        typer.echo(f"{prompt} -> {completion}")
    typer.echo(f"\n{chosen.explain(run.record.sizes['key'])}\n")
    table = metrics.per_layer(run.record, chosen)
    moves = metrics.movement(run.record, chosen)
    typer.echo(options.text_of(table.merge(moves, on="layer")))
    tokens = metrics.sink_tokens(run.record, chosen)
    typer.echo("\nWhich tokens are sinks (arXiv 2510.15731, table 2)")
    typer.echo(options.text_of(tokens) if len(tokens) else "none, at no step")
    page = report.from_record(out / "report.html", run.record, rule=chosen)
    picture = plots.text_timeline(run.record, rule=chosen).save(out / "timeline.html")  # of the first prompt
    typer.echo(f"\n{path}\n{picture}\n{page}")
    if stopped:
        steps = run.record.sizes["step"]
        options.interrupted(f"{path} and {page} hold the {steps} finished steps; for all of them start it again")
