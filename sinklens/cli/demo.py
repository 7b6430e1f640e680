"""`sinklens demo`: the main job on the bundled twins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for report.html, record.nc and ablation.csv.")] = Path(
        "sinklens-demo"
    ),
    prompts: Annotated[
        int, typer.Option(min=4, help="Held-out texts per task; fewer is faster and less certain.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of the texts and of the sampling.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
) -> None:
    """The main job on the two bundled models: where sinks are, how they move, what removing them does.

    Takes about a minute on 2 cores and needs no network. An interrupted demo goes on where it was.
    """
    from sinklens.cli.demo_job import FILES, main_job
    from sinklens.cli.demo_page import tell, write_report
    from sinklens.models.files import BUNDLED

    placing = options.placed(context.params)
    for name in BUNDLED:
        placing.outline(name)
    options.folder(out, FILES)
    options.few_threads()
    try:
        findings = main_job(out, placing, prompts=prompts, seed=seed)
    except KeyboardInterrupt:
        options.interrupted(f"what was finished is in {out}; to go on start the same command again")
    tell(findings)
    page = write_report(findings, out)
    typer.echo(f"\nDone in {findings.seconds:.0f} s. Results:")
    for path, what in (
        (page, "tables and interactive timelines; open it in a browser"),
        (out / "record.nc", "tiny-dlm, every step: sinklens.open(...) gives an xarray Dataset"),
        (out / "record-arm.nc", "tiny-arm, likewise"),
        (out / "ablation.csv", "accuracy under every condition, with intervals"),
    ):
        typer.echo(f"  {path}  ({what})")
    typer.echo("Next: `sinklens hooks tiny-dlm` lists the hook points; the README has a probe in ten lines.")
