"""`sinklens select train`: a gate for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def train(
    context: typer.Context,
    model: options.Model,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the gate, its log and its checkpoint.", show_default="MODEL-gate")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="What to train on: plain text, or JSON lines (texts, or objects with text, or prompt and answer). The "
            "last fifth is held out.",
            show_default="what fits the model",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="conditioned (a small network), threshold, or learned_threshold (the literature's).")
    ] = "conditioned",
    scores: Annotated[str, typer.Option(help="layer: each layer has its own; shared: one set for all.")] = "layer",
    first: Annotated[
        int, typer.Option(help="The first layer that selects; shared scores are of its input. Before it all is kept.")
    ] = 1,
    hidden: Annotated[int, typer.Option(help="conditioned: hidden units.")] = 12,
    updates: Annotated[int | None, typer.Option(help="Steps of Adam.", show_default="by size of the model")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of each.", show_default="by size of the model")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a row.", show_default="by size of the model")] = None,
    lowest: Annotated[float, typer.Option(help="Rates are drawn from here to 1.")] = 0.05,
    loss: Annotated[
        str, typer.Option(help="kl: stay near the frozen model's predictions; ce: predict the true tokens.")
    ] = "kl",
    penalty: Annotated[float, typer.Option(help="Of the squared distance from the rate.")] = 100.0,
    per_layer: Annotated[
        bool, typer.Option("--per-layer/--over-layers", help="Meet the rate in each layer, or on average over them.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of first weights, texts, masks and rates.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
) -> None:
    """Train a gate: which tokens of a frozen model stay visible as keys, one set of weights for every rate.

    For each update a rate is drawn; the gate chooses keys by each layer's residual stream; the loss is how far the
    model's predictions move, plus a penalty where the kept share misses the rate. Nothing of the model changes. The
    bundled twins take a minute or two, SmolLM2 and AntiBERTy up to 20 minutes on two cores. An interrupted training
    goes on where it was when the same command is started again. The gate of SmolLM2 that comes with sinklens had more
    than the default, --updates 400, and keeps better at low rates.

    The text is the twins' language for the twins, antibodies for models of proteins, and otherwise the English that
    every Python carries (pydoc_data.topics; its last fifth is held out).
    """
    from sinklens.selection.gate import Shape
    from sinklens.selection.recipe import Recipe
    from sinklens.selection.texts import texts_for
    from sinklens.selection.training import REACHED, check, train

    said = context.params
    shape = Shape(**{name: said[name] for name in ("kind", "scores", "first", "hidden")})
    fields = ("updates", "batch", "length", "lowest", "loss", "penalty", "per_layer", "seed")
    recipe = Recipe(shape, **{name: said[name] for name in fields})
    placing = options.placed(said)
    folder = out or Path(f"{Path(model).name}-gate")
    check(folder)
    outline = placing.outline(model)
    recipe.check(outline)
    texts = texts_for(outline, text)
    options.few_threads(model)
    options.tell_model(model, placing)
    dlm = placing.load(model)
    typer.echo(f"{texts!r}\n{recipe.for_model(dlm)!r}")
    try:
        gate = train(dlm, recipe, texts, out=folder)
    except KeyboardInterrupt:
        options.interrupted(f"a checkpoint is in {folder}; to go on start the same command again")
    import pandas as pd

    typer.echo(
        f"\nOn held-out texts, at {len(REACHED)} rates: the share kept (least and most by layer), KL to the frozen\n"
        "model in nats, and the share of equal predictions; beside them as many keys by chance"
    )
    typer.echo(options.text_of(pd.DataFrame(gate.made["reached"])))
    typer.echo(
        f"\n{folder}\nNext: sinklens ablate {model} --edit keep=0.5:learned@gate={folder} "
        f"--edit keep=0.5:random@layers={first}-"
    )
