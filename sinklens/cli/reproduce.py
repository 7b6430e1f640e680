"""`sinklens reproduce table1`: a published table beside its own numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def table1(
    context: typer.Context,
    model: Annotated[list[str] | None, typer.Option(help="Several times.", show_default="the bundled ones")] = None,
    task: options.Task = None,
    prompts: options.Prompts = None,
    extract: options.Extract = None,
    match: options.Match = None,
    separator: options.Separator = None,
    new_tokens: options.NewTokens = None,
    block_length: options.BlockLength = None,
    steps: options.Steps = None,
    temperature: options.Temperature = None,
    chat: options.Chat = False,
    editing: options.Editing = None,
    seeds: options.Seeds = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward.")] = 448,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
    out: Annotated[Path, typer.Option(help="Folder for table1.csv, the results and report.html.")] = Path(
        "sinklens-table1"
    ),
) -> None:
    """Accuracy without the top 1, 5 and 10 sinks, by the paper's protocol, with the controls it lacks.

    Table 1 of "Attention Sinks in Diffusion Language Models" (arXiv 2510.15731). On the bundled models it takes about
    two minutes and needs no network. For the paper's models give --model and a JSONL file of prompts and answers; the
    paper generates 256 tokens for GSM8K, in blocks of 32.
    """
    from sinklens.errors import PlanError
    from sinklens.experiments import published
    from sinklens.files import SCORES
    from sinklens.models.files import BUNDLED
    from sinklens.report.table1 import files_of, unfinished, write_table1

    names = model or list(BUNDLED)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PlanError(f"--model {twice[0]} is given twice")
    options.folder(out, {**files_of(names), "scores.jsonl": SCORES})
    options.few_threads(*names)
    fields = options.fields_of(context.params, "model", "out")
    every = [options.on_best_device(published.experiment1(name, **fields)) for name in names]
    for asked in every:  # all of them before the first: the last model's mistake is not found after hours
        asked.check()
    job = every[0].make_task()
    typer.echo(f"{job.name}, {len(job)} examples: {job.scoring}")
    results, stopped, scores = [], False, out / "scores.jsonl"
    for asked in every:
        options.tell_model(asked.model, asked.placing)
        run = partial(asked.run, save_to=scores, progress=f"{asked.model}: table 1")
        result, stopped = options.kept(run, "result")
        results += [] if result is None else [result]
        if stopped:
            break
    if not results:
        options.interrupted("no batch was finished, and nothing was written")
    missing = names[len(results) :]
    page = write_table1(results, out, missing)
    if stopped:
        options.warn(unfinished(results, missing) or "interrupted in the end; it is whole")
    typer.echo(options.text_of(published.layout(results)))
    table = published.wide(published.published()).to_string(index=False)
    typer.echo(f"\nPublished (arXiv 2510.15731, table 1)\n{table}\n\n{page}")
    if stopped:
        options.interrupted(f"the finished batches are in {scores}; to go on start the same command again")
