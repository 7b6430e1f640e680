"""The command line: demo, models, hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Measure and edit attention sinks in diffusion language models.\n\nStart with: sinklens demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, record.nc and ablation.csv.")] = Path(
        "sinklens-demo"
    ),
    prompts: Annotated[
        int, typer.Option(min=4, help="Held-out texts per task; fewer is faster and less certain.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of the texts and of the sampling.")] = 0,
) -> None:
    """The main job on the two bundled models: where sinks are, how they move, what removing them does.

    Takes about a minute on 2 cores and needs no network. An interrupted demo goes on where it was.
    """
    import torch

    from sinklens import demo as job

    # The twins are so small that a second thread gains little, and beside other programs it loses a lot.
    torch.set_num_threads(1)
    found = job.main_job(out, prompts=prompts, seed=seed)
    job.tell(found)
    page = job.write_report(found, out)
    typer.echo(f"\nDone in {found.seconds:.0f} s. Results:")
    for path, what in (
        (page, "tables and interactive timelines; open it in a browser"),
        (out / "record.nc", "tiny-dlm, every step: sinklens.open(...) gives an xarray Dataset"),
        (out / "record-arm.nc", "tiny-arm, likewise"),
        (out / "ablation.csv", "accuracy under every condition, with intervals"),
    ):
        typer.echo(f"  {path}  ({what})")
    typer.echo("Next: `sinklens hooks tiny-dlm` lists the hook points; the README has a probe in ten lines.")


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="tiny-dlm, tiny-arm, a folder, or a Hub id.")],
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.")],
    new_tokens: Annotated[
        int, typer.Option(help="Positions to generate; 0 fills the mask tokens in the prompts.")
    ] = 32,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; one token per step by default.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    rule: Annotated[str, typer.Option(help="Sink rule: rulli, gu, floating, sink_aware, act, streaming.")] = "rulli",
    chat: Annotated[bool, typer.Option(help="Put the prompts into the model's chat template.")] = False,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for record.nc and report.html.")] = Path("sinklens-out"),
) -> None:
    """Denoise prompts, find the sinks of every layer and step, write record and report."""
    from sinklens import metrics, records, report, rules
    from sinklens.model import HookedDLM
    from sinklens.plan import Plan
    from sinklens.probes import ReceivedAttention
    from sinklens.running import denoise

    chosen = rules.rule(rule)
    plan = Plan(new_tokens=new_tokens, steps=steps, temperature=temperature, chat=chat)
    dlm = HookedDLM.from_pretrained(model)
    run = denoise(dlm, prompts, plan, probes=[ReceivedAttention()], seed=seed)
    path = records.save(run.record, out / "record.nc")
    for prompt, completion in zip(prompts, run.completions, strict=True):
        typer.echo(f"{prompt} -> {completion}")
    length = run.record.sizes["key"]
    typer.echo(f"\n{chosen.explain(length)}\n")
    table = metrics.per_layer(run.record, chosen, causal=dlm.is_causal)
    moves = metrics.movement(run.record, chosen)
    typer.echo(table.merge(moves, on="layer").to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    page = report.from_record(out / "report.html", run.record, rule=chosen)
    typer.echo(f"\n{path}\n{page}")


@app.command()
def models() -> None:
    """The bundled models and the families whose checkpoints can be loaded."""
    from sinklens.families import FAMILIES
    from sinklens.loading import BUNDLED

    typer.echo("Bundled: " + ", ".join(BUNDLED))
    for family in FAMILIES:
        kind = "autoregressive baseline" if family.causal else "diffusion"
        typer.echo(
            f"{family.name:10} {kind:24} model_type {', '.join(family.model_types):14} e.g. {', '.join(family.models)}"
        )


@app.command()
def hooks(
    model: Annotated[str, typer.Argument(help="tiny-dlm, tiny-arm, a folder, or a Hub id.")] = "tiny-dlm",
) -> None:
    """The hook points of a model, with the shape each carries for one prompt of 5 tokens."""
    from sinklens.model import HookedDLM

    dlm = HookedDLM.from_pretrained(model)
    typer.echo(f"{dlm}; layer 0 stands for all {dlm.n_layers} layers")
    for name, shape in dlm.hook_table().items():
        if not name.startswith("blocks.") or name.startswith("blocks.0."):
            typer.echo(f"  {name.replace('blocks.0.', 'blocks.{i}.'):42} {list(shape)}")


def main() -> None:
    """Run the command line; an error that sinklens raises on purpose is one line, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        from sinklens.errors import SinklensError

        if not isinstance(error, SinklensError | ValueError):
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
