"""`sinklens reproduce l2`: key norms as a budget, in a baseline's cache or in the steps of a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinklens.cli import options

if TYPE_CHECKING:
    from sinklens.models.placing import Placing

CACHE = ("outcomes", "rankings", "skip_layers", "lengths", "depths", "repeats", "texts")  # fields of L2
STEPS = ("task", "prompts", "extract", "match", "separator", "new_tokens", "steps", "block_length", "chat")


def l2(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A baseline, whose cache is cut, or a diffusion model.")] = "smollm2-135m",
    shares: Annotated[
        list[float] | None,
        typer.Option("--share", help="Of the keys that are kept, several times.", show_default=".9 .75 .5 .25 .1"),
    ] = None,
    outcomes: Annotated[
        list[str] | None,
        typer.Option("--outcome", help="correlation, perplexity, passkey, needle; several times.", show_default="all"),
    ] = None,
    rankings: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="Which keys are kept: low_norm, high_norm, attended, attended_mean, recent, random; each also with "
            "' + first' or ' - first' (whatever its rank, the first position is kept or dropped).",
            show_default="all, and three about the first",
        ),
    ] = None,
    skip_layers: Annotated[
        list[int] | None, typer.Option("--skip-layer", help="Keeps everything; several times.", show_default="0 and 1")
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", help="Of a context, in tokens, several times.", show_default="256 512 1024 2048"),
    ] = None,
    depths: Annotated[
        list[float] | None,
        typer.Option("--depth", help="Where something is hidden, 0 to 1.", show_default="0 .25 .5 .75 1"),
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Per length and depth.", show_default="2")] = None,
    texts: Annotated[
        int | None, typer.Option(min=1, help="Windows for perplexity and correlation.", show_default="4")
    ] = None,
    task: options.Task = None,
    prompts: options.Prompts = None,
    extract: options.Extract = None,
    match: options.Match = None,
    separator: options.Separator = None,
    new_tokens: options.NewTokens = None,
    steps: options.Steps = None,
    block_length: options.BlockLength = None,
    chat: options.Chat = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what is hidden and of random keys.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
    out: Annotated[Path, typer.Option(help="Folder for the tables and report.html.")] = Path("sinklens-l2"),
) -> None:
    """Is it enough to keep the keys of low norm? The published protocol, with random and other keys beside.

    "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression" (arXiv 2406.11430). Of a baseline: a
    context is read, its cache is cut, and a question is answered over what is left (passkey, needle in a haystack);
    perplexity of a text that is read on with a cache that is cut; the correlation of norm and received attention. About
    ten minutes for smollm2-135m on two cores; interrupted, it goes on where it was.

    Of a diffusion model, which has no cache (--task, --prompts, --new-tokens, ... are for these): the correlation at
    every step for prompt, committed and mask keys, and accuracy when only a share of the keys is seen.
    """
    from sinklens.errors import PlanError

    placing = options.placed(context.params)
    options.few_threads(model)
    causal = placing.outline(model).is_causal
    foreign = [name for name in (STEPS if causal else CACHE) if options.is_said(context.params[name])]
    if foreign:
        kind = "an autoregressive model: it is for diffusion models" if causal else "a diffusion model: it cuts a cache"
        raise PlanError(f"{foreign[0]}={context.params[foreign[0]]!r} says nothing of {model}, {kind}")
    (_of_baseline if causal else _of_diffusion)(context.params, model, placing, out)


def _of_baseline(params: dict[str, Any], model: str, placing: Placing, out: Path) -> None:
    from sinklens.experiments.l2 import L2
    from sinklens.experiments.l2_run import l2 as run_l2
    from sinklens.files import SCORES
    from sinklens.report.l2 import FILES, published, write_l2

    said = {name: params[name] for name in (*CACHE, "shares") if options.is_said(params[name])}
    protocol = L2(**said, seed=params["seed"])
    protocol.contexts(placing.outline(model))
    options.folder(out, {**FILES, "scores.jsonl": SCORES})
    options.tell_model(model, placing)
    dlm = placing.load(model)

    def run() -> Any:
        return run_l2(dlm, protocol, save_to=out / "scores.jsonl", progress=f"{model}: key norms")

    result, stopped = options.kept(run, "result")
    if result is None or not result.done:
        options.interrupted(f"what is finished is in {out / 'scores.jsonl'}; to go on start the same command again")
    if stopped:
        options.warn(result.unfinished or "interrupted in the end; it is whole")
    for outcome, semantics in result.measured():
        words = "nats" if outcome == "perplexity" else "share of right answers"
        typer.echo(f"\n{outcome}, {semantics} (95 % intervals over texts; columns: share of the keys kept)")
        typer.echo(result.wide(outcome, semantics).to_string(index=False))
        typer.echo(f"the same minus as many random keys with the first among them ({words}; * p < .05 after Holm)")
        typer.echo(result.wide(outcome, semantics, "minus_random_first").to_string(index=False))
    if result.correlations:
        typer.echo("\nRank correlation of -norm and received attention, mean over windows, layers and key heads")
        table = result.correlation().groupby("way", sort=False)["correlation"].mean().reset_index()
        typer.echo(options.text_of(table))
    typer.echo(f"\nPublished (arXiv 2406.11430)\n{published().to_string(index=False)}\n\n{write_l2(result, out)}")
    if stopped:
        options.interrupted(f"the finished trials are in {out / 'scores.jsonl'}; start the same command again to go on")


def _of_diffusion(params: dict[str, Any], model: str, placing: Placing, out: Path) -> None:
    from sinklens.experiments.budget_table import budget_table
    from sinklens.experiments.budgets import check_lengths
    from sinklens.experiments.config import Experiment
    from sinklens.experiments.l2 import L2
    from sinklens.experiments.l2_diffusion import METRICS, by_type, l2_in_diffusion
    from sinklens.files import SCORES
    from sinklens.report.l2 import FILES_IN_DIFFUSION, write_l2_in_diffusion

    rates = tuple(params["shares"] or L2().shares)
    fields = {name: params[name] for name in STEPS[:5] if options.is_said(params[name])}
    asked = Experiment(model=model, edits={"all": "keep=0.5:key_norm"}, plan=options.plan_of(params), **fields)
    asked.check()
    check_lengths(placing.outline(model), asked.make_task(), asked.make_plan(), rates, METRICS)
    options.folder(out, {**FILES_IN_DIFFUSION, "scores.jsonl": SCORES})
    options.tell_model(model, placing)
    dlm = placing.load(model)
    found = l2_in_diffusion(
        dlm, asked.make_task(), asked.make_plan(), rates=rates, seed=params["seed"],
        save_to=out / "scores.jsonl", progress=f"{model}: key norms",
    )  # fmt: skip
    page = write_l2_in_diffusion(model, found, out)
    if not found.curve.finished:
        options.warn(found.curve.unfinished)
    typer.echo("Rank correlation of -norm and received attention, mean over layers, heads, prompts and steps")
    typer.echo(options.text_of(by_type(found.correlation)))
    columns = ["selector", "rate", "kept", "value", "low", "high", "to_random", "to_random_low", "to_random_high"]
    typer.echo(f"\n{options.text_of(budget_table(found.curve)[columns])}\n\n{page}")
    if not found.curve.finished:
        options.interrupted(
            f"the finished batches are in {out / 'scores.jsonl'}; start the same command again to go on"
        )
