"""`sinklens models` and `sinklens hooks`: what can be loaded, and what can be hooked."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sinklens.cli import options

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, one object for each family.")]


def models(as_json: AsJson = False) -> None:
    """The bundled models, and the families whose checkpoints can be loaded: sizes, licences, what runs on a laptop.

    A size counts stored numbers; a licence is that of the weights, where their authors' pages at hand say it.
    "laptop": small enough for a processor and a few gigabytes of memory. A family without model_type is none that
    config.json could say: give --family (family= in Python), and --mask-token-id where the tokenizer names no mask.
    """
    from sinklens.models.families import FAMILIES
    from sinklens.models.files import BUNDLED

    if as_json:
        typer.echo(json.dumps([{**_family(family), "models": _models(family)} for family in FAMILIES], indent=1))
        return
    typer.echo("Bundled: " + ", ".join(BUNDLED))
    for family in FAMILIES:
        said = _family(family)
        known = f"model_type {', '.join(said['model_types'])}" if said["model_types"] else f"--family {family.name}"
        typer.echo(f"{family.name:12} {said['kind']:24} {known:26} {said['computed_as']}")
        for each in _models(family):
            size = "" if each["parameters"] is None else f"{each['parameters'] / 1e9:.3g} B"
            laptop = "laptop" if each["laptop"] else ""
            typer.echo(f"  {each['name']:62} {size:>8} {laptop:6}  {each['licence']:10} {each['note']}".rstrip())


def _family(family: Any) -> dict[str, Any]:
    kind = "autoregressive baseline" if family.causal else "encoder" if family.closes else "diffusion"
    shifted = ", logits shifted" if family.shift else ""
    return {
        "family": family.name,
        "kind": kind,
        "model_types": list(family.model_types),
        "computed_as": family.model_class + shifted,
        "source": family.source,
    }


def _models(family: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": model.name,
            "parameters": model.parameters,
            "laptop": model.on_a_laptop,
            "licence": model.licence,
            "note": model.note,
        }
        for model in family.models
    ]


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
