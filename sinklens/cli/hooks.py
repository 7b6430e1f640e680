"""`sinklens hooks`: what can be hooked."""

from __future__ import annotations

import typer

from sinklens.cli import options


def hooks(
    context: typer.Context,
    model: options.Model = "tiny-dlm",
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    attention: options.Attention = None,
    family: options.Family = None,
    mask_token_id: options.MaskTokenId = None,
) -> None:
    """The hook points of a model: the shape of each for one prompt of 5 tokens, and what the main ones mean."""
    placing = options.placed(context.params)
    placing.outline(model)
    options.tell_model(model, placing)
    dlm = placing.load(model)
    typer.echo(f"{dlm}; layer 0 stands for all {dlm.n_layers} layers")
    means = dlm.hook_meanings()
    for name, shape in dlm.hook_table().items():
        if not name.startswith("blocks.") or name.startswith("blocks.0."):
            meaning = means.get(name.removeprefix("blocks.0."), "")
            typer.echo(f"  {name.replace('blocks.0.', 'blocks.{i}.'):42} {list(shape)!s:16} {meaning}".rstrip())
