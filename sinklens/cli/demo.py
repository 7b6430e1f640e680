"""`sinklens demo`: the main job, on the bundled models or on real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def demo(
    context: typer.Context,
    real: Annotated[
        bool,
        typer.Option("--real", help="On real models, of 26 and 135 million weights: 12 minutes on 2 cores."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results.", show_default="sinklens-demo, or sinklens-demo-real"),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Texts per task; fewer is faster and less certain.",
            show_default="64; --real: 16",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the texts and of the sampling.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
) -> None:
    """The main job: where sinks are, how they move, what removing them does.

    On the three bundled models it takes about a minute on 2 cores and needs no network. With --real it asks models that
    `sinklens models get smollm2-135m` and `... antiberty` have fetched. An interrupted demo goes on where it was.
    """
    out = out or Path("sinklens-demo-real" if real else "sinklens-demo")
    try:
        if real:
            _real(context, out, prompts or 16, seed)
        else:
            _bundled(context, out, prompts or 64, seed)
    except KeyboardInterrupt:
        options.interrupted(f"what was finished is in {out}; to go on start the same command again")


def _bundled(context: typer.Context, out: Path, prompts: int, seed: int) -> None:
    from sinklens.cli.demo_job import FILES, RECORDS, main_job
    from sinklens.cli.demo_page import tell, write_report
    from sinklens.models.files import BUNDLED

    placing = options.placed(context.params)
    for name in BUNDLED:
        placing.outline(name)
    options.folder(out, FILES)
    options.few_threads()
    findings = main_job(out, placing, prompts=prompts, seed=seed)
    tell(findings)
    page, kept = write_report(findings, out), RECORDS.items()
    _done(
        findings.seconds,
        (page, "tables and interactive timelines; open it in a browser"),
        *((out / file, f"{name}, every step: sinklens.open(...) gives an xarray Dataset") for name, file in kept),
        (out / "ablation.csv", "accuracy under every condition, with intervals"),
    )
    typer.echo(
        "Next: `sinklens hooks tiny-dlm` lists the hook points; `sinklens course` writes lessons (extra: course)."
    )


def _real(context: typer.Context, out: Path, prompts: int, seed: int) -> None:
    from sinklens.cli.real_job import kinds, real_job
    from sinklens.cli.real_models import subjects
    from sinklens.cli.real_page import tell, write_report

    placing = options.placed(context.params)
    asked = subjects(prompts)
    for subject in asked:
        placing.outline(subject.model)
    options.folder(out, kinds(asked))
    found = real_job(asked, out, placing, seed=seed)
    tell(found)
    page = write_report(found, out)
    records = [(out / subject.record, f"{subject.model}, every step") for subject in asked]
    _done(
        found.seconds,
        (page, "tables, curves and interactive timelines; open it in a browser"),
        (out / "table1.csv", "accuracy by detector, number of keys and control, with intervals"),
        *records,
    )


def _done(seconds: float, *results: tuple[Path, str]) -> None:
    typer.echo(f"\nDone in {seconds:.0f} s. Results:")
    for path, what in results:
        typer.echo(f"  {path}  ({what})")
