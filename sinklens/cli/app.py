"""The command line: demo, trace, ablate, reproduce, models, hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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

    from sinklens.cli import demo as job

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
    from sinklens import report
    from sinklens.analysis import rates as metrics
    from sinklens.decoding.plan import Plan
    from sinklens.decoding.run import denoise
    from sinklens.models.hooked_dlm import HookedDLM
    from sinklens.probes import KeyNorm, ReceivedAttention
    from sinklens.sinks import named as rules

    chosen = rules.rule(rule)
    plan = Plan(new_tokens=new_tokens, steps=steps, temperature=temperature, chat=chat)
    dlm = HookedDLM.from_pretrained(model)
    path = out / "record.nc"
    run = denoise(dlm, prompts, plan, probes=[ReceivedAttention(), KeyNorm()], seed=seed, save_to=path)
    for prompt, completion in zip(prompts, run.completions, strict=True):
        typer.echo(f"{prompt} -> {completion}")
    length = run.record.sizes["key"]
    typer.echo(f"\n{chosen.explain(length)}\n")
    table = metrics.per_layer(run.record, chosen, causal=dlm.is_causal)
    moves = metrics.movement(run.record, chosen)
    typer.echo(_table(table.merge(moves, on="layer")))
    typer.echo(
        f"\nWhich tokens are sinks (arXiv 2510.15731, table 2)\n{_table(metrics.sink_tokens(run.record, chosen))}"
    )
    page = report.from_record(out / "report.html", run.record, rule=chosen)
    typer.echo(f"\n{path}\n{page}")


@app.command()
def ablate(
    model: Annotated[str | None, typer.Argument(help="tiny-dlm, tiny-arm, a folder, or a Hub id.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="A YAML or JSON file with the same fields; options given here win.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="echo, or a JSONL file of prompt and answer.  [echo]")] = None,
    edit: Annotated[
        list[str] | None, typer.Option(help="An edit, several times: mask:top1, redistribute=uniform:top5, ...")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="How many examples.  [64]")] = None,
    gaps: Annotated[float | None, typer.Option(help="echo: share of decided words to fill in.  [0: continue]")] = None,
    extract: Annotated[str | None, typer.Option(help="JSONL: regular expression of what is compared.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Positions to generate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sampling.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the prompts into the model's chat template.")] = False,
    control: Annotated[
        list[str] | None, typer.Option(help="random, same_mass, bottom, same_class, shifted, noop or none.  [random]")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metrics, several times.  [accuracy]")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repetitions, several times.  [0]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows per forward.  [128]")] = None,
    grammar: Annotated[bool, typer.Option("--grammar", help="Print how edits are written, and stop.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for result.json, summary.csv and report.html.")] = Path(
        "sinklens-ablation"
    ),
) -> None:
    """Measure a model unmasked, under each edit, and under the same edit at control keys; paired, with intervals.

    An interrupted or killed ablation goes on where it was when it is started again.
    """
    from dataclasses import asdict

    import torch

    from sinklens.experiments import config as specs
    from sinklens.interventions import GRAMMAR
    from sinklens.models.loading import BUNDLED
    from sinklens.report.ablation import report_of

    if grammar:
        typer.echo(GRAMMAR)
        return
    given = asdict(specs.read(spec)) if spec is not None else {}
    plan = {"new_tokens": new_tokens, "steps": steps, "temperature": temperature, "chat": chat or None}
    options = {
        "model": model,
        "task": task,
        "edits": edit,
        "prompts": prompts,
        "gaps": gaps,
        "extract": extract,
        "controls": [] if control == ["none"] else control,
        "metrics": metric,
        "seeds": seed,
        "batch_size": batch_size,
    }
    given |= {name: value for name, value in options.items() if value is not None}
    given["plan"] = {**given.get("plan", {}), **{name: value for name, value in plan.items() if value is not None}}
    asked = specs.spec(given)
    if asked.model in BUNDLED:  # so small that a second thread gains little, and beside other programs loses a lot
        torch.set_num_threads(1)
    result = asked.run(save_to=out / "scores.jsonl", progress=f"{asked.model}: ablating")
    paths = report_of(result, out)
    typer.echo(_table(result.summary()))
    for name in dict.fromkeys(row["metric"] for row in result.rows):
        columns = ["condition", "control", "to_unmasked", "to_unmasked_low", "to_unmasked_high", "to_unmasked_p_holm"]
        columns += ["to_control", "to_control_low", "to_control_high", "to_control_p_holm"]
        typer.echo(f"\nEffects on {name} (differences, 95 % intervals, p after Holm)")
        typer.echo(_table(result.effects(name)[columns]))
    typer.echo("\n" + "\n".join(map(str, paths)))


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help="table1: accuracy without the top 1, 5 and 10 sinks.")],
    model: Annotated[list[str] | None, typer.Option(help="Several times.  [tiny-dlm and tiny-arm]")] = None,
    task: Annotated[str, typer.Option(help="echo, or a JSONL file of prompt and answer (GSM8K, say).")] = "echo",
    prompts: Annotated[int, typer.Option(min=1, help="How many examples.")] = 64,
    extract: Annotated[str | None, typer.Option(help="JSONL: regular expression of what is compared.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Positions to generate (the paper: 256 for GSM8K).")] = None,
    block_length: Annotated[int | None, typer.Option(help="Semi-autoregressive blocks (the paper: 32).")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the prompts into the model's chat template.")] = False,
    seed: Annotated[int, typer.Option(help="Of texts and sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward.")] = 448,
    out: Annotated[Path, typer.Option(help="Folder for table1.csv, the results and report.html.")] = Path(
        "sinklens-table1"
    ),
) -> None:
    """A published table by its own protocol, next to the published numbers, with the controls it lacks.

    table1 is that of "Attention Sinks in Diffusion Language Models" (arXiv 2510.15731). On the bundled twins it takes
    about a minute or two and needs no network. For the paper's models give --model and a JSONL file of prompts and
    answers.
    """
    import torch

    from sinklens.errors import PlanError
    from sinklens.experiments import published as tables
    from sinklens.report.table1 import write_table1

    if what != "table1":
        raise PlanError(f"{what!r} is unknown; there is table1")
    names = model or ["tiny-dlm", "tiny-arm"]
    if set(names) <= {"tiny-dlm", "tiny-arm"}:
        torch.set_num_threads(1)
    plan = {"new_tokens": new_tokens, "block_length": block_length, "steps": steps, "chat": chat or None}
    plan = {name: value for name, value in plan.items() if value is not None}
    results = [
        tables.table1(
            name,
            task,
            save_to=out / "scores.jsonl",
            progress=f"{name}: table 1",
            prompts=prompts,
            extract=extract,
            plan=plan,
            seeds=(seed,),
            batch_size=batch_size,
        )
        for name in names
    ]
    page = write_table1(results, out)
    typer.echo(_table(tables.layout(results)))
    typer.echo(f"\nPublished (arXiv 2510.15731, table 1)\n{tables.wide(tables.published()).to_string(index=False)}")
    typer.echo(f"\n{page}")


def _table(frame: Any) -> str:
    return frame.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="")


@app.command()
def models() -> None:
    """The bundled models and the families whose checkpoints can be loaded."""
    from sinklens.models.families import FAMILIES
    from sinklens.models.loading import BUNDLED

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
    """The hook points of a model: the shape of each for one prompt of 5 tokens, and what the main ones mean."""
    from sinklens.models.attention import MEANING
    from sinklens.models.hooked_dlm import HookedDLM

    dlm = HookedDLM.from_pretrained(model)
    typer.echo(f"{dlm}; layer 0 stands for all {dlm.n_layers} layers")
    for name, shape in dlm.hook_table().items():
        if not name.startswith("blocks.") or name.startswith("blocks.0."):
            meaning = MEANING.get(name.removeprefix("blocks.0."), "")
            typer.echo(f"  {name.replace('blocks.0.', 'blocks.{i}.'):42} {list(shape)!s:16} {meaning}".rstrip())


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
