"""`sinklens select show`: what a gate keeps of a text, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def show(
    context: typer.Context,
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="One text or several; masks are filled.")],
    gate: Annotated[
        str, typer.Option(help="Folder of a trained gate, or the name of one that comes with sinklens.",
                          show_default="the one that comes with sinklens for the model")
    ] = "auto",
    rates: Annotated[
        list[float] | None,
        typer.Option("--rate", help="A share of keys, above 0 and at most 1; several times.", show_default="9 rates"),
    ] = None,
    new_tokens: options.NewTokens = 16,
    steps: options.Steps = None,
    temperature: options.Temperature = 0.0,
    chat: options.Chat = False,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
    out: Annotated[Path, typer.Option(help="Folder for record.nc and report.html.")] = Path("sinklens-kept"),
) -> None:  # fmt: skip
    """What a gate would keep of a text while the model goes on with it: sinks, small keys, kinds of tokens, survival.

    The model runs as ever, and the gate is asked at every layer and step which tokens it would keep at each rate. The
    page shows the text, coloured by how long each token survives as the rate falls, and whether the sinks are among
    what is kept more often than chance would have it.

    sinklens select show tiny-dlm "dolko xe dolko xo dolko talma"
    """
    from sinklens import records
    from sinklens.analysis import kept
    from sinklens.decoding.plan import Plan
    from sinklens.decoding.prompts import prepare
    from sinklens.decoding.run import denoise
    from sinklens.experiments.budgets import gates_for
    from sinklens.probes import Kept, KeyNorm, ReceivedAttention
    from sinklens.report.budgets import SHOW_FILES, show_report

    plan = Plan(**options.plan_of(context.params))
    placing = options.placed(context.params)
    outline = placing.outline(model)
    named = gates_for(outline, {"gate": gate})["gate"]
    asked = Kept(named, tuple(rates)) if rates else Kept(named)
    prepare(outline, prompts, plan, seed)
    path = options.folder(out, SHOW_FILES) / "record.nc"
    options.few_threads(model)
    options.tell_model(model, placing)
    dlm = placing.load(model)
    probes = [asked, ReceivedAttention(), KeyNorm()]
    run, stopped = options.kept(lambda: denoise(dlm, prompts, plan, probes=probes, seed=seed, save_to=path), "run")
    if run is None:
        options.interrupted("no step was finished, and nothing was written")
    if stopped:
        records.save(run.record, path)
        options.warn(records.unfinished(run.record) or "interrupted while it was saved; it is whole")
    for prompt, completion in zip(prompts, run.completions, strict=True):
        typer.echo(f"{prompt} -> {completion}")
    typer.echo("\nSinks that the gate keeps, beside what chance would (shares of them)")
    typer.echo(options.text_of(kept.sinks_kept(run.record, by=())))
    typer.echo("\nWhat it keeps, by the state of the token")
    states = kept.kept_by(run.record, "key_type")
    typer.echo(options.text_of(states[states["keys"] > 0]))
    typer.echo("\nNorms of the keys that it keeps and drops")
    typer.echo(options.text_of(kept.norms_kept(run.record)))
    page = show_report(run.record, out)
    typer.echo(f"\n{path}\n{page}")
    if stopped:
        finished = run.record.sizes["step"]
        options.interrupted(f"{path} and {page} hold the {finished} finished steps; for all of them start it again")
