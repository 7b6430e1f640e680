"""`sinklens patch`: one run's activations put into another run, place by place and step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli import options

MOST = 8  # lines of the table


def patch(
    context: typer.Context,
    model: options.Model,
    clean: Annotated[str, typer.Option(help="The prompt whose activations are put in.")],
    corrupt: Annotated[str, typer.Option(help="The prompt that they are put into, of as many tokens.")],
    site: Annotated[str, typer.Option(help="residual, attention, mlp, values, mixed or pattern.")] = "residual",
    by: Annotated[str, typer.Option(help="position, head or both.")] = "position",
    metric: Annotated[str, typer.Option(help="logit_difference, log_probability or probability.")] = "logit_difference",
    outcome: Annotated[str, typer.Option(help="step (the patched forward) or end (of the run).")] = "step",
    direction: Annotated[str, typer.Option(help="denoising, or noising: corrupt into clean.")] = "denoising",
    commits: Annotated[str, typer.Option(help="Whose commits both runs follow: own, clean or corrupt.")] = "own",
    at: Annotated[str | None, typer.Option(help="Steps to patch at: 3, 0-3, 8- or 0,2,5.", show_default="all")] = None,
    new_tokens: options.NewTokens = 32,
    steps: options.Steps = None,
    block_length: options.BlockLength = None,
    temperature: options.Temperature = 0.0,
    chat: options.Chat = False,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches in one forward.")] = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
    out: Annotated[Path, typer.Option(help="Folder for forwards.jsonl, patches.nc and patches.html.")] = Path(
        "sinklens-patch"
    ),
) -> None:
    """Patch one run into another at every layer, place and step; write record and page. Started again, it goes on."""
    from sinklens import files, plots, records, report
    from sinklens.decoding.plan import Plan
    from sinklens.interventions.text import range_of
    from sinklens.patching import Patches, estimate
    from sinklens.patching import patch as patched
    from sinklens.patching.pairs import read_pairs

    plan = Plan(**options.plan_of(context.params))
    asked: Any = {"site": site, "by": by, "metric": metric, "outcome": outcome}
    asked |= {"direction": direction, "commits": commits, "steps": None if at is None else range_of(at)}
    patches = Patches(**asked)
    placing = options.placed(context.params)
    read_pairs(placing.outline(model), clean, corrupt, plan, None, seed)
    written = {"forwards.jsonl": files.SCORES, "patches.nc": files.RECORD, "patches.html": files.PAGE}
    forwards = options.folder(out, written) / "forwards.jsonl"
    options.few_threads(model)
    options.tell_model(model, placing)
    dlm = placing.load(model)
    typer.echo(f"{estimate(dlm, clean, corrupt, plan, patches, batch_size=batch_size)}\n")
    record = patched(dlm, clean, corrupt, plan, patches, seed=seed, batch_size=batch_size, save_to=forwards)
    effect = record["effect"].isel(prompt=0, drop=True)
    table = effect.to_dataframe().reset_index().dropna()
    table = table.sort_values("effect", ascending=False, key=abs).head(MOST)
    if "position" in table:
        for name in ("clean", "corrupt"):
            texts = record[f"text_{name}"][0].to_numpy()
            table[name] = [texts[position] for position in table["position"]]
    typer.echo(
        f"The {len(table)} largest effects; 1 is as in the run that a patch comes from\n{options.text_of(table)}"
    )
    path = records.save(record, out / "patches.nc")
    section = report.Section("Effects", record["effect"].attrs["definition"], figures=[plots.patching(record)])
    intro = f"Clean: {clean}\n\nCorrupt: {corrupt}\n\n{plan}, {patches}"
    page = report.write(out / "patches.html", title=f"Patching {dlm.name}", intro=intro, sections=[section])
    typer.echo(f"\n{path}\n{page}")
